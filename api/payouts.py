"""POST /payout/create: one call debits the business, credits the user and answers with the hash."""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    Example,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    Parameter,
    RequestBody,
    Schema,
)

from api import responses
from api.authentication import Authenticator, Identity
from api.dispatcher import Dispatcher, TooManyWaitingError
from api.responses import HEADERS_BY_SUCCESS, REFUSAL_BY_OUTCOME, Refusal
from api.validation import AMOUNT_MIN, EMAIL_FORMAT, NotAnObject, PayoutRequest, parse_payout_request
from core.api_keys import find_standing
from core.credentials import payout_hash
from core.database import Database
from core.emails import EMAIL_MAX_CHARACTERS
from core.ids import new_id
from core.messages import Allocation
from core.money import ALLOCATION_MAX_CENTS

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")


@dataclass
class _CreatePayoutOperation(Operation):
    """Documents the body and the header, which the handler reads itself to report every error at once."""

    def __post_init__(self) -> None:
        email = Schema(type=OpenAPIType.STRING, max_length=EMAIL_MAX_CHARACTERS, examples=["user@example.com"])
        amount = Schema(
            type=OpenAPIType.INTEGER,
            minimum=1,
            maximum=ALLOCATION_MAX_CENTS,
            description="cents",
            examples=[10000],
        )
        body = Schema(
            type=OpenAPIType.OBJECT,
            properties={"email": email, "amount": amount},
            required=["email", "amount"],
        )
        self.request_body = RequestBody(content={"application/json": OpenAPIMediaType(schema=body)}, required=True)
        key = Schema(type=OpenAPIType.STRING, min_length=1, max_length=255, pattern="^[\\x21-\\x7e]+$")
        self.parameters = [
            Parameter(
                name="Idempotency-Key",
                param_in="header",
                required=False,
                schema=key,
                description="With the same key, e-mail and amount, the call pays once.",
            )
        ]


_RESPONSES = {
    201: ResponseSpec(
        data_container=dict[str, str],
        generate_examples=False,
        description="Debited, credited and in the history",
        examples=[Example(value={"hash": "5f" * 32})],
    ),
    **responses.document(
        responses.NOT_AN_OBJECT,
        responses.IDEMPOTENCY_KEY_MALFORMED,
        *REFUSAL_BY_OUTCOME.values(),
        responses.BODY_TOO_LARGE,
        responses.TOO_MANY_REQUESTS,
        field_errors={"email": [EMAIL_FORMAT], "amount": [AMOUNT_MIN]},
    ),
}


def create_payout_route(
    database: Database,
    authenticator: Authenticator,
    dispatcher: Dispatcher,
    *,
    hash_secret: bytes,
    body_max_bytes: int,
    look_up_timeout_s: float,
) -> HTTPRouteHandler:
    """Wire the endpoint."""

    @post(
        "/payout/create",
        operation_id="createPayout",
        operation_class=_CreatePayoutOperation,
        summary="Create or update a payout user and allocate balance",
        tags=["Payouts"],
        security=[{"apiKey": []}],
        responses=_RESPONSES,
        request_max_body_size=body_max_bytes,
        include_in_schema=True,
    )
    async def create_payout(request: Request[Any, Any, Any]) -> Response[Any]:
        identity = await authenticator.identify(request.headers.get("authorization"))
        if identity is None:
            return responses.UNAUTHORIZED.response()
        parsed = parse_payout_request(await request.body())
        idempotency_key = request.headers.get("idempotency-key")
        if idempotency_key is not None:
            idempotency_key = idempotency_key.strip(" \t")  # not part of a header's value
        bad_request = _find_bad_request(parsed, idempotency_key)
        if bad_request is not None:
            # Key and settings come first, and nothing reads them in a transaction for a bad request.
            look_up = asyncio.to_thread(_find_refusal_by_standing, database, identity)
            standing = await asyncio.wait_for(look_up, look_up_timeout_s)
            return standing.response() if standing else bad_request
        assert isinstance(parsed, PayoutRequest)  # noqa: S101 (all else is a bad request)
        allocation = Allocation(
            id=new_id(),
            business_id=identity.business_id,
            api_key_id=identity.api_key_id,
            email=parsed.email,
            amount_cents=parsed.amount,
            deadline_us=dispatcher.deadline_us(),
            idempotency_key=idempotency_key,
        )
        try:
            outcome = await dispatcher.allocate(allocation)
        except TooManyWaitingError:
            return responses.TOO_MANY_REQUESTS.response()
        refusal = REFUSAL_BY_OUTCOME.get(outcome)
        if refusal is not None:
            return refusal.response()
        hash_ = payout_hash(hash_secret, allocation.business_id, allocation.email)
        return Response({"hash": hash_}, status_code=201, headers=HEADERS_BY_SUCCESS[outcome])

    return create_payout


def _find_bad_request(parsed: object, idempotency_key: str | None) -> Response[Any] | None:
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.match(idempotency_key):
        return responses.IDEMPOTENCY_KEY_MALFORMED.response()
    if isinstance(parsed, NotAnObject):
        return responses.NOT_AN_OBJECT.response()
    if isinstance(parsed, dict):
        return Response(parsed, status_code=400)
    return None


def _find_refusal_by_standing(database: Database, identity: Identity) -> Refusal | None:
    standing = database.read(lambda connection: find_standing(connection, identity.business_id, identity.api_key_id))
    return None if standing is None else REFUSAL_BY_OUTCOME[standing]
