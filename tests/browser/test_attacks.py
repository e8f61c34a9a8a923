"""What attackers try on somebody's browser: scripts in data, foreign pages, links that lead away."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Dialog, Page, expect

from core.credentials import KeyKind
from core.parties import api_keys
from tests.browser.conftest import OpenPage, Watch
from tests.browser.people import PASSWORD, Person, fill_in_sign_in, join, sign_in
from tests.servers import Account, System, open_account

MARKUP = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>{{7*7}}"
MARKUP_EMAIL = "=1+1'&{{7*7}}`@example.com"


@pytest.fixture
def account(system: System) -> Account:
    """A business whose name is an attack, with keys, users, references and idempotency keys that are, too."""
    account = open_account(system.database, name=MARKUP)
    with system.database.transaction() as connection:
        api_keys.create_api_key(connection, account.business.id, KeyKind.SECRET, MARKUP[:80])
    with system.client(headers=account.headers) as client:
        body = {"email": MARKUP_EMAIL, "amount": 500}
        headers = {"Idempotency-Key": "<script>alert(3)</script>", "X-Request-Id": "<script>alert(4)</script>"}
        assert client.post("/payout/create", json=body, headers=headers).status_code == 201
        rows = [{"email": MARKUP_EMAIL, "amount": 500, "reference": MARKUP}]
        assert client.post("/payout/batches", json={"allocations": rows}).status_code == 202
        assert client.get("/payout/users/<script>alert(5)</script>").status_code == 404
    return account


@pytest.fixture
def admin(system: System, account: Account) -> Person:
    return join(system, account)


def expect_only_text(page: Page) -> None:
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("[...document.scripts].every(script => script.src.startsWith(location.origin))")
    assert "49'" not in page.locator("main").inner_text()


def test_scripts_in_data_are_text(
    page: Page, watch: Watch, system: System, admin: Person, account: Account, tmp_path: Path
) -> None:
    watch.expected.add("does not conform to the required format")  # Chromium of a date that is none
    dialogs: list[str] = []

    def note(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    sign_in(page, admin)
    with system.client(headers=account.headers) as client:
        user = client.get("/payout/users").json()["data"][0]["id"]
        batch = client.get("/payout/batches").json()["data"][0]["id"]
    for path in (
        "",
        "/users",
        f"/users?email={MARKUP}",
        f"/users/{user}",
        "/transactions",
        f"/transactions?email={MARKUP}&from={MARKUP}&type={MARKUP}",
        "/batches",
        f"/batches/{batch}",
        "/developers",
        "/settings",
        "/settings/log",
        f"/{MARKUP}",
        f"/users/{MARKUP}",
    ):
        page.goto(admin.base + path.replace("#", "%23"))
        expect_only_text(page)
    page.goto(f"{admin.base}/users")
    expect(page.get_by_role("link", name=MARKUP_EMAIL)).to_be_visible()
    page.goto(f"{admin.base}/batches/{batch}")
    expect(page.locator("main")).to_contain_text(MARKUP)

    rows = tmp_path / "<img src=x onerror=alert(6)>.csv"
    rows.write_text('email,amount,reference\n<script>alert(7)</script>,1,"<b>x</b>"\n')
    page.goto(f"{admin.base}/batches")
    page.get_by_label("CSV, NDJSON, JSON or .xlsx file").set_input_files(rows)
    page.get_by_role("button", name="Check the file").click()
    expect(page.get_by_role("alert")).to_contain_text("<script>")
    expect_only_text(page)
    rows.write_text('email,amount,reference\nuser@example.com,1,"<img src=x onerror=alert(8)>"\n')
    page.get_by_label("CSV, NDJSON, JSON or .xlsx file").set_input_files(rows)
    page.get_by_role("button", name="Check the file").click()
    expect(page.get_by_role("cell", name="<img src=x onerror=alert(8)>")).to_be_visible()
    expect_only_text(page)

    page.goto(f"/dashboard/sign-in?next={MARKUP}")
    page.goto(f"/docs/{MARKUP}")
    expect_only_text(page)
    assert dialogs == []


def test_the_policy_stops_a_script_that_got_into_a_page(page: Page, watch: Watch, admin: Person) -> None:
    """So that the other tests, which see no violation, would have seen one."""
    sign_in(page, admin)
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.pwned = true";
        document.body.append(script);
        const image = document.createElement("div");
        image.innerHTML = "<b onclick='window.pwned = true' style='color: red'>x</b>";
        document.body.append(image);
        image.firstChild.click();
    }""")
    assert page.evaluate("window.pwned") is None
    page.wait_for_timeout(200)
    assert len([problem for problem in watch.problems if "Content Security Policy" in problem]) >= 2
    watch.problems.clear()


@contextmanager
def serve(html: str) -> Iterator[int]:
    """Serve a page from another origin; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_no_page_can_be_put_into_a_frame(page: Page, watch: Watch, system: System, admin: Person) -> None:
    sign_in(page, admin)
    paths = ("/dashboard", "/dashboard/sign-in", "/dashboard/nothing", "/docs", "/docs/contract", "/docs/nothing")
    frames = "".join(f'<iframe src="{system.base_url}{path}"></iframe>' for path in paths)
    with serve(f"<!doctype html><title>x</title>{frames}") as port:
        page.goto(f"http://localhost:{port}/")
        page.wait_for_load_state("networkidle")
        assert len(page.frames) == 1 + len(paths)
        for frame in page.frames[1:]:
            assert frame.url == "chrome-error://chromewebdata/"  # where Chromium puts what it refuses to show
    refusals = [problem for problem in watch.problems if "frame" in problem.lower()]
    assert len(refusals) >= len(paths)
    watch.problems.clear()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"], ids=["another site", "the same site, another port"])
def test_a_form_on_a_foreign_page_changes_nothing(
    page: Page, watch: Watch, system: System, admin: Person, host: str
) -> None:
    sign_in(page, admin)
    page.goto(f"{admin.base}/settings")
    token = page.locator("[name=csrf_token]").first.input_value()
    form_id = page.locator("[name=form_id]").first.input_value()
    # As if the token had got out.
    html = f"""<!doctype html><title>x</title>
    <form method="post" action="{system.base_url}{admin.base}/settings/payouts">
    <input name="csrf_token" value="{token}"><input name="form_id" value="{form_id}">
    <button name="enabled" value="no">Win a prize</button></form>"""
    with serve(html) as port:
        page.goto(f"http://{host}:{port}/")
        page.get_by_role("button").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(
            "You are signed out" if host == "localhost" else "This form is out of date"
        )
    page.goto(f"{admin.base}/settings")
    expect(page.get_by_role("button", name="Disable payouts")).to_be_visible()
    watch.problems.clear()  # requests to the foreign page


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.example/", "//evil.example/", "/\\evil.example/", "/docs/../../evil", "javascript:alert(1)"],
)
def test_signing_in_leads_to_no_other_place(page: Page, system: System, admin: Person, wanted: str) -> None:
    page.goto(f"/dashboard/sign-in?next={wanted}".replace("\\", "%5C"))
    fill_in_sign_in(page, admin.email, PASSWORD)
    expect(page.get_by_role("heading", level=1)).to_have_text("Home")
    assert page.url == system.base_url + admin.base


def test_cookies_are_out_of_reach_for_scripts_and_other_sites(page: Page, system: System, admin: Person) -> None:
    page.goto("/dashboard/sign-in")
    sign_in(page, admin)
    cookies = page.context.cookies()
    assert cookies
    for cookie in cookies:
        assert cookie["httpOnly"]
        assert cookie["sameSite"] in {"Lax", "Strict"}
        assert cookie["domain"] == urlsplit(system.base_url).hostname  # no leading dot: this host alone
    assert page.evaluate("document.cookie") == ""
    https = httpx.get(f"{system.base_url}/dashboard/sign-in", headers={"X-Forwarded-Proto": "https"})
    assert https.headers["strict-transport-security"]
    for line in https.headers.get_list("set-cookie"):
        assert line.startswith("__Host-")
        assert "Secure" in line


def test_the_session_of_before_signing_in_is_not_the_one_after(page: Page, admin: Person) -> None:
    page.goto("/dashboard/sign-in")
    before = {cookie["value"] for cookie in page.context.cookies()}
    sign_in(page, admin)
    assert before.isdisjoint(cookie["value"] for cookie in page.context.cookies())


def test_nothing_is_left_for_the_back_button(open_page: OpenPage, admin: Person) -> None:
    page = sign_in(open_page(), admin)
    for path in ("/users", "/settings", "/developers"):
        page.goto(admin.base + path)
    page.context.clear_cookies()
    for _ in range(3):
        page.go_back()
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
