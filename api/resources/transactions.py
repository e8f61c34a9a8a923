"""The history, as the business sees it: list, get, and all of it as CSV."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from litestar import get
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.resources import schemas
from api.resources.pagination import Collection, Paginator
from api.resources.query_parameters import PAGE, Parameters, history_cursor
from api.web import responses
from api.web.business_request import BusinessRequests
from api.web.request import HttpRequest
from api.web.responses import HttpResponse
from core.ids import IdKind, parse_id
from core.ledger import history
from core.ledger.history import Position, Selection, Transaction
from core.money import format_decimal

PATH = "/payout/transactions"
FILTERS = (
    "type", "user", "from", "to", "reference", "idempotency_key", "min_amount", "max_amount", *PAGE,
)  # fmt: skip
ITEM_PATH = "/payout/transactions/{transaction_id:str}"


def transaction_routes(requests: BusinessRequests, paginator: Paginator) -> list[HTTPRouteHandler]:
    """Wire the endpoints."""

    @get(PATH)
    async def list_transactions(request: HttpRequest) -> HttpResponse:
        parameters = Parameters.from_query(request.query_params.multi_items(), FILTERS)
        after, limit = parameters.history_cursor(), parameters.limit()
        selection = Selection(
            type=parameters.type(),
            payout_user_id=parameters.user(),
            since=parameters.since(),
            until=parameters.until(),
            reference=parameters.reference(),
            idempotency_key=parameters.idempotency_key(),
            min_amount=parameters.amount("min_amount"),
            max_amount=parameters.amount("max_amount"),
        )
        return await paginator.answer(request, parameters.errors, transaction_collection(selection), after, limit)

    @get(ITEM_PATH)
    async def get_transaction(request: HttpRequest, transaction_id: str) -> HttpResponse:
        return await requests.answer(
            request, lambda connection, business_id: _get(connection, business_id, transaction_id)
        )

    return [list_transactions, get_transaction]


def transaction_collection(selection: Selection) -> Collection[Transaction, Position]:
    """Return the list of the rows that are selected."""

    def read(connection: Connection, business_id: UUID, after: Position | None, limit: int) -> list[Transaction]:
        return history.list_transactions(connection, business_id, selection, limit=limit, after=after)

    return Collection(
        name="transactions",
        read=read,
        position_of=lambda row: Position(row.created_at, row.id),
        write_cursor=history_cursor,
        document=schemas.Transaction.of,
        csv_columns=(
            "id",
            "type",
            "user",
            "email",
            "amount_cents",
            "amount_dollars",
            "currency",
            "payout_balance_after_cents",
            "payout_balance_after_dollars",
            "user_balance_after_cents",
            "user_balance_after_dollars",
            "idempotency_key",
            "reverses",
            "batch",
            "created_at",
            "reference",
        ),
        csv_row=_csv_row,
    )


def _get(connection: Connection, business_id: UUID, transaction_id: str) -> responses.Answer:
    id_ = parse_id(IdKind.TRANSACTION, transaction_id)
    row = history.find_transaction(connection, business_id, id_) if id_ else None
    return schemas.Transaction.of(row) if row else responses.NOT_FOUND


def _csv_row(row: Transaction) -> Iterable[Any]:
    shown = schemas.Transaction.of(row)
    user_balance = row.user_balance_after
    return (
        shown.id,
        shown.type,
        shown.user,
        shown.email,
        shown.amount,
        format_decimal(shown.amount),
        shown.currency,
        shown.payout_balance_after,
        format_decimal(shown.payout_balance_after),
        user_balance,
        None if user_balance is None else format_decimal(user_balance),
        shown.idempotency_key,
        shown.reverses,
        shown.batch,
        shown.created_at,
        shown.reference,
    )
