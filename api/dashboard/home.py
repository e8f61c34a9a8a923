"""Home: balances, what was allocated lately, and what happened last."""

from datetime import UTC, datetime

from litestar import get
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.dashboard.chart import draw_days
from api.dashboard.pages import Page, Pages, Visit
from api.web.request import HttpRequest
from api.web.responses import HttpResponse
from core.ledger.overview import LOW_DAYS, read_overview


def home_routes(pages: Pages) -> list[HTTPRouteHandler]:
    """Wire the page."""

    @get(["/{business:str}", "/{business:str}/{mode:str}"])
    async def home(request: HttpRequest, business: str, mode: str = "live") -> HttpResponse:
        return await pages.show(request, business, mode, _show)

    return [home]


def _show(connection: Connection, visit: Visit) -> Page:
    overview = read_overview(connection, visit.business.id, datetime.now(UTC))
    return Page("home.html", {"overview": overview, "chart": draw_days(overview.days), "low_days": LOW_DAYS})
