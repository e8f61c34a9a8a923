"""The one table that maps outcomes to HTTP, and the bodies of every documented error."""

from dataclasses import dataclass, field
from typing import Any

from litestar import MediaType, Response
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example

from core.messages import Outcome


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


UNAUTHORIZED = Refusal(401, "Unauthorized", {"WWW-Authenticate": "Bearer"})
PAYOUTS_DISABLED = Refusal(403, "Payouts are currently disabled. Please enable them in Settings.")
NOT_AN_OBJECT = Refusal(400, "The request body must be a JSON object.")
IDEMPOTENCY_KEY_MALFORMED = Refusal(400, "Idempotency-Key must be 1 to 255 visible ASCII characters")
IDEMPOTENCY_KEY_REUSED = Refusal(422, "Idempotency-Key was already used with different parameters")
INSUFFICIENT_BALANCE = Refusal(400, "Insufficient payout balance")
NOT_FOUND = Refusal(404, "Not found")
METHOD_NOT_ALLOWED = Refusal(405, "Method not allowed")
BODY_TOO_LARGE = Refusal(413, "Request body too large")
TOO_MANY_REQUESTS = Refusal(429, "Too many requests", {"Retry-After": "1"})
INTERNAL_ERROR = Refusal(500, "Internal server error")

REFUSAL_BY_OUTCOME: dict[Outcome, Refusal] = {
    Outcome.UNAUTHORIZED: UNAUTHORIZED,
    Outcome.PAYOUTS_DISABLED: PAYOUTS_DISABLED,
    Outcome.IDEMPOTENCY_KEY_REUSED: IDEMPOTENCY_KEY_REUSED,
    Outcome.INSUFFICIENT_BALANCE: INSUFFICIENT_BALANCE,
    Outcome.EXPIRED: INTERNAL_ERROR,
    Outcome.FAILED: INTERNAL_ERROR,
}
"""Every outcome that is not answered 201."""

HEADERS_BY_SUCCESS: dict[Outcome, dict[str, str]] = {
    Outcome.ALLOCATED: {},
    Outcome.REPLAYED: {"Idempotent-Replayed": "true"},
}
"""Every outcome that is answered 201."""


def document(*refusals: Refusal, field_errors: dict[str, list[str]] | None = None) -> dict[int, ResponseSpec]:
    """Describe errors for OpenAPI: one entry for each status, with every text as an example."""
    examples: dict[int, list[Example]] = {}
    for refusal in refusals:
        examples.setdefault(refusal.status_code, []).append(
            Example(summary=refusal.error, value={"error": refusal.error})
        )
    if field_errors:
        examples.setdefault(400, []).append(Example(summary="Field errors", value=field_errors))
    return {
        status_code: ResponseSpec(
            data_container=dict[str, Any],
            generate_examples=False,
            description=" / ".join(str(example.summary) for example in texts),
            examples=texts,
        )
        for status_code, texts in sorted(examples.items())
    }
