"""Settings: payouts on and off, funds, the low-balance threshold, members, and who changed what."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.dashboard.forms import Form, FormError
from api.dashboard.pages import (
    HOME,
    Answer,
    Page,
    PageError,
    Pages,
    Redirect,
    Visit,
    not_found,
)
from api.web.request import HttpRequest
from api.web.responses import HttpResponse
from core import admin_actions
from core.errors import UserError
from core.money import BALANCE_MAX_CENTS, format_dollars
from core.parties import audit, invitations, members
from core.parties.invitations import INVITATION_LIFE
from core.parties.members import Role

_LOG_ROWS = 25
_SETTINGS = "/{business:str}/{mode:str}/settings"

Work = Callable[[Connection, Visit, Form], Answer]


def settings_routes(pages: Pages) -> list[HTTPRouteHandler]:
    """Wire the pages."""

    @get(_SETTINGS)
    async def show_settings(request: HttpRequest, business: str, mode: str) -> HttpResponse:
        return await pages.show(request, business, mode, _show)

    @get(f"{_SETTINGS}/log")
    async def show_log(request: HttpRequest, business: str, mode: str) -> HttpResponse:
        after = _read_uuid(request.query_params.get("after", ""))
        of_members = request.query_params.get("of") == "members"
        return await pages.show(
            request, business, mode, lambda connection, visit: _show_log(connection, visit, after, of_members)
        )

    def changing(path: str, name: str, make: Callable[[HttpRequest], Work]) -> HTTPRouteHandler:
        @post(f"{_SETTINGS}/{path}", status_code=200, name=f"dashboard settings {name}")
        async def change(request: HttpRequest, business: str, mode: str) -> HttpResponse:
            return await pages.change(request, business, mode, make(request), back="settings")

        return change

    return [
        show_settings,
        show_log,
        changing("payouts", "payouts", lambda _: _set_payouts),
        changing("keys", "keys required", lambda _: _set_requires_keys),
        changing("funds", "funds", lambda _: _add_funds),
        changing("low-balance", "low balance", lambda _: _set_threshold),
        changing("members", "invite", _invite_at),
        changing("members/role", "role", lambda _: _set_role),
        changing("members/remove", "remove", lambda _: _remove_member),
        changing("members/withdraw", "withdraw", lambda _: _withdraw_invitation),
    ]


def _show(connection: Connection, visit: Visit, errors: dict[str, str] | None = None, form: Form | None = None) -> Page:
    entries = audit.list_entries(connection, visit.business.id, _LOG_ROWS + 1)
    values: dict[str, Any] = {
        "members": members.list_members(connection, visit.live.id),
        "invitations": invitations.list_invitations(connection, visit.live.id),
        "roles": list(Role),
        "entries": entries[:_LOG_ROWS],
        "has_more_entries": len(entries) > _LOG_ROWS,
        "errors": errors or {},
        "typed": form.values if form else {},
    }
    return Page("settings.html", values, 422 if errors else 200)


def _show_log(connection: Connection, visit: Visit, after: UUID | None, of_members: bool) -> Page:
    about = visit.live if of_members else visit.business
    entries = audit.list_entries(connection, about.id, _LOG_ROWS + 1, after)
    last = entries[_LOG_ROWS - 1].id.hex if len(entries) > _LOG_ROWS else None
    values = {
        "entries": entries[:_LOG_ROWS],
        "after": last,
        "is_first": after is None,
        "of": "members" if of_members else "",
        "of_live": of_members and about.id != visit.business.id,
    }
    return Page("log.html", values)


def _set_payouts(connection: Connection, visit: Visit, form: Form) -> Answer:
    wanted = form.text("enabled")
    if wanted not in {"yes", "no"}:
        raise not_found()
    is_enabled = wanted == "yes"
    admin_actions.set_payouts_enabled(connection, visit.actor(form), visit.business.id, enabled=is_enabled)
    text = "Payouts are enabled." if is_enabled else "Payouts are disabled: calls that pay are refused from now on."
    return _done(visit, text)


def _set_requires_keys(connection: Connection, visit: Visit, form: Form) -> Answer:
    wanted = form.text("required")
    if wanted not in {"yes", "no"}:
        raise not_found()
    is_required = wanted == "yes"
    admin_actions.set_requires_keys(connection, visit.actor(form), visit.business.id, required=is_required)
    text = (
        "Keys are required: payments without an Idempotency-Key or a reference are refused from now on."
        if is_required
        else "Keys are not required any more."
    )
    return _done(visit, text)


def _add_funds(connection: Connection, visit: Visit, form: Form) -> Answer:
    try:
        amount = form.cents("amount", least=1, most=BALANCE_MAX_CENTS)
    except FormError as error:
        return _show(connection, visit, {"amount": str(error)}, form)
    if amount > visit.business.balance:
        text = f"The main balance has {format_dollars(visit.business.balance)}, which is less than that."
        return _show(connection, visit, {"amount": text}, form)
    changed = admin_actions.add_funds(connection, visit.actor(form), visit.business.id, amount)
    text = (
        f"{format_dollars(amount)} moved to the payout balance, which is {format_dollars(changed.payout_balance)} now."
    )
    return _done(visit, text)


def _set_threshold(connection: Connection, visit: Visit, form: Form) -> Answer:
    threshold = None
    if form.text("threshold"):
        try:
            threshold = form.cents("threshold", least=0, most=BALANCE_MAX_CENTS)
        except FormError as error:
            return _show(connection, visit, {"threshold": str(error)}, form)
    admin_actions.set_low_balance_threshold(connection, visit.actor(form), visit.business.id, threshold)
    if threshold is None:
        return _done(visit, "There is no warning threshold any more; the recent rate still warns.")
    return _done(visit, f"Home warns when the payout balance is below {format_dollars(threshold)}.")


def _invite_at(request: HttpRequest) -> Work:
    server = f"{request.scope['scheme']}://{request.headers.get('host', '')}"

    def invite(connection: Connection, visit: Visit, form: Form) -> Answer:
        role = _read_role(form)
        try:
            token = admin_actions.invite_member(connection, visit.actor(form), visit.live.id, form.text("email"), role)
        except audit.AlreadyRecordedError:
            raise
        except UserError as error:
            return _show(connection, visit, {"email": str(error)}, form)
        values = {
            "email": form.text("email"),
            "role": role,
            "link": f"{server}{HOME}/invitations/{token}",
            "days": INVITATION_LIFE.days,
        }
        return Page("invited.html", values)

    return invite


def _set_role(connection: Connection, visit: Visit, form: Form) -> Answer:
    member = admin_actions.set_member_role(
        connection, visit.actor(form), visit.live.id, _read_id(form, "account"), _read_role(form)
    )
    return _done(visit, f"{member.email} is {_with_article(member.role)} now.")


def _remove_member(connection: Connection, visit: Visit, form: Form) -> Answer:
    member = admin_actions.remove_member(connection, visit.actor(form), visit.live.id, _read_id(form, "account"))
    if member.account_id == visit.account.id:
        return Redirect(HOME, f"You are not a member of {visit.live.name} any more.")
    return _done(visit, f"{member.email} is not a member any more, and sees nothing from now on.")


def _withdraw_invitation(connection: Connection, visit: Visit, form: Form) -> Answer:
    email = admin_actions.withdraw_invitation(
        connection, visit.actor(form), visit.live.id, _read_id(form, "invitation")
    )
    return _done(visit, f"The invitation of {email} is withdrawn: its link leads nowhere.")


def _done(visit: Visit, text: str) -> Redirect:
    return Redirect(f"{visit.base}/settings", text)


def _with_article(role: Role) -> str:
    return "an admin" if role is Role.ADMIN else "a viewer"


def _read_role(form: Form) -> Role:
    try:
        return Role(form.text("role"))
    except ValueError:
        raise PageError(422, "Nothing was done", "Choose a role: viewer or admin.") from None


def _read_id(form: Form, name: str) -> UUID:
    id_ = _read_uuid(form.text(name))
    if id_ is None:
        raise not_found()
    return id_


def _read_uuid(text: str) -> UUID | None:
    try:
        return UUID(hex=text)
    except ValueError:
        return None
