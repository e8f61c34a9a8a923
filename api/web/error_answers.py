"""How exceptions are answered: each status with its documented error, anything unexpected with 500."""

from typing import Any

from litestar import Response
from litestar.exceptions import HTTPException

from api.web import responses
from api.web.request import HttpRequest
from api.web.request_log import log_unexpected, note_of
from api.web.responses import Refusal

_REFUSAL_BY_STATUS = {
    refusal.status_code: refusal
    for refusal in (
        responses.UNAUTHORIZED,
        responses.NOT_FOUND,
        responses.METHOD_NOT_ALLOWED,
        responses.REQUEST_TIMEOUT,
        responses.BODY_TOO_LARGE,
        responses.TOO_MANY_REQUESTS,
        responses.INTERNAL_ERROR,
    )
}


def answer_http_exception(_: HttpRequest, error: HTTPException) -> Response[Any]:
    """Answer what Litestar raised with the documented error of its status, or with one of the same status."""
    refusal = _REFUSAL_BY_STATUS.get(error.status_code)
    if refusal is None:
        is_ours = error.status_code >= 500
        refusal = responses.INTERNAL_ERROR if is_ours else Refusal(error.status_code, responses.BAD_REQUEST.error)
    response = refusal.response()
    if allow := (error.headers or {}).get("allow"):
        response.headers["Allow"] = allow
    return response


def answer_unexpected(request: HttpRequest, error: Exception) -> Response[Any]:
    """Log an error that nobody expected, and answer 500."""
    log_unexpected(error, note_of(request.scope), request.scope.get("path_template"))
    return responses.INTERNAL_ERROR.response()
