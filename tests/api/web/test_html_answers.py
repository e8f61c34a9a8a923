"""Every HTML answer carries the security headers, whatever it says; paths of the API answer JSON all the same."""

import httpx
import pytest

from api.web.browser_headers import CONTENT_SECURITY_POLICY
from tests.servers import ROOT, Account, System

UNKNOWN_BUSINESS = "/dashboard/biz_0199f6d2c5aa7d22c3d4e5f607182930/live"
HTML = [
    ("GET", "/docs", 200),
    ("GET", "/docs/", 200),
    ("GET", "/docs/contract", 200),
    ("GET", "/docs/nothing", 404),
    ("GET", "/docs/assets/nothing.js", 404),
    ("POST", "/docs", 405),
    ("DELETE", "/docs/contract", 405),
    ("GET", "/dashboard", 303),
    ("GET", "/dashboard/", 303),
    ("GET", "/dashboard/sign-in", 200),
    ("POST", "/dashboard/sign-in", 403),
    ("PUT", "/dashboard/sign-in", 405),
    ("GET", "/dashboard/account", 303),
    ("POST", "/dashboard/account", 401),
    ("GET", "/dashboard/nothing", 303),
    ("GET", "/dashboard/assets/nothing.css", 404),
    ("GET", "/dashboard/invitations/nothing", 404),
    ("GET", UNKNOWN_BUSINESS, 303),
    ("GET", f"{UNKNOWN_BUSINESS}/settings", 303),
    ("POST", f"{UNKNOWN_BUSINESS}/settings/payouts", 401),
    ("GET", f"{UNKNOWN_BUSINESS}/transactions.csv", 303),
]


@pytest.mark.parametrize(("method", "path", "status_code"), HTML)
def test_pages_and_their_errors_are_html_with_all_headers(
    client: httpx.Client, method: str, path: str, status_code: int
) -> None:
    response = client.request(method, path, headers={"Accept": "text/html"})
    assert response.status_code == status_code
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "same-origin"
    assert response.headers["cross-origin-opener-policy"] == "same-origin"
    assert response.headers["x-request-id"]
    is_public = path.startswith("/docs") and status_code == 200
    assert response.headers["cache-control"] == ("no-cache" if is_public else "no-store")
    if status_code == 405:
        assert response.headers["allow"]
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status_code"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/payout/nothing", 404),
        ("GET", "/payout/create", 405),
        ("GET", "/dashboards", 404),
        ("GET", "/docsy", 404),
        ("GET", "/balance", 401),
    ],
)
def test_the_api_answers_browsers_in_json_too(client: httpx.Client, method: str, path: str, status_code: int) -> None:
    response = client.request(method, path, headers={"Accept": "text/html,application/xhtml+xml"})
    assert response.status_code == status_code
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}


def test_a_key_opens_no_page_and_a_page_s_cookie_no_call(client: httpx.Client, account: Account) -> None:
    response = client.get("/dashboard", headers=account.headers)
    assert (response.status_code, response.headers["location"]) == (303, "/dashboard/sign-in")
    assert client.get("/balance", headers={"Cookie": "payouts_session=" + "0" * 64}).status_code == 401


def test_html_is_made_in_one_place_only() -> None:
    """Whatever makes HTML without `security_headers.page` would leave the headers out."""
    makers = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "api").rglob("*.py")
        if "MediaType.HTML" in path.read_text() or "text/html" in path.read_text()
    ]
    assert makers == ["api/web/browser_headers.py"]


def test_answers_to_forms_of_any_size_are_pages(client: httpx.Client, system: System) -> None:
    body = b"email=" + b"x" * 3_000_000
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = client.post("/dashboard/sign-in", content=body, headers=headers)
    assert response.status_code in {403, 413}
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
