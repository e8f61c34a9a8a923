"""Counting requests: method, route and status, and how long each took."""

from api.web.request_log import RequestNote
from core import metrics

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_UNMATCHED = "unmatched"

_Series = tuple[metrics.Counter, metrics.Histogram]


class RequestMetrics:
    """Counts by the templates of routes; what has none is `unmatched`."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str | None, int], _Series] = {}

    def count(self, request: RequestNote) -> None:
        """Count a request, unless its caller had gone before anything was answered."""
        if not request.status:
            return
        method = request.method if request.method in _METHODS else "other"
        key = (method, request.route, request.status)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _find_series(method, request.route or _UNMATCHED, request.status)
        series[0].note()
        series[1].note(request.duration_s)


def _find_series(method: str, route: str, status: int) -> _Series:
    return metrics.HTTP_REQUESTS.labels(method, route, str(status)), metrics.HTTP_REQUEST_SECONDS.labels(method, route)
