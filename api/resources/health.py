"""Health: is this process alive, and can it serve the next request?"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from celery import Celery
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from api.allocations.dispatcher import Dispatcher
from api.allocations.replies import Replies
from core.database.connection import DATABASE_ERRORS, Database
from core.database.revision import REQUIRED_REVISION, read_revision
from workers.app import check_broker

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 2.0
_FRESH_S = 0.25


class Check(msgspec.Struct, frozen=True):
    """What one check found."""

    name: str
    ok: bool
    problem: str | None = None


class Readiness:
    """Carries the checks out, for however many ask at the same time once, and for none longer than the time-out."""

    def __init__(self, database: Database, celery: Celery, replies: Replies, dispatcher: Dispatcher) -> None:
        self._database = database
        self._celery = celery
        self._replies = replies
        self._dispatcher = dispatcher
        # A thread for each server: where one hangs, probes queue up here, and those of the other do not.
        self._executors = {
            server: ThreadPoolExecutor(1, thread_name_prefix=f"health-{server}") for server in ("database", "broker")
        }
        self._checking: asyncio.Task[list[Check]] | None = None
        self._checked_at = float("-inf")
        self._was_ready: bool | None = None

    async def find(self) -> list[Check]:
        """Return what all checks found, at most a moment ago."""
        loop = asyncio.get_running_loop()
        is_stale = self._checking is None or (
            self._checking.done() and (loop.time() - self._checked_at > _FRESH_S or self._checking.cancelled())
        )
        if is_stale or self._checking is None:
            self._checking = asyncio.create_task(self._check())
        # Who stops asking does not end the check for the others.
        return await asyncio.shield(self._checking)

    def close(self) -> None:
        """Let go of the threads."""
        for executor in self._executors.values():
            executor.shutdown(wait=False, cancel_futures=True)

    async def _check(self) -> list[Check]:
        (database, schema), broker, (subscription, worker) = await asyncio.gather(
            self._check_database(), self._check_broker(), self._check_worker()
        )
        checks = [database, schema, broker, subscription, worker]
        self._checked_at = asyncio.get_running_loop().time()
        is_ready = all(check.ok for check in checks)
        if is_ready != self._was_ready:
            if not is_ready and self._was_ready:
                logger.warning("not ready any more: %s", describe(checks))
            elif is_ready:
                logger.info("ready")
            self._was_ready = is_ready
        return checks

    async def _check_database(self) -> tuple[Check, Check]:
        try:
            revision = await self._in_thread("database", lambda: self._database.read(read_revision))
        except (*DATABASE_ERRORS, TimeoutError, OSError):
            unknown = Check("schema", ok=False, problem="not known without the database")
            return Check("database", ok=False, problem="the database cannot be reached"), unknown
        found = f"the database is at revision {revision or 'none'}, and {REQUIRED_REVISION} is needed"
        return Check("database", ok=True), _check("schema", None if revision >= REQUIRED_REVISION else found)

    async def _check_broker(self) -> Check:
        try:
            await self._in_thread("broker", lambda: check_broker(self._celery))
        except Exception:  # noqa: BLE001 (kombu lets the errors of every transport through)
            return Check("broker", ok=False, problem="the broker cannot be reached")
        return Check("broker", ok=True)

    async def _check_worker(self) -> tuple[Check, Check]:
        if not self._replies.subscribed.is_set():
            untold = Check("worker", ok=False, problem="not known without replies")
            return Check("subscription", ok=False, problem="replies are not subscribed to"), untold
        has_worker = await self._dispatcher.probe(PROBE_TIMEOUT_S)
        problem = f"no worker carried out an empty group within {PROBE_TIMEOUT_S:g} s"
        return Check("subscription", ok=True), _check("worker", None if has_worker else problem)

    async def _in_thread(self, server: str, work: Callable[[], Any]) -> Any:
        waiting: Awaitable[Any] = asyncio.get_running_loop().run_in_executor(self._executors[server], work)
        return await asyncio.wait_for(waiting, PROBE_TIMEOUT_S)


def _check(name: str, problem: str | None) -> Check:
    return Check(name, ok=problem is None, problem=problem)


def describe(checks: list[Check]) -> str:
    """Return in one line what is wrong; what is only not known because of that is left out."""
    return "; ".join(each.problem for each in checks if each.problem and not each.problem.startswith("not known"))


def health_routes(readiness: Readiness) -> list[HTTPRouteHandler]:
    """Wire the two endpoints."""

    @get("/health/live", include_in_schema=False)
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @get("/health/ready", include_in_schema=False)
    async def ready() -> Response[Any]:
        checks = await readiness.find()
        document: dict[str, Any] = {"status": "ready"}
        if not all(check.ok for check in checks):
            document = {"error": f"Not ready: {describe(checks)}"}
        status_code = 503 if "error" in document else 200
        return Response(document | {"checks": checks}, status_code=status_code, headers={"Cache-Control": "no-store"})

    return [live, ready]
