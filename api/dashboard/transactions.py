"""The history: filtered, paged through, and as CSV."""

from dataclasses import dataclass, field

from litestar import get
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.dashboard.exports import export_csv
from api.dashboard.pages import Page, PageError, Pages, Visit
from api.resources.pagination import Collection, Paginator
from api.resources.query_parameters import Parameters, history_cursor
from api.resources.transactions import transaction_collection
from api.web.request import HttpRequest
from api.web.responses import HttpResponse
from core.ledger import history
from core.ledger.history import Position, Selection, Transaction, TransactionType
from core.parties.payout_users import PayoutUserError, find_payout_user

_ROWS = 25
_NOBODY = "There is no payout user with this e-mail."


@dataclass(frozen=True, slots=True)
class _Filter:
    """What was asked for, as it was typed, and what it means."""

    typed: dict[str, str]
    selection: Selection
    errors: dict[str, str] = field(default_factory=dict)


def transaction_page_routes(pages: Pages, paginator: Paginator) -> list[HTTPRouteHandler]:
    """Wire the pages."""

    @get("/{business:str}/{mode:str}/transactions")
    async def list_transactions(request: HttpRequest, business: str, mode: str) -> HttpResponse:
        query = _typed(request)
        after = Parameters(query).history_cursor()
        return await pages.show(
            request, business, mode, lambda connection, visit: _list(connection, visit, query, after)
        )

    @get("/{business:str}/{mode:str}/transactions.csv")
    async def export_transactions(request: HttpRequest, business: str, mode: str) -> HttpResponse:
        query = _typed(request)

        def choose(connection: Connection, visit: Visit) -> Collection[Transaction, Position]:
            wanted = _read_filter(connection, visit, query)
            if wanted.errors:
                raise PageError(400, "There is nothing to export", " ".join(wanted.errors.values()))
            return transaction_collection(wanted.selection)

        return await export_csv(pages, paginator, request, business, mode, choose)

    return [list_transactions, export_transactions]


def _typed(request: HttpRequest) -> dict[str, str]:
    """Return what was filled in; a form sends its empty fields too."""
    return {name: text.strip() for name, text in request.query_params.items() if text.strip() and "\0" not in text}


def _list(connection: Connection, visit: Visit, query: dict[str, str], after: Position | None) -> Page:
    wanted = _read_filter(connection, visit, query)
    rows: list[Transaction] = []
    if not wanted.errors:
        rows = history.list_transactions(connection, visit.business.id, wanted.selection, limit=_ROWS + 1, after=after)
    shown = rows[:_ROWS]
    cursor = history_cursor(Position(shown[-1].created_at, shown[-1].id)) if len(rows) > _ROWS else None
    values = {
        "rows": shown,
        "typed": wanted.typed,
        "errors": wanted.errors,
        "types": list(TransactionType),
        "cursor": cursor,
        "is_first": after is None,
    }
    return Page("transactions.html", values, 422 if wanted.errors.keys() - {"email"} else 200)


def _read_filter(connection: Connection, visit: Visit, query: dict[str, str]) -> _Filter:
    parameters = Parameters(query)
    typed = {name: query.get(name, "") for name in ("type", "email", "from", "to")}
    type_, since, until = parameters.type(), parameters.since(), parameters.until()
    errors = {name: texts[0] for name, texts in parameters.errors.items()}
    user_id = None
    if typed["email"]:
        try:
            user_id = find_payout_user(connection, visit.business.id, typed["email"]).id
        except PayoutUserError:
            errors["email"] = _NOBODY
    return _Filter(typed, Selection(type_, user_id, since, until), errors)
