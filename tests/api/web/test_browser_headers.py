"""Security headers, as a browser would get them from an application that answers with `page` and `redirect`."""

import pytest
from litestar import Response, get
from litestar.testing import create_test_client

from api.web.browser_headers import browser_headers, local_path, page, redirect
from api.web.request import HttpRequest


@get("/page")
async def show_page(request: HttpRequest) -> Response[str]:
    return page(request, "<p>hello</p>", 404, headers={"X-Own": "kept"})


@get("/away")
async def lead_away(request: HttpRequest) -> Response[str]:
    return redirect(request, request.query_params["next"])


@get("/shared")
async def show_shared(request: HttpRequest) -> Response[str]:
    return Response("", headers=browser_headers(request, cache="public, max-age=60"))


def test_a_page_may_run_nothing_but_our_files_and_may_not_be_framed() -> None:
    with create_test_client([show_page]) as client:
        response = client.get("/page")
    assert response.status_code == 404
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(each.split(" ", 1) for each in response.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "same-origin"
    assert response.headers["cross-origin-opener-policy"] == "same-origin"
    assert "camera=()" in response.headers["permissions-policy"]
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-own"] == "kept"


def test_hsts_is_sent_by_https_alone() -> None:
    with create_test_client([show_page]) as client:
        assert "strict-transport-security" not in client.get("/page").headers
    with create_test_client([show_page], base_url="https://testserver.local") as client:
        assert client.get("/page").headers["strict-transport-security"] == "max-age=31536000"


def test_what_everybody_may_see_can_be_cached() -> None:
    with create_test_client([show_shared]) as client:
        assert client.get("/shared").headers["cache-control"] == "public, max-age=60"


@pytest.mark.parametrize("path", ["/", "/dashboard", "/dashboard/biz_1/users?email=a%40b.com&page=2"])
def test_local_paths_are_followed(path: str) -> None:
    assert local_path(path, "/other") == path
    with create_test_client([lead_away]) as client:
        response = client.get("/away", params={"next": path}, follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, path)
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        None,
        "",
        "dashboard",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        " /dashboard",
        "/\t/evil.example",
        "/dashboard\r\nSet-Cookie: a=b",
        "/dashboard\n",
        "/a\\b",
        "/ä",
    ],
)
def test_no_other_path_is_followed(path: str | None) -> None:
    assert local_path(path, "/other") == "/other"
    with create_test_client([lead_away]) as client:
        response = client.get("/away", params={"next": path or ""}, follow_redirects=False)
    assert response.headers["location"] == "/"
    assert "set-cookie" not in response.headers
