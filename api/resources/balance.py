"""GET /balance: what a business has."""

from uuid import UUID

from litestar import get
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.resources import schemas
from api.web.business_request import BusinessRequests
from api.web.request import HttpRequest
from api.web.responses import HttpResponse
from core.parties.businesses import get_business

PATH = "/balance"


def balance_route(requests: BusinessRequests) -> HTTPRouteHandler:
    """Wire the endpoint."""

    @get(PATH)
    async def read_balance(request: HttpRequest) -> HttpResponse:
        return await requests.answer(request, _read)

    return read_balance


def _read(connection: Connection, business_id: UUID) -> schemas.Balance:
    return schemas.Balance.of(get_business(connection, business_id))
