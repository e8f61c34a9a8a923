"""Health: is this process alive, and can it serve the next request?"""

import asyncio
from typing import Any

import sqlalchemy as sa
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from api.dispatcher import Dispatcher
from api.replies import Replies
from core.database import Database

PROBE_TIMEOUT_S = 2.0


def health_routes(database: Database, replies: Replies, dispatcher: Dispatcher) -> list[HTTPRouteHandler]:
    """Wire the two endpoints."""

    @get("/health/live", include_in_schema=False)
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @get("/health/ready", include_in_schema=False)
    async def ready() -> Response[Any]:
        reasons = []
        if not await _is_reachable(database):
            reasons.append("the database cannot be reached")
        if not replies.subscribed.is_set():
            reasons.append("replies are not subscribed to")
        elif not await dispatcher.probe(PROBE_TIMEOUT_S):
            reasons.append(f"no worker carried out an empty batch within {PROBE_TIMEOUT_S:g} s")
        if reasons:
            return Response({"error": "Not ready: " + "; ".join(reasons)}, status_code=503)
        return Response({"status": "ready"})

    return [live, ready]


async def _is_reachable(database: Database) -> bool:
    look_up = asyncio.to_thread(database.read, lambda connection: connection.execute(sa.text("SELECT 1")).scalar())
    try:
        await asyncio.wait_for(look_up, PROBE_TIMEOUT_S)
    except (sa.exc.SQLAlchemyError, TimeoutError):
        return False
    return True
