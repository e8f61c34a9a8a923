"""POST /payout/create: one call debits the business, credits the user and answers with the hash."""

import asyncio
import time
from collections.abc import Iterable

from litestar import asgi
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from api import responses
from api.authentication import Authenticator, Identity
from api.dispatcher import Dispatcher, TooManyWaitingError
from api.idempotency import may_be_key
from api.rate_limit import RateLimiter
from api.recent_requests import note_caller
from api.responses import HEADERS_BY_SUCCESS, REFUSAL_BY_OUTCOME, Refusal
from api.validation import NotAnObject, PayoutRequest, parse_payout_request
from core.api_keys import find_standing
from core.credentials import payout_hash
from core.database import Database
from core.ids import new_id
from core.messages import Allocation

PATH = "/payout/create"


def create_payout_route(
    database: Database,
    authenticator: Authenticator,
    limiter: RateLimiter,
    dispatcher: Dispatcher,
    *,
    hash_secret: bytes,
    body_max_bytes: int,
    look_up_timeout_s: float,
) -> ASGIRouteHandler:
    """Wire the endpoint: an ASGI handler, because Litestar's own handling cost more than all of ours."""

    # The parameters' names are those that Litestar asks for.
    @asgi(PATH, copy_scope=False)
    async def create_payout(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or scope["method"] != "POST":
            raise HTTPException(status_code=405, headers={"allow": "POST"})
        started_s = time.perf_counter()
        headers = _first_of_each(scope["headers"])
        identity = await authenticator.identify(headers.get(b"authorization", b"").decode("latin-1"))
        if identity is None:
            return await responses.UNAUTHORIZED.send(send)
        note_caller(scope, identity.business_id, started_s)
        if (refusal := await limiter.take(identity.api_key_id, scope)) is not None:
            return await refusal.send(send)
        body = await _read(receive, body_max_bytes)
        if body is None:
            return await responses.BODY_TOO_LARGE.send(send)
        parsed = parse_payout_request(body)
        idempotency_key = None
        if b"idempotency-key" in headers:
            # Surrounding white space is not part of a header's value.
            idempotency_key = headers[b"idempotency-key"].decode("latin-1").strip(" \t")
        if not isinstance(parsed, PayoutRequest) or not may_be_key(idempotency_key):
            # Key and settings come first, and nothing reads them in a transaction for a bad request.
            look_up = asyncio.to_thread(_find_refusal_by_standing, database, identity)
            standing = await asyncio.wait_for(look_up, look_up_timeout_s)
            if standing is not None:
                return await standing.send(send)
            if not may_be_key(idempotency_key):
                return await responses.IDEMPOTENCY_KEY_MALFORMED.send(send)
            if isinstance(parsed, NotAnObject):
                return await responses.NOT_AN_OBJECT.send(send)
            return await responses.send_json(send, 400, parsed)
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
            return await responses.TOO_MANY_REQUESTS.send(send)
        refusal = REFUSAL_BY_OUTCOME.get(outcome)
        if refusal is not None:
            return await refusal.send(send)
        hash_ = payout_hash(hash_secret, allocation.business_id, allocation.email)
        return await responses.send_json(send, 201, {"hash": hash_}, HEADERS_BY_SUCCESS[outcome])

    return create_payout


def _first_of_each(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers by their names in lower case, as ASGI has them; of several alike, the first."""
    first: dict[bytes, bytes] = {}
    for name, value in headers:
        first.setdefault(name, value)
    return first


async def _read(receive: Receive, max_bytes: int) -> bytes | None:
    """Return the body; None as soon as it is longer than `max_bytes`."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise HTTPException(status_code=400)  # the body broke off, and nobody is there to be told
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _find_refusal_by_standing(database: Database, identity: Identity) -> Refusal | None:
    standing = database.read(lambda connection: find_standing(connection, identity.business_id, identity.api_key_id))
    return None if standing is None else REFUSAL_BY_OUTCOME[standing]
