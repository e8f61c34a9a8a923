"""POST /payout/create: one call debits the business, credits the user and answers with the hash."""

import asyncio
from collections.abc import Awaitable
from typing import Any, NamedTuple

from litestar import asgi
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.handlers import ASGIRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from api.allocations.dispatcher import Dispatcher
from api.web import responses
from api.web.authentication import Authenticator, find_refusal
from api.web.errors import TooManyWaitingError
from api.web.headers import read_header
from api.web.idempotency import may_be_key, strip_key
from api.web.rate_limit import RateLimiter
from api.web.request_log import RequestNote, log_unexpected, note_of
from api.web.responses import HEADERS_BY_SUCCESS, REFUSAL_BY_OUTCOME, Refusal
from api.web.validation import FieldErrors, NotAnObject, PayoutRequest, names_reference, parse_payout_request
from core.credentials import payout_hash
from core.database.connection import Database
from core.ids import new_id
from core.messages import Allocation

PATH = "/payout/create"


class Paid(NamedTuple):
    """What is answered 201."""

    hash: str
    headers: tuple[tuple[bytes, bytes], ...]


def make_create_payout(
    database: Database,
    authenticator: Authenticator,
    limiter: RateLimiter,
    dispatcher: Dispatcher,
    *,
    hash_secret: bytes,
    body_max_bytes: int,
    look_up_timeout_s: float,
) -> ASGIApp:
    """Wire the endpoint: an ASGI application, because Litestar's own handling cost more than all of ours."""

    # The parameters' names are those that Litestar asks for.
    async def create_payout(scope: Scope, receive: Receive, send: Send) -> None:
        note = note_of(scope)
        answer: Paid | FieldErrors | Refusal
        try:
            answer = await decide(scope, receive, note)
        except Exception as error:  # noqa: BLE001 (whatever broke, the caller is told that nothing was debited)
            log_unexpected(error, note, PATH)
            answer = responses.INTERNAL_ERROR
        if isinstance(answer, Paid):
            await responses.send_json(send, 201, {"hash": answer.hash}, answer.headers)
        elif isinstance(answer, Refusal):
            await answer.send(send)
        else:
            await responses.send_json(send, 400, answer)

    async def decide(scope: Any, receive: Receive, note: RequestNote) -> Paid | FieldErrors | Refusal:
        headers = scope["headers"]
        identity = await authenticator.identify(read_header(headers, b"authorization") or "")
        if identity is None:
            return responses.UNAUTHORIZED
        note.business_id = identity.business_id
        if (refusal := await limiter.take(identity.api_key_id, scope)) is not None:
            return refusal
        body = await _read(receive, body_max_bytes)
        if isinstance(body, Refusal):
            return body
        parsed = parse_payout_request(body)
        idempotency_key = strip_key(read_header(headers, b"idempotency-key"))
        if not isinstance(parsed, PayoutRequest) or not may_be_key(idempotency_key):
            # Key and settings come first, and nothing reads them in a transaction for a bad request.
            has_name = idempotency_key is not None or names_reference(body)
            look_up = asyncio.to_thread(find_refusal, database, identity, has_name=has_name)
            standing = await asyncio.wait_for(look_up, look_up_timeout_s)
            if standing is not None:
                return standing
            if not may_be_key(idempotency_key):
                return responses.IDEMPOTENCY_KEY_MALFORMED
            if not isinstance(parsed, PayoutRequest):
                return responses.NOT_AN_OBJECT if isinstance(parsed, NotAnObject) else parsed
        allocation = Allocation(
            # One id serves both, unless the caller brought its own.
            id=note.own_id or new_id(),
            business_id=identity.business_id,
            api_key_id=identity.api_key_id,
            email=parsed.email,
            amount_cents=parsed.amount,
            deadline_us=dispatcher.deadline_us(),
            idempotency_key=idempotency_key,
            request_id="" if note.own_id else note.id,
            reference=parsed.reference,
        )
        note.allocation_id = allocation.id
        try:
            outcome = await dispatcher.allocate(allocation)
        except TooManyWaitingError:
            return responses.TOO_MANY_REQUESTS
        note.outcome = outcome
        refusal = REFUSAL_BY_OUTCOME.get(outcome)
        if refusal is not None:
            return refusal
        return Paid(payout_hash(hash_secret, allocation.business_id, allocation.email), HEADERS_BY_SUCCESS[outcome])

    return create_payout


def payout_route(create_payout: ASGIApp) -> ASGIRouteHandler:
    """Put the endpoint among Litestar's routes, where every other method is answered 405."""

    @asgi(PATH, copy_scope=False)
    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or scope["method"] != "POST":
            raise HTTPException(status_code=405, headers={"allow": "POST"})
        await create_payout(scope, receive, send)

    return route


def put_first(create_payout: ASGIApp, app: ASGIApp) -> ASGIApp:
    """Hand calls of the endpoint to it past Litestar, whose way there takes an eighth of the API's time for one.

    What Litestar does around every handler, limits of calls and traces, is left out.
    """

    def choose(scope: Any, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            scope["path_template"] = PATH
            return create_payout(scope, receive, send)
        return app(scope, receive, send)

    return choose


async def _read(receive: Receive, max_bytes: int) -> bytes | Refusal:
    """Return the body, or why there is none; that as soon as it is longer than `max_bytes`."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return responses.BAD_REQUEST  # for the log: nobody is there to be told
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            return responses.BODY_TOO_LARGE
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
