"""For developers: API keys, and the last requests made with them."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.dashboard.forms import Form
from api.dashboard.pages import Answer, Page, PageError, Pages, Redirect, Visit, not_found
from api.web.recent_requests import RecentRequest, RecentRequests
from api.web.request import HttpRequest
from api.web.responses import HttpResponse
from core import admin_actions
from core.credentials import KeyKind
from core.ids import IdKind, parse_id
from core.parties import api_keys
from core.parties.api_keys import NAME_MAX_CHARACTERS, ApiKey

_GRACES = {
    "0": ("at once", timedelta()),
    "1h": ("in an hour", timedelta(hours=1)),
    "24h": ("in 24 hours", timedelta(hours=24)),
    "7d": ("in seven days", timedelta(days=7)),
}
_KEYS = "/{business:str}/{mode:str}/developers/keys"


def developer_routes(pages: Pages, recent_requests: RecentRequests) -> list[HTTPRouteHandler]:
    """Wire the pages."""

    @get("/{business:str}/{mode:str}/developers")
    async def show_developers(request: HttpRequest, business: str, mode: str) -> HttpResponse:
        # Whose requests they are, the page's own look at the person says; they are read for nobody else.
        shown = await pages.look(request, business, mode)
        if shown is None:
            return pages.ask_to_sign_in(request)
        session, visit = shown
        requests = await recent_requests.read(visit.business.id)
        page = await pages.threads.run(lambda connection: _show(connection, visit, requests))
        return await pages.answer(request, session, visit, page)

    @post(_KEYS, status_code=200)
    async def create_key(request: HttpRequest, business: str, mode: str) -> HttpResponse:
        return await pages.change(request, business, mode, _create, back="developers")

    @post(f"{_KEYS}/{{key_id:str}}/roll", status_code=200)
    async def roll_key(request: HttpRequest, business: str, mode: str, key_id: str) -> HttpResponse:
        def work(connection: Connection, visit: Visit, form: Form) -> Answer:
            return _roll(connection, visit, form, key_id)

        return await pages.change(request, business, mode, work, back="developers")

    @post(f"{_KEYS}/{{key_id:str}}/revoke", status_code=200)
    async def revoke_key(request: HttpRequest, business: str, mode: str, key_id: str) -> HttpResponse:
        def work(connection: Connection, visit: Visit, form: Form) -> Answer:
            return _revoke(connection, visit, form, key_id)

        return await pages.change(request, business, mode, work, back="developers")

    return [show_developers, create_key, roll_key, revoke_key]


def _show(connection: Connection, visit: Visit, requests: Iterable[RecentRequest] | None) -> Page:
    now = datetime.now(UTC)
    keys = [
        key for key in api_keys.list_api_keys(connection, visit.business.id) if key.business_id == visit.business.id
    ]
    values = {
        "keys": [_describe(key, now) for key in reversed(keys)],
        "requests": None
        if requests is None
        else [(request, datetime.fromtimestamp(request.at, UTC)) for request in requests],
        "graces": {name: text for name, (text, _) in _GRACES.items()},
        "name_max": NAME_MAX_CHARACTERS,
    }
    return Page("developers.html", values)


def _describe(key: ApiKey, now: datetime) -> dict[str, Any]:
    """Return a key with what can be done with it, and its beginning and end as they are known."""
    prefix = "sk" if key.kind is KeyKind.SECRET else "pk"
    is_live = key.revoked_at is None or key.revoked_at > now
    return {
        "key": key,
        "shown": f"{prefix}_{key.mode}_…{key.last4}",
        "is_live": is_live,
        "ends_at": key.revoked_at if is_live else None,
    }


def _create(connection: Connection, visit: Visit, form: Form) -> Answer:
    try:
        kind = KeyKind(form.text("kind") or KeyKind.SECRET)
    except ValueError:
        raise not_found() from None
    key, text = admin_actions.create_api_key(connection, visit.actor(form), visit.business.id, kind, form.text("name"))
    return Page("key_shown.html", {"key": key, "text": text, "old": None})


def _roll(connection: Connection, visit: Visit, form: Form, key_id: str) -> Answer:
    if form.text("grace") not in _GRACES:
        raise PageError(422, "Nothing was done", "Choose when the old key ends.")
    text, grace = _GRACES[form.text("grace")]
    key = _find(connection, visit, key_id)
    created, secret, old = admin_actions.roll_api_key(
        connection, visit.actor(form), visit.business.id, key.id, grace=grace
    )
    return Page("key_shown.html", {"key": created, "text": secret, "old": old, "old_ends": text})


def _revoke(connection: Connection, visit: Visit, form: Form, key_id: str) -> Answer:
    key = _find(connection, visit, key_id)
    admin_actions.revoke_api_key(connection, visit.actor(form), visit.business.id, key.id)
    return Redirect(
        f"{visit.base}/developers", f"The key that ends in {key.last4} is revoked: it is refused from now on."
    )


def _find(connection: Connection, visit: Visit, key_id: str) -> ApiKey:
    id_ = parse_id(IdKind.API_KEY, key_id)
    keys = api_keys.list_api_keys(connection, visit.business.id)
    key = next((each for each in keys if each.id == id_ and each.business_id == visit.business.id), None)
    if key is None:
        raise not_found()
    return key
