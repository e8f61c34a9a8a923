"""The history: filtered, paged through, and as CSV."""

from contextlib import suppress
from dataclasses import dataclass, field, replace

from litestar import get
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.dashboard.exports import export_csv
from api.dashboard.pages import Answer, Page, PageError, Pages, Redirect, Visit, not_found
from api.resources.pagination import Collection, Paginator
from api.resources.query_parameters import Parameters, history_cursor
from api.resources.transactions import transaction_collection
from api.web.idempotency import may_be_key
from api.web.request import HttpRequest
from api.web.responses import HttpResponse
from api.web.validation import check_reference
from core.ids import IdKind, parse_id
from core.ledger import history
from core.ledger.history import Position, Selection, Transaction, TransactionType
from core.parties.payout_users import PayoutUserError, find_payout_user

_ROWS = 25
_NOTHING = "No payment and no payout user has this id, e-mail, reference or idempotency key."


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

    @get("/{business:str}/{mode:str}/transactions/{transaction_id:str}")
    async def show_transaction(request: HttpRequest, business: str, mode: str, transaction_id: str) -> HttpResponse:
        return await pages.show(
            request, business, mode, lambda connection, visit: _show(connection, visit, transaction_id)
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

    return [list_transactions, show_transaction, export_transactions]


def _typed(request: HttpRequest) -> dict[str, str]:
    """Return what was filled in; a form sends its empty fields too."""
    return {name: text.strip() for name, text in request.query_params.items() if text.strip() and "\0" not in text}


def _show(connection: Connection, visit: Visit, transaction_id: str) -> Page:
    id_ = parse_id(IdKind.TRANSACTION, transaction_id)
    row = history.find_transaction(connection, visit.business.id, id_) if id_ else None
    if row is None:
        raise not_found()
    reversal = history.find_reversal(connection, visit.business.id, row.id)
    return Page("transaction.html", {"row": row, "reversal": reversal})


def _list(connection: Connection, visit: Visit, query: dict[str, str], after: Position | None) -> Answer:
    found = _find_by_id(visit, query.get("search", ""))
    if found is not None:
        return found
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
    return Page("transactions.html", values, 422 if wanted.errors.keys() - {"search"} else 200)


def _find_by_id(visit: Visit, text: str) -> Redirect | None:
    """Lead to the page of what has this id; a payout user's payments are a selection."""
    for kind, page in ((IdKind.TRANSACTION, "transactions"), (IdKind.BATCH, "batches")):
        if parse_id(kind, text) is not None:
            return Redirect(f"{visit.base}/{page}/{text}", "This is what has the id.")
    return None


def _read_filter(connection: Connection, visit: Visit, query: dict[str, str]) -> _Filter:
    parameters = Parameters(query)
    typed = {name: query.get(name, "") for name in ("type", "search", "from", "to")}
    typed["search"] = typed["search"] or query.get("email", "")
    type_, since, until = parameters.type(), parameters.since(), parameters.until()
    errors = {name: texts[0] for name, texts in parameters.errors.items()}
    selection: Selection | None = Selection(type_, since=since, until=until)
    if typed["search"]:
        selection = _search(connection, visit, typed["search"], Selection(type_, since=since, until=until))
        if selection is None:
            errors["search"] = _NOTHING
    return _Filter(typed, selection or Selection(), errors)


def _search(connection: Connection, visit: Visit, text: str, within: Selection) -> Selection | None:
    """Select what has a reference, an e-mail, a user's id or an idempotency key; None where nothing has it."""
    business_id = visit.business.id
    reference, _ = check_reference(text)
    if reference is not None and history.has_reference(connection, business_id, reference):
        return replace(within, reference=reference)
    user_id = parse_id(IdKind.PAYOUT_USER, text)
    if user_id is None:
        with suppress(PayoutUserError):
            user_id = find_payout_user(connection, business_id, text).id
    if user_id is not None:
        return replace(within, payout_user_id=user_id)
    if may_be_key(text) and history.has_idempotency_key(connection, business_id, text):
        return replace(within, idempotency_key=text)
    return None
