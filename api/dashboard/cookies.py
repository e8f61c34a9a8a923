"""The dashboard's cookies: out of reach for scripts, for this server alone, and sent by links from elsewhere at most.

Over https their names begin with `__Host-`, so that no neighbour's page can set them. Without https, which is for this
machine, they are not marked `Secure`, for programs would not send them back.
"""

from typing import Any

from litestar import Response

from api.web.request import HttpRequest

SESSION = "payouts_session"
VISITOR = "payouts_visitor"
"""Of who is not signed in yet: what their forms' tokens are made for."""
DEVICE = "payouts_device"
"""Says for whom somebody has signed in in this browser (`sign_in_tries`)."""


def read_cookie(request: HttpRequest, name: str) -> str:
    """Return a cookie's value; empty where there is none."""
    return request.cookies.get(_full_name(request, name), "")


def set_cookie(
    request: HttpRequest, response: Response[Any], name: str, value: str, *, max_age_s: int | None = None
) -> None:
    """Set a cookie, until the browser is closed or for a while."""
    response.set_cookie(
        _full_name(request, name),
        value,
        max_age=max_age_s,
        path="/",
        secure=_is_https(request),
        httponly=True,
        samesite="lax",
    )


def delete_cookie(request: HttpRequest, response: Response[Any], name: str) -> None:
    """Take a cookie back."""
    set_cookie(request, response, name, "", max_age_s=0)


def _full_name(request: HttpRequest, name: str) -> str:
    return f"__Host-{name}" if _is_https(request) else name


def _is_https(request: HttpRequest) -> bool:
    return request.scope.get("scheme") == "https"
