"""Payout users, as their business sees them: list, get, activate and deactivate."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from litestar import get, route
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.resources import schemas
from api.resources.pagination import Collection, Paginator
from api.resources.query_parameters import PAGE, Parameters, users_cursor
from api.web import responses
from api.web.business_request import BusinessRequests
from api.web.request import HttpRequest
from api.web.request_body import read_body
from api.web.responses import HttpResponse
from api.web.validation import NotAnObject, is_missing, parse_object
from core.ids import IdKind, format_id, parse_id
from core.money import format_decimal
from core.parties import payout_users
from core.parties.payout_users import PayoutUser, UserStatus

PATH = "/payout/users"
ITEM_PATH = "/payout/users/{user_id:str}"
STATUS_REQUIRED = "The status field is required."
STATUS_INVALID = "The selected status is invalid."


def payout_user_routes(requests: BusinessRequests, paginator: Paginator) -> list[HTTPRouteHandler]:
    """Wire the endpoints."""

    @get(PATH)
    async def list_users(request: HttpRequest) -> HttpResponse:
        parameters = Parameters.from_query(request.query_params.multi_items(), ("email", *PAGE))
        after, limit = parameters.users_cursor(), parameters.limit()
        return await paginator.answer(request, parameters.errors, _collection(parameters.email()), after, limit)

    # One handler, since Litestar's answer to OPTIONS names the methods of one.
    @route(ITEM_PATH, http_method=["GET", "PATCH"], status_code=200)
    async def get_or_update_user(request: HttpRequest, user_id: str) -> HttpResponse:
        if request.method == "GET":
            return await requests.answer(
                request, lambda connection, business_id: _get(connection, business_id, user_id)
            )
        body = await read_body(request)
        return await requests.answer(
            request, lambda connection, business_id: _update(connection, business_id, user_id, body)
        )

    return [list_users, get_or_update_user]


def _collection(email: str | None) -> Collection[PayoutUser, UUID]:
    def read(connection: Connection, business_id: UUID, after: UUID | None, limit: int) -> list[PayoutUser]:
        return payout_users.list_payout_users(connection, business_id, email=email, limit=limit, after=after)

    return Collection(
        name="payout-users",
        read=read,
        position_of=lambda user: user.id,
        write_cursor=users_cursor,
        document=schemas.User.of,
        csv_columns=(
            "id",
            "email",
            "balance_cents",
            "balance_dollars",
            "currency",
            "status",
            "created_at",
            "updated_at",
        ),
        csv_row=_csv_row,
    )


def _get(connection: Connection, business_id: UUID, user_id: str) -> responses.Answer:
    id_ = parse_id(IdKind.PAYOUT_USER, user_id)
    user = payout_users.get_payout_user(connection, business_id, id_) if id_ else None
    return schemas.User.of(user) if user else responses.NOT_FOUND


def _update(connection: Connection, business_id: UUID, user_id: str, body: bytes) -> responses.Answer:
    id_ = parse_id(IdKind.PAYOUT_USER, user_id)
    if id_ is None or payout_users.get_payout_user(connection, business_id, id_) is None:
        return responses.NOT_FOUND
    fields = parse_object(body)
    if isinstance(fields, NotAnObject):
        return responses.NOT_AN_OBJECT
    if repetitions := fields.repetitions("status"):
        return repetitions
    text: Any = fields.get("status")
    if is_missing(text):
        return {"status": [STATUS_REQUIRED]}
    try:
        status = UserStatus(text)
    except ValueError:
        return {"status": [STATUS_INVALID]}
    user = payout_users.set_status(connection, business_id, id_, status)
    return schemas.User.of(user) if user else responses.NOT_FOUND


def _csv_row(user: PayoutUser) -> Iterable[Any]:
    return (
        format_id(IdKind.PAYOUT_USER, user.id),
        user.email,
        user.balance,
        format_decimal(user.balance),
        schemas.CURRENCY,
        user.status,
        user.created_at,
        user.updated_at,
    )
