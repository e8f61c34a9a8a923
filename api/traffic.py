"""Counting requests: method, route and status, and how long each took."""

import time

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from core import metrics

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_UNMATCHED = "unmatched"


def count_requests(app: ASGIApp) -> ASGIApp:
    """Wrap the application; routes are counted by their templates, and what has none as `unmatched`."""
    series: dict[tuple[str, str, int], tuple[metrics.Counter, metrics.Histogram]] = {}

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started_at = time.perf_counter()
        try:
            await app(scope, receive, send_noting)
        finally:
            if status:  # otherwise the caller had gone before anything was answered
                method = scope["method"] if scope["method"] in _METHODS else "other"
                key = (method, scope.get("path_template", _UNMATCHED), status)
                counters = series.get(key)
                if counters is None:
                    counters = series[key] = _find_series(*key)
                counters[0].note()
                counters[1].note(time.perf_counter() - started_at)

    return counted


def _find_series(method: str, route: str, status: int) -> tuple[metrics.Counter, metrics.Histogram]:
    return metrics.HTTP_REQUESTS.labels(method, route, str(status)), metrics.HTTP_REQUEST_SECONDS.labels(method, route)
