"""The wiring of the HTTP application. Nothing connects before its lifespan begins."""

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from celery import Celery
from litestar import Litestar, Response
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp
from redis.asyncio import Redis

from api.allocations import endpoint as allocations_endpoint
from api.allocations.database_clock import DatabaseClock
from api.allocations.dispatcher import Dispatcher
from api.allocations.publisher import Publisher, make_instance_prefix
from api.allocations.recovery import Recovery
from api.allocations.replies import Replies
from api.allocations.resolver import Resolver
from api.batches.endpoint import batch_routes
from api.batches.intake import TIMEOUT_S as BATCH_TIMEOUT_S
from api.batches.intake import BatchIntake
from api.batches.releasing import BatchReleaser
from api.dashboard.routes import Dashboard
from api.reference.openapi import openapi_route
from api.reference.playground.pages import Playground
from api.resources.balance import balance_route
from api.resources.health import Readiness, health_routes
from api.resources.metrics_endpoint import Exporter, metrics_route
from api.resources.pagination import Paginator
from api.resources.payout_hash import payout_hash_routes
from api.resources.payout_users import payout_user_routes
from api.resources.transactions import transaction_routes
from api.web import error_answers
from api.web.authentication import Authenticator
from api.web.business_request import BusinessRequests, DatabaseThreads
from api.web.rate_limit import RateLimiter, add_rate_limit
from api.web.recent_requests import RecentRequests
from api.web.request import HttpRequest
from api.web.request_log import Paths, RequestLines, RequestLog
from api.web.request_metrics import RequestMetrics
from api.web.tracing import make_plugin
from core.database.connection import Database
from core.errors import UserError
from core.garbage_collection import freeze_startup_objects
from core.in_doubt.finishing import Finisher
from core.logging.setup import Logs
from core.messages import GroupCodec
from core.settings.loader import Settings, load_settings, warn_of_doubtful_variables
from core.tracing import is_wanted, start_tracing, warn_where_missing
from workers.app import ALLOCATE_TASK, PAY_CHUNK_TASK, create_celery
from workers.in_doubt import InDoubtRecords, open_records
from workers.servers import open_async_redis
from workers.startup import wait_for_servers
from workers.tracing import make_group_tracing, trace_tasks

logger = logging.getLogger(__name__)

_SWITCH_INTERVAL_S = 0.0002
_CANCEL_AGAIN_AFTER_S = 0.2


@dataclass(frozen=True)
class Application:
    """What answers requests."""

    routed: Litestar
    paths: Paths
    asgi: ASGIApp
    """The way in."""


@dataclass(frozen=True)
class Parts:
    """What the endpoints share: connections, what runs in the background, and what carries allocations."""

    settings: Settings
    database: Database
    batch_database: Database
    redis: Redis
    celery: Celery
    clock: DatabaseClock
    publisher: Publisher
    replies: Replies
    records: InDoubtRecords
    resolver: Resolver
    recovery: Recovery
    dispatcher: Dispatcher
    authenticator: Authenticator
    limiter: RateLimiter
    threads: DatabaseThreads
    requests: BusinessRequests
    paginator: Paginator
    intake: BatchIntake
    dashboard: Dashboard
    playground: Playground
    readiness: Readiness
    exporter: Exporter
    recent_requests: RecentRequests

    @classmethod
    def make(cls, settings: Settings, recent_requests: RecentRequests, *, with_traces: bool) -> "Parts":
        """Make all parts; none connects yet."""
        timeout_s = settings.resolve_timeout_s
        database = Database.from_settings(settings)
        batch_database = Database.from_settings(settings, transaction_timeout_s=BATCH_TIMEOUT_S, pool_size=2)
        redis = open_async_redis(settings)
        celery = create_celery(settings)
        clock = DatabaseClock(database)
        prefix = make_instance_prefix()
        codec = GroupCodec(settings.hash_secret_bytes)
        publisher = Publisher(
            celery,
            codec,
            prefix,
            threads=settings.in_flight_max * 2,
            expires_after_s=settings.reply_timeout_s,
        )
        if with_traces:  # before the dispatcher, which asks the publisher once whether there are traces
            trace_tasks(celery, sent_names=[ALLOCATE_TASK, PAY_CHUNK_TASK])
            publisher.trace(*make_group_tracing())
        replies = Replies(redis, codec, prefix)
        records = open_records(settings)
        resolver = Resolver(database, records, timeout_s=timeout_s)
        dispatcher = Dispatcher(settings, clock, publisher, replies, resolver)
        authenticator = Authenticator(database, timeout_s=timeout_s)
        limiter = RateLimiter(settings)
        threads = DatabaseThreads(database, timeout_s=timeout_s)
        requests = BusinessRequests(authenticator, limiter, threads)
        paginator = Paginator(requests)
        releaser = BatchReleaser(batch_database, celery, records)
        intake = BatchIntake(batch_database, releaser, settings.hash_secret_bytes)
        databases = {"calls": database, "uploads": batch_database}
        return cls(
            settings=settings,
            database=database,
            batch_database=batch_database,
            redis=redis,
            celery=celery,
            clock=clock,
            publisher=publisher,
            replies=replies,
            records=records,
            resolver=resolver,
            recovery=Recovery(Finisher(database, records, overdue_after_s=settings.reply_timeout_s)),
            dispatcher=dispatcher,
            authenticator=authenticator,
            limiter=limiter,
            threads=threads,
            requests=requests,
            paginator=paginator,
            intake=intake,
            dashboard=Dashboard(settings, paginator, intake, recent_requests),
            playground=Playground(),
            readiness=Readiness(database, celery, replies, dispatcher),
            exporter=Exporter(settings, databases, redis, celery, dispatcher, replies, resolver),
            recent_requests=recent_requests,
        )

    @asynccontextmanager
    async def running(self, _: Litestar) -> AsyncIterator[None]:
        """Run what runs in the background; at the end answer who still waits, then close every part."""
        await asyncio.to_thread(self.clock.measure)
        await asyncio.to_thread(self.records.warn_where_unwritable)
        freeze_startup_objects()
        endless = (
            self.replies.listen(),
            self.clock.keep_fresh(),
            self.dispatcher.sweep(),
            self.dispatcher.keep_probing(),
            self.recovery.keep_finishing(),
            self.authenticator.keep_uses_written(),
            self.exporter.keep_counting(),
            self.recent_requests.keep_flushed(),
        )
        background = [asyncio.create_task(work) for work in endless]
        try:
            yield
        finally:
            await self.dispatcher.close(self.settings.reply_timeout_s + self.settings.resolve_timeout_s)
            await _cancel(background)
            await self._close()

    async def _close(self) -> None:
        await asyncio.to_thread(self.authenticator.write_uses)
        self.exporter.close()
        self.readiness.close()
        await self.recent_requests.close()
        await self.resolver.close()
        self.recovery.close()
        self.threads.close()
        self.intake.close()
        await self.dashboard.close()
        self.publisher.close()
        self.authenticator.close()
        await self.redis.aclose()
        self.batch_database.close()
        self.database.close()
        self.records.close()
        # uvicorn ends by the signal that it was sent: nothing runs after this.
        await asyncio.to_thread(Logs.flush)

    def answer_http_exception(self, request: HttpRequest, error: HTTPException) -> Response[Any]:
        """Answer with a page where a page was asked for, and with JSON elsewhere."""
        if self.dashboard.answers(request):
            return self.dashboard.answer_error(request, error)
        if self.playground.answers(request):
            return self.playground.answer_error(request, error)
        return error_answers.answer_http_exception(request, error)

    def make_create_payout(self) -> ASGIApp:
        """Make the endpoint that pays."""
        return allocations_endpoint.make_create_payout(
            self.database,
            self.authenticator,
            self.limiter,
            self.dispatcher,
            hash_secret=self.settings.hash_secret_bytes,
            body_max_bytes=self.settings.request_body_max_bytes,
            look_up_timeout_s=self.settings.resolve_timeout_s,
        )

    def make_handlers(self) -> list[BaseRouteHandler]:
        """Make all other endpoints."""
        return [
            balance_route(self.requests),
            *payout_hash_routes(self.threads),
            *payout_user_routes(self.requests, self.paginator),
            *transaction_routes(self.requests, self.paginator),
            *batch_routes(self.requests, self.paginator, self.intake, self.settings.hash_secret_bytes),
            *health_routes(self.readiness),
            metrics_route(self.exporter),
            openapi_route(),
        ]


def create_app(settings: Settings, recent_requests: RecentRequests, *, with_traces: bool = False) -> Application:
    """Make the application with everything it needs."""
    if with_traces:
        start_tracing("web")
    parts = Parts.make(settings, recent_requests, with_traces=with_traces)
    create_payout = parts.make_create_payout()
    handlers = [allocations_endpoint.payout_route(create_payout), *parts.make_handlers()]
    pages = [parts.dashboard.router, parts.playground.router]
    of_calls = [path for handler in handlers for path in handler.paths]
    of_pages = [route.path_format for router in pages for route in router.routes]
    paths = Paths([*of_calls, *of_pages])
    routed = Litestar(
        [*handlers, *pages],
        plugins=[make_plugin(paths.mask)] if with_traces else [],
        lifespan=[parts.running],
        before_send=[add_rate_limit],
        exception_handlers={
            HTTPException: parts.answer_http_exception,
            Exception: error_answers.answer_unexpected,
        },
        logging_config=None,
        openapi_config=None,
        request_max_body_size=settings.request_body_max_bytes,
    )
    needs_litestar = with_traces or settings.rate_limit_per_s
    return Application(
        routed, paths, routed if needs_litestar else allocations_endpoint.put_first(create_payout, routed)
    )


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """End tasks for certain: a cancellation gets lost where a library turns it into a time-out of its own."""
    unfinished = set(tasks)
    while unfinished:
        for task in unfinished:
            task.cancel()
        _, unfinished = await asyncio.wait(unfinished, timeout=_CANCEL_AGAIN_AFTER_S)


def create_app_from_environment() -> ASGIApp:
    """Make the application from `PAYOUTS_…` variables, once the servers that it needs are there.

    Wrong settings end the process with code 2; a server that stays out of reach, or is not migrated, with 1.
    """
    # A batch is published by a thread, which must not wait 5 ms for the event loop each time it wants to go on.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        warn_of_doubtful_variables()
        settings = load_settings()
        Logs.configure("web", log_format=settings.log_format, log_level=settings.log_level)
        with _ending_at_signals(), create_celery(settings) as celery:
            wait_for_servers(celery, settings)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    recent_requests = RecentRequests(settings)
    app = create_app(settings, recent_requests, with_traces=is_wanted())
    return add_request_log(app, settings, recent_requests)


@contextmanager
def _ending_at_signals() -> Iterator[None]:
    """End the process at once at Ctrl-C or SIGTERM: uvicorn only notes them until it serves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def add_request_log(app: Application, settings: Settings, recent_requests: RecentRequests) -> ASGIApp:
    """Have this process log, and each of the application's requests with it."""
    writer = Logs.configure_in_background("web", log_format=settings.log_format, log_level=settings.log_level)
    warn_where_missing()
    write = RequestLines(app.paths, writer).write if settings.access_log else None
    tell = (RequestMetrics().count, recent_requests.note)
    return RequestLog(app.asgi, app.paths, write, tell, log_level=settings.log_level)
