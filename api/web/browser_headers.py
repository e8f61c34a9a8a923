"""What browsers are told about every HTML answer of ours: pages, errors and redirects alike.

Whoever answers a browser does it with `page` or `redirect`; nothing else in `api` makes HTML. A file that a page links
to (CSV, say) takes `browser_headers` as it is. The policy allows files of ours alone: no `<script>` or `<style>` with
content, no `style="…"` and no `onclick="…"` anywhere; put them into files that we serve (an SVG is drawn with
attributes and classes).
"""

import re
from collections.abc import Mapping

from litestar import MediaType, Response

from api.web.request import HttpRequest

NO_STORE = "no-store"
"""For pages with data: nothing is left for the back button once somebody has signed out."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # With `no-referrer`, a browser sends its own forms as from the origin `null`.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HTTPS_ONLY = {"Strict-Transport-Security": f"max-age={365 * 24 * 3600}"}

_LOCAL = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*\Z")  # printable ASCII without backslashes


def browser_headers(request: HttpRequest, *, cache: str = NO_STORE) -> dict[str, str]:
    """Return the headers, with HSTS where the request came by https (or a proxy that is trusted says so)."""
    headers = _HEADERS | {"Cache-Control": cache}
    return headers | _HTTPS_ONLY if request.scope.get("scheme") == "https" else headers


def page(
    request: HttpRequest,
    html: str,
    status_code: int = 200,
    *,
    cache: str = NO_STORE,
    headers: Mapping[str, str] | None = None,
) -> Response[str]:
    """Make the answer of a page. Give `cache` only to pages that are the same for everybody."""
    return Response(
        html,
        status_code=status_code,
        headers={**browser_headers(request, cache=cache), **(headers or {})},
        media_type=MediaType.HTML,
    )


def redirect(request: HttpRequest, path: str, *, headers: Mapping[str, str] | None = None) -> Response[str]:
    """Send a browser to a page of ours with GET, after whatever it sent. A path that is not ours leads to `/`."""
    return Response(
        "",
        status_code=303,
        headers={**browser_headers(request), **(headers or {}), "Location": local_path(path, "/")},
        media_type=MediaType.HTML,
    )


def local_path(path: str | None, otherwise: str) -> str:
    """Return a path that somebody gave, where it is one on this server, with its query; or else the other one."""
    return path if path and _LOCAL.match(path) else otherwise
