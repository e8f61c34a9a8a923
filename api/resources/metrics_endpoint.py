"""GET /metrics: what this process counted, and what it measures when asked: queues, payout batches, the books."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from celery import Celery
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from redis.asyncio import Redis

from api.allocations.dispatcher import Dispatcher
from api.allocations.replies import Replies
from api.allocations.resolver import Resolver
from api.web.request import HttpRequest
from core import metrics
from core.batches.reading import find_open
from core.database.connection import Database
from core.ledger.verification import Verdict
from core.sealing import ForgeryError
from core.settings.loader import Settings
from workers.app import VERDICT_KEY
from workers.broker.queues import QueueWatch
from workers.in_doubt import RECORDS_KEY

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_COUNT_EVERY_S = 1.0
_MEASURED_FOR_S = 1.0
"""Whoever asks again within this time, and nobody has to say who asks, gets the same figures."""
_MEASURE_WITHIN_S = 2.0


class Exporter:
    """Brings the gauges up to date, once a second or when somebody asks."""

    def __init__(
        self,
        settings: Settings,
        databases: dict[str, Database],
        redis: Redis,
        celery: Celery,
        dispatcher: Dispatcher,
        replies: Replies,
        resolver: Resolver,
    ) -> None:
        self._databases = databases
        self._redis = redis
        self._hash_secret = settings.hash_secret_bytes
        self._queues = QueueWatch(celery)
        self._dispatcher = dispatcher
        self._replies = replies
        self._resolver = resolver
        # A thread for each server: one that hangs must not hide the others.
        self._executors = {name: ThreadPoolExecutor(1, thread_name_prefix="metrics") for name in ("database", "broker")}
        self._under_way: dict[str, asyncio.Future[Any]] = {}
        self._measuring = asyncio.Lock()
        self._measured_at = float("-inf")
        self._recorded = 0
        metrics.BOOKS_EVERY_SECONDS.replace({(): settings.verify_every_s})

    async def keep_counting(self) -> None:
        """Count what was noted, for ever; several processes behind one port read each other's counts."""
        while True:
            self._count()
            await asyncio.sleep(_COUNT_EVERY_S)

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that fits an `Accept` header, and their content type."""
        async with self._measuring:
            if time.monotonic() - self._measured_at > _MEASURED_FOR_S:
                await self._measure()
                self._measured_at = time.monotonic()
        self._count()
        return metrics.render_api(accept)

    def close(self) -> None:
        """Let go of the threads and the connection to the broker."""
        self._executors["broker"].submit(self._queues.close)
        for executor in self._executors.values():
            executor.shutdown(wait=False)

    def _count(self) -> None:
        metrics.count_what_was_noted()
        metrics.WAITING_CALLERS.set(self._dispatcher.callers)
        metrics.ROUND_TRIP_AGE_SECONDS.set(self._dispatcher.round_trip_age_s)
        metrics.UNRESOLVED.set(max(self._recorded, self._resolver.given_up))
        metrics.SUBSCRIBED.set(self._replies.subscribed.is_set())
        for name, database in self._databases.items():
            in_use, size = database.count_connections()
            metrics.API_POOL_IN_USE.labels(name).set(in_use)
            metrics.API_POOL_SIZE.labels(name).set(size)

    async def _measure(self) -> None:
        queues, batches, known_to_redis = await asyncio.gather(
            self._ask("broker", lambda: self._in_thread("broker", self._queues.look)),
            self._ask(
                "database", lambda: self._in_thread("database", lambda: self._databases["calls"].read(find_open))
            ),
            self._ask("redis", self._read_redis),
        )
        verdict, self._recorded = known_to_redis or (None, 0)
        reached = {"broker": queues, "database": batches, "redis": known_to_redis}
        metrics.UP.replace({(name,): float(answer is not None) for name, answer in reached.items()})
        metrics.QUEUE_MESSAGES.replace({(each.queue,): each.messages for each in queues or []})
        metrics.QUEUE_AGE_SECONDS.replace(
            {(each.queue,): each.oldest_age_s for each in queues or [] if each.oldest_age_s is not None}
        )
        counts = batches.count_by_status if batches else {}
        metrics.OPEN_BATCHES.replace({(status.value,): count for status, count in counts.items()})
        metrics.OPEN_BATCH_ROWS.replace({(): batches.rows} if batches else {})
        metrics.BATCH_IDLE_SECONDS.replace({(): batches.idle_s} if batches else {})
        metrics.BOOKS_BALANCED.replace({(): verdict.discrepancies == 0} if verdict else {})
        metrics.BOOKS_DISCREPANCIES.replace({(): verdict.discrepancies} if verdict else {})
        metrics.BOOKS_VERIFIED.replace({(): verdict.ended_at_us / 1_000_000} if verdict else {})
        metrics.BOOKS_SECONDS.replace({(): verdict.took_s} if verdict else {})

    async def _ask(self, server: str, ask: Callable[[], Awaitable[Found]]) -> Found | None:
        """Ask a server for something; None where it does not answer in time, and one question at a time."""
        under_way = self._under_way.get(server)
        if under_way is not None and not under_way.done():
            return None
        asking: asyncio.Future[Found] = asyncio.ensure_future(ask())
        self._under_way[server] = asking
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio logs it
        await asyncio.wait([asking], timeout=_MEASURE_WITHIN_S)
        if not asking.done():
            return None
        error = asking.exception()
        if error is not None:
            logger.info("metrics of the %s could not be had: %s", server, type(error).__name__)
            return None
        return asking.result()

    async def _in_thread(self, server: str, look: Callable[[], Found]) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._executors[server], look)

    async def _read_redis(self) -> tuple[Verdict | None, int]:
        """Return the last verdict, and how many records in doubt the installation has."""
        data: Any = await self._redis.get(VERDICT_KEY)
        waiting: Any = self._redis.hlen(RECORDS_KEY)
        count = int(await waiting)
        try:
            return Verdict.open(data, self._hash_secret), count
        except ForgeryError as error:
            metrics.FORGERIES.labels("verdict").inc()
            logger.error("the last verdict was dropped: %s", error)
            return None, count


def metrics_route(exporter: Exporter) -> HTTPRouteHandler:
    """Wire the endpoint. It needs no key: there is no secret in it, and no name of anybody."""

    @get("/metrics", include_in_schema=False)
    async def metrics_(request: HttpRequest) -> Response[bytes]:
        content, content_type = await exporter.render(request.headers.get("accept", ""))
        if content_type.startswith("text/"):  # Litestar adds it to these
            content_type = content_type.replace("; charset=utf-8", "")
        return Response(content, media_type=content_type, headers={"Cache-Control": "no-store"})

    return metrics_
