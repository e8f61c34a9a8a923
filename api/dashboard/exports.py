"""Whole lists as CSV, for members: each part is read behind a fresh look at whether the person still is one."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from litestar.response import Stream
from sqlalchemy import Connection

from api.dashboard.pages import Pages, Visit, find_visit, not_found
from api.resources.pagination import CSV, Collection, Paginator
from api.web.browser_headers import browser_headers
from api.web.request import HttpRequest
from api.web.responses import HttpResponse


async def export_csv(
    pages: Pages,
    paginator: Paginator,
    request: HttpRequest,
    business: str,
    mode: str,
    choose: Callable[[Connection, Visit], Collection[Any, Any]],
) -> HttpResponse:
    """Answer with the list that `choose` returns, which may look at who asks."""
    session = await pages.find_session(request)
    if session is None:
        return pages.ask_to_sign_in(request)

    def authorised(connection: Connection) -> Visit:
        return find_visit(connection, session, business, mode)

    def look_up(connection: Connection) -> Collection[Any, Any]:
        return choose(connection, authorised(connection))

    collection = await pages.threads.run(look_up)

    async def carry_out(work: Callable[[Connection, UUID], Any]) -> Any:
        return await pages.threads.run(lambda connection: work(connection, authorised(connection).business.id))

    response = await paginator.export(carry_out, collection, CSV)
    if not isinstance(response, Stream):
        raise not_found()
    response.headers.update(browser_headers(request))
    return response
