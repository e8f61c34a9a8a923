"""The one table that maps outcomes to HTTP, and the bodies of every documented error."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from litestar import MediaType, Response
from litestar.types import Send

from api.web.validation import FieldErrors
from core.messages import Outcome

HttpResponse = Response[Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A documented error: status, text and headers."""

    status_code: int
    error: str
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> Response[dict[str, str]]:
        """Make the response."""
        return Response(
            {"error": self.error},
            status_code=self.status_code,
            headers=self.headers,
            media_type=MediaType.JSON,
        )

    async def send(self, send: Send) -> None:
        """Send the response from an ASGI handler."""
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        await send_json(send, self.status_code, {"error": self.error}, headers)


Answer = msgspec.Struct | FieldErrors | Refusal
"""What a call comes to: a document, errors by field, or a refusal."""

UNAUTHORIZED = Refusal(401, "Unauthorized", {"WWW-Authenticate": "Bearer"})
HASH_UNAUTHORIZED = Refusal(401, "Unauthorized", {"WWW-Authenticate": "PayoutHash"})
PAYOUTS_DISABLED = Refusal(403, "Payouts are currently disabled. Please enable them in Settings.")
NOT_AN_OBJECT = Refusal(400, "The request body must be a JSON object.")
IDEMPOTENCY_KEY_MALFORMED = Refusal(400, "Idempotency-Key must be 1 to 255 visible ASCII characters")
IDEMPOTENCY_KEY_REUSED = Refusal(422, "Idempotency-Key was already used with different parameters")
IDEMPOTENCY_KEY_REQUIRED = Refusal(400, "Idempotency-Key is required")
REFERENCE_REUSED = Refusal(422, "Reference was already used with different parameters")
INSUFFICIENT_BALANCE = Refusal(400, "Insufficient payout balance")
BAD_REQUEST = Refusal(400, "Bad request")
NOT_FOUND = Refusal(404, "Not found")
METHOD_NOT_ALLOWED = Refusal(405, "Method not allowed")
REQUEST_TIMEOUT = Refusal(408, "Request timeout", {"Connection": "close"})
BODY_TOO_LARGE = Refusal(413, "Request body too large")
TOO_MANY_REQUESTS = Refusal(429, "Too many requests", {"Retry-After": "1"})
HEAD_TOO_LARGE = Refusal(431, "Request header fields too large")
INTERNAL_ERROR = Refusal(500, "Internal server error")

REFUSAL_BY_OUTCOME: dict[Outcome, Refusal] = {
    Outcome.UNAUTHORIZED: UNAUTHORIZED,
    Outcome.PAYOUTS_DISABLED: PAYOUTS_DISABLED,
    Outcome.IDEMPOTENCY_KEY_REUSED: IDEMPOTENCY_KEY_REUSED,
    Outcome.REFERENCE_REUSED: REFERENCE_REUSED,
    Outcome.IDEMPOTENCY_KEY_REQUIRED: IDEMPOTENCY_KEY_REQUIRED,
    Outcome.INSUFFICIENT_BALANCE: INSUFFICIENT_BALANCE,
    Outcome.EXPIRED: INTERNAL_ERROR,
    Outcome.FAILED: INTERNAL_ERROR,
}
"""Every outcome that is not answered 201."""

HEADERS_BY_SUCCESS: dict[Outcome, tuple[tuple[bytes, bytes], ...]] = {
    Outcome.ALLOCATED: (),
    Outcome.REPLAYED: ((b"idempotent-replayed", b"true"),),
}
"""Every outcome that is answered 201."""


async def send_json(send: Send, status_code: int, body: object, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Send a response from an ASGI handler."""
    content = msgspec.json.encode(body)
    await send(
        {
            "type": "http.response.start",
            "status": status_code,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(content)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": content, "more_body": False})


def respond(answer: Answer, status_code: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """Make the response of a handler of Litestar's: a document with a status and headers, or an error."""
    if isinstance(answer, Refusal):
        return answer.response()
    if not isinstance(answer, msgspec.Struct):
        status_code, headers = 400, None
    return Response(
        msgspec.json.encode(answer),
        status_code=status_code,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type=MediaType.JSON,
    )
