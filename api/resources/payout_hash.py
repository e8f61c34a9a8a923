"""Payout users seen by themselves: whoever has a payout hash reads one balance and one history."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from litestar import route
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.resources import schemas
from api.resources.pagination import make_page
from api.resources.query_parameters import PAGE, Parameters, history_cursor
from api.web import responses
from api.web.business_request import DatabaseThreads
from api.web.errors import TooManyWaitingError
from api.web.request import HttpRequest
from api.web.request_body import read_body
from api.web.responses import HttpResponse
from api.web.validation import Fields, NotAnObject, is_missing, parse_object
from core.credentials import digest_of
from core.ledger import history
from core.ledger.history import Position, Selection, Transaction
from core.parties.payout_users import PayoutUser, find_active_payout_user

USER_PATH = "/payout/user"
HISTORY_PATH = "/payout/history"
HEADER = "X-Payout-Hash"
FIELD = "payout_hash"
_HASH = re.compile(r"[0-9a-f]{64}\Z")

Work = Callable[[Connection, PayoutUser, Mapping[str, Any]], responses.Answer]


def payout_hash_routes(threads: DatabaseThreads) -> list[HTTPRouteHandler]:
    """Wire the endpoints."""

    @route(USER_PATH, http_method=["GET", "POST"], status_code=200)
    async def read_own_user(request: HttpRequest) -> HttpResponse:
        return await _answer(threads, request, lambda _connection, user, _fields: schemas.OwnUser.of(user))

    @route(HISTORY_PATH, http_method=["GET", "POST"], status_code=200)
    async def read_own_history(request: HttpRequest) -> HttpResponse:
        query = Parameters.from_query(request.query_params.multi_items(), (FIELD, *PAGE))
        return await _answer(
            threads, request, lambda connection, user, fields: _read_history(connection, user, query.under(fields))
        )

    return [read_own_user, read_own_history]


async def _answer(threads: DatabaseThreads, request: HttpRequest, work: Work) -> HttpResponse:
    """Find the user whose hash was sent, then answer with what `work` makes of (connection, user, body's fields)."""
    body = await read_body(request)
    fields = parse_object(body) if body.strip() else Fields([])
    hash_ = _find_hash(request, {} if isinstance(fields, NotAnObject) else fields)
    if not isinstance(hash_, str) or not _HASH.match(hash_):
        return responses.HASH_UNAUTHORIZED.response()
    digest = digest_of(hash_)

    def carry_out(connection: Connection) -> responses.Answer:
        user = find_active_payout_user(connection, digest)
        if user is None:
            return responses.HASH_UNAUTHORIZED
        if isinstance(fields, NotAnObject):
            return responses.NOT_AN_OBJECT
        return fields.repetitions(FIELD, "limit", "cursor") or work(connection, user, fields)

    try:
        return responses.respond(await threads.run(carry_out))
    except TooManyWaitingError:
        return responses.TOO_MANY_REQUESTS.response()


def _find_hash(request: HttpRequest, fields: Mapping[str, Any]) -> Any:
    """Return what was sent in the first of the three places that is not empty."""
    places = (request.headers.get(HEADER), fields.get(FIELD), request.query_params.get(FIELD))
    return next((value for value in places if not is_missing(value)), None)


def _read_history(connection: Connection, user: PayoutUser, parameters: Parameters) -> responses.Answer:
    limit, after = parameters.limit(), parameters.history_cursor()
    if parameters.errors:
        return parameters.errors
    own = Selection(payout_user_id=user.id)
    rows = history.list_transactions(connection, user.business_id, own, limit=limit + 1, after=after)
    return make_page(rows, limit, _place_of, history_cursor, schemas.OwnTransaction.of)


def _place_of(row: Transaction) -> Position:
    return Position(row.created_at, row.id)
