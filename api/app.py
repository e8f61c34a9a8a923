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

from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp

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
from api.resources.pagination import Lists
from api.resources.payout_hash import payout_hash_routes
from api.resources.payout_users import payout_user_routes
from api.resources.transactions import transaction_routes
from api.web import responses
from api.web.authentication import Authenticator
from api.web.business_request import BusinessCalls, DatabaseThreads
from api.web.rate_limit import RateLimiter, add_rate_limit
from api.web.recent_requests import RecentRequests
from api.web.request_log import Paths, RequestLines, RequestLog, log_unexpected, note_of
from api.web.request_metrics import Traffic
from api.web.responses import Refusal
from api.web.tracing import make_plugin
from core.database.connection import Database
from core.errors import UserError
from core.garbage_collection import spare_what_stays
from core.in_doubt.finishing import Finisher
from core.logging.setup import Logs
from core.messages import GroupCodec
from core.settings.loader import Settings, load_settings, warn_of_doubtful_variables
from core.tracing import is_wanted, start_tracing, warn_where_missing
from workers.app import ALLOCATE_TASK, PAY_CHUNK_TASK, create_celery
from workers.in_doubt import open_records
from workers.servers import open_async_redis
from workers.startup import wait_for_servers
from workers.tracing import make_group_tracing, trace_tasks

logger = logging.getLogger(__name__)

_SWITCH_INTERVAL_S = 0.0002
_CANCEL_AGAIN_AFTER_S = 0.2
_REFUSAL_BY_STATUS = {
    refusal.status_code: refusal
    for refusal in (
        responses.UNAUTHORIZED,
        responses.NOT_FOUND,
        responses.METHOD_NOT_ALLOWED,
        responses.REQUEST_TIMEOUT,
        responses.BODY_TOO_LARGE,
        responses.TOO_MANY_REQUESTS,
        responses.INTERNAL_ERROR,
    )
}


@dataclass(frozen=True)
class Application:
    """What answers requests."""

    routed: Litestar
    paths: Paths
    asgi: ASGIApp
    """The way in."""


def create_app(settings: Settings, recent_requests: RecentRequests, *, with_traces: bool = False) -> Application:
    """Make the application with everything it needs."""
    if with_traces:
        start_tracing("web")
    database = Database.from_settings(settings)
    redis = open_async_redis(settings)
    celery = create_celery(settings)
    clock = DatabaseClock(database)
    prefix = make_instance_prefix()
    publisher = Publisher(
        celery,
        GroupCodec(settings.hash_secret_bytes),
        prefix,
        threads=settings.in_flight_max * 2,
        expires_after_s=settings.reply_timeout_s,
    )
    if with_traces:
        trace_tasks(celery, sent_names=[ALLOCATE_TASK, PAY_CHUNK_TASK])
        publisher.trace(*make_group_tracing())
    replies = Replies(redis, prefix)
    authenticator = Authenticator(database, timeout_s=settings.resolve_timeout_s)
    limiter = RateLimiter(settings)
    threads = DatabaseThreads(database, timeout_s=settings.resolve_timeout_s)
    calls = BusinessCalls(authenticator, limiter, threads)
    lists = Lists(calls)
    records = open_records(settings)
    batch_database = Database.from_settings(settings, transaction_timeout_s=BATCH_TIMEOUT_S, pool_size=2)
    intake = BatchIntake(
        batch_database, BatchReleaser(batch_database, celery, records), settings.hash_secret_bytes
    )
    dashboard = Dashboard(settings, lists, intake, recent_requests)
    playground = Playground()
    resolver = Resolver(database, records, timeout_s=settings.resolve_timeout_s)
    recovery = Recovery(Finisher(database, records, overdue_after_s=settings.reply_timeout_s))
    dispatcher = Dispatcher(settings, clock, publisher, replies, resolver)
    readiness = Readiness(database, celery, replies, dispatcher)

    exporter = Exporter(
        settings, {"calls": database, "uploads": batch_database}, redis, celery, dispatcher, replies, resolver
    )

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await asyncio.to_thread(clock.measure)
        await asyncio.to_thread(records.warn_where_unwritable)
        spare_what_stays()
        endless = (
            replies.listen(),
            clock.keep_fresh(),
            dispatcher.sweep(),
            dispatcher.keep_probing(),
            recovery.keep_finishing(),
            authenticator.keep_uses_written(),
            exporter.keep_counting(),
            recent_requests.keep_flushed(),
        )
        background = [asyncio.create_task(work) for work in endless]
        try:
            yield
        finally:
            await dispatcher.close(settings.reply_timeout_s + settings.resolve_timeout_s)
            await _cancel(background)
            await asyncio.to_thread(authenticator.write_uses)
            exporter.close()
            readiness.close()
            await recent_requests.close()
            await resolver.close()
            recovery.close()
            threads.close()
            intake.close()
            await dashboard.close()
            publisher.close()
            authenticator.close()
            await redis.aclose()
            batch_database.close()
            database.close()
            records.close()
            # uvicorn ends by the signal that it was sent, and nothing of ours runs after this.
            await asyncio.to_thread(Logs.flush)

    def answer_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
        if dashboard.answers(request):
            return dashboard.answer_error(request, error)
        return (playground.answer_error if playground.answers(request) else _answer_http_exception)(request, error)

    create_payout = allocations_endpoint.make_create_payout(
        database,
        authenticator,
        limiter,
        dispatcher,
        hash_secret=settings.hash_secret_bytes,
        body_max_bytes=settings.request_body_max_bytes,
        look_up_timeout_s=settings.resolve_timeout_s,
    )
    handlers = [
        allocations_endpoint.payout_route(create_payout),
        balance_route(calls),
        *payout_hash_routes(threads),
        *payout_user_routes(calls, lists),
        *transaction_routes(calls, lists),
        *batch_routes(calls, lists, intake, settings.hash_secret_bytes),
        *health_routes(readiness),
        metrics_route(exporter),
        openapi_route(),
    ]
    pages = [dashboard.router, playground.router]
    of_calls = [path for handler in handlers for path in handler.paths]
    of_pages = [route.path_format for router in pages for route in router.routes]
    paths = Paths([*of_calls, *of_pages])
    routed = Litestar(
        [*handlers, *pages],
        plugins=[make_plugin(paths.mask)] if with_traces else [],
        lifespan=[lifespan],
        before_send=[add_rate_limit],
        exception_handlers={HTTPException: answer_http_exception, Exception: _answer_unexpected},
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
    tell = (Traffic().count, recent_requests.note)
    return RequestLog(app.asgi, app.paths, write, tell, log_level=settings.log_level)


def _answer_http_exception(_: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    refusal = _REFUSAL_BY_STATUS.get(error.status_code)
    if refusal is None:
        is_ours = error.status_code >= 500
        refusal = responses.INTERNAL_ERROR if is_ours else Refusal(error.status_code, responses.BAD_REQUEST.error)
    response = refusal.response()
    if allow := (error.headers or {}).get("allow"):
        response.headers["Allow"] = allow
    return response


def _answer_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    log_unexpected(error, note_of(request.scope), request.scope.get("path_template"))
    return responses.INTERNAL_ERROR.response()
