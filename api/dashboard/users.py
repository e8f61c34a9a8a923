"""Payout users: found, sorted and paged through; and one of them, with balance, status and history."""

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.dashboard.forms import Form
from api.dashboard.pages import Page, Pages, Redirect, Visit, not_found
from api.dashboard.rendering import write_id
from api.resources.query_parameters import Parameters, history_cursor
from api.web.request import HttpRequest
from api.web.responses import HttpResponse
from core import admin_actions
from core.ids import IdKind, parse_id
from core.ledger import history
from core.ledger.history import Position, Selection
from core.parties import payout_users
from core.parties.payout_users import PayoutUser, UserOrder, UserStatus

_ROWS = 25
_SEARCH_MAX_CHARACTERS = 255


def user_routes(pages: Pages) -> list[HTTPRouteHandler]:
    """Wire the pages."""

    @get("/{business:str}/{mode:str}/users")
    async def list_users(request: HttpRequest, business: str, mode: str) -> HttpResponse:
        query = dict(request.query_params)
        return await pages.show(request, business, mode, lambda connection, visit: _list(connection, visit, query))

    @get("/{business:str}/{mode:str}/users/{user_id:str}")
    async def show_user(request: HttpRequest, business: str, mode: str, user_id: str) -> HttpResponse:
        parameters = Parameters(dict(request.query_params))
        after = parameters.history_cursor()
        return await pages.show(
            request, business, mode, lambda connection, visit: _show(connection, visit, user_id, after)
        )

    @post("/{business:str}/{mode:str}/users/{user_id:str}/status", status_code=200)
    async def set_status(request: HttpRequest, business: str, mode: str, user_id: str) -> HttpResponse:
        def work(connection: Connection, visit: Visit, form: Form) -> Redirect:
            return _set_status(connection, visit, form, user_id)

        return await pages.change(request, business, mode, work, back=f"users/{user_id}")

    return [list_users, show_user, set_status]


def _list(connection: Connection, visit: Visit, query: dict[str, str]) -> Page:
    prefix = query.get("email", "").strip()[:_SEARCH_MAX_CHARACTERS].replace("\0", "")
    try:
        order = payout_users.order_of(prefix, UserOrder(query.get("sort", UserOrder.NEWEST)))
    except ValueError:
        order = payout_users.order_of(prefix, UserOrder.NEWEST)
    after_id = parse_id(IdKind.PAYOUT_USER, query.get("after", ""))
    after = payout_users.get_payout_user(connection, visit.business.id, after_id) if after_id else None
    users = payout_users.browse_payout_users(
        connection, visit.business.id, prefix=prefix, order=order, limit=_ROWS + 1, after=after
    )
    last = write_id(users[_ROWS - 1].id, "payout_user") if len(users) > _ROWS else None
    values = {"users": users[:_ROWS], "prefix": prefix, "order": order, "after": last, "is_first": after is None}
    return Page("users.html", values)


def _show(connection: Connection, visit: Visit, user_id: str, after: Position | None) -> Page:
    user = _find(connection, visit, user_id)
    selection = Selection(payout_user_id=user.id)
    rows = history.list_transactions(connection, visit.business.id, selection, limit=_ROWS + 1, after=after)
    shown = rows[:_ROWS]
    cursor = history_cursor(Position(shown[-1].created_at, shown[-1].id)) if len(rows) > _ROWS else None
    return Page("user.html", {"user": user, "rows": shown, "cursor": cursor, "is_first": after is None})


def _set_status(connection: Connection, visit: Visit, form: Form, user_id: str) -> Redirect:
    user = _find(connection, visit, user_id)
    try:
        status = UserStatus(form.text("status"))
    except ValueError:
        raise not_found() from None
    admin_actions.set_user_status(connection, visit.actor(form), visit.business.id, user.id, status)
    is_active = status is UserStatus.ACTIVE
    done = "is active: the hash is let in." if is_active else "is inactive: the hash is refused, and the money waits."
    return Redirect(f"{visit.base}/users/{user_id}", f"{user.email} {done}")


def _find(connection: Connection, visit: Visit, user_id: str) -> PayoutUser:
    id_ = parse_id(IdKind.PAYOUT_USER, user_id)
    user = payout_users.get_payout_user(connection, visit.business.id, id_) if id_ else None
    if user is None:
        raise not_found()
    return user
