"""All metrics for Prometheus, in one place: what each process counts, and how it is given out.

No label names a business, a user, a key or a path with an id in it, so there is a fixed number of series. What happens
for every call is only noted (an append to a list), and counted once a second and when somebody asks.
"""

import hashlib
import multiprocessing
import os
import shutil
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Metric,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    multiprocess,
    values,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from core.messages import Outcome

_DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_DIRECTORY_PREFIX = "payouts-metrics-"
_LEFT_AFTER_S = 3600


def _share_with_siblings() -> None:
    """Keep values in files where one of several API processes behind a port asks: each scrape reaches any of them.

    Whoever started them (`uvicorn --workers`, `WEB_CONCURRENCY`) has given all the same random key, those that it
    starts in place of dead ones too, and has none of our code to tell them a directory.
    """
    if multiprocessing.parent_process() is not None and _DIRECTORY_VARIABLE not in os.environ:
        name = hashlib.sha256(multiprocessing.current_process().authkey).hexdigest()[:32]
        directory = Path(tempfile.gettempdir(), _DIRECTORY_PREFIX + name)
        directory.mkdir(mode=0o700, exist_ok=True)
        os.environ[_DIRECTORY_VARIABLE] = str(directory)
        _remove_leftovers(directory.parent)
        values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of processes that have all ended; young ones may be about to be used."""
    for directory in parent.glob(f"{_DIRECTORY_PREFIX}*"):
        with suppress(OSError, ValueError):
            if directory.stat().st_uid != os.getuid():
                continue
            is_old = time.time() - directory.stat().st_mtime > _LEFT_AFTER_S
            if is_old and not any(_is_alive(_pid_of(path)) for path in directory.glob("*.db")):
                shutil.rmtree(directory)


def _pid_of(path: Path) -> int:
    """Return whose file of values it is."""
    return int(path.stem.rpartition("_")[2])


def _is_alive(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


_share_with_siblings()
disable_created_metrics()  # type: ignore[no-untyped-call]

IS_SHARED = any(name in os.environ for name in (_DIRECTORY_VARIABLE, _DIRECTORY_VARIABLE.lower()))
"""Whether several processes answer with their sum."""

API = CollectorRegistry()
WORKER = CollectorRegistry()

# From a millisecond to beyond the longest time an answer may take.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10)
_LONG_SECONDS = (*_SECONDS, 30, 60)
_ALLOCATIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Histogram(prometheus_client.Histogram):
    """A histogram that takes many values at once; one by one, the library's lock would cost more than counting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._noted: list[float] = []
        _noting.append(self)

    def note(self, value: float) -> None:
        """Remember a value until `count_what_was_noted`; always from the same thread."""
        self._noted.append(value)

    def observe_all(self, observed: Iterable[float]) -> None:
        """Count many values."""
        ordered = sorted(observed)
        if not ordered:
            return
        self._sum.inc(sum(ordered))
        smaller = 0
        for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
            up_to_bound = bisect_right(ordered, bound)
            if up_to_bound > smaller:
                bucket.inc(up_to_bound - smaller)
                smaller = up_to_bound

    def count_noted(self) -> None:
        """Count what was noted."""
        noted, self._noted = self._noted, []
        self.observe_all(noted)


class Counter(prometheus_client.Counter):
    """A counter that need not be locked for each of many events."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._noted = 0
        _noting.append(self)

    def note(self) -> None:
        """Remember an event until `count_what_was_noted`; always from the same thread."""
        self._noted += 1

    def count_noted(self) -> None:
        """Count what was noted."""
        noted, self._noted = self._noted, 0
        if noted:
            self.inc(noted)


class Measured(Collector):
    """A gauge that is measured when somebody asks; what cannot be measured has no sample."""

    def __init__(
        self, name: str, documentation: str, label_names: Sequence[str] = (), *, registry: CollectorRegistry = API
    ) -> None:
        self._family = (name, documentation, label_names)
        self._values: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def replace(self, measured: Mapping[tuple[str, ...], float]) -> None:
        """Give these values out from now on, by the values of the labels."""
        self._values = dict(measured)

    def describe(self) -> Iterator[Metric]:
        """Name the metric."""
        name, documentation, label_names = self._family
        yield GaugeMetricFamily(name, documentation, labels=label_names)

    def collect(self) -> Iterator[Metric]:
        """Give the values out."""
        name, documentation, label_names = self._family
        family = GaugeMetricFamily(name, documentation, labels=label_names)
        for label_values, value in self._values.items():
            family.add_metric(label_values, value)
        yield family


_noting: list[Histogram | Counter] = []


def count_what_was_noted() -> None:
    """Count what was noted since the last time."""
    for metric in _noting.copy():
        metric.count_noted()


# API: requests.

HTTP_REQUESTS = Counter(
    "payouts_http_requests",
    "HTTP requests that were answered; `route` is a template",
    ["method", "route", "status"],
    registry=API,
)
HTTP_REQUEST_SECONDS = Histogram(
    "payouts_http_request_seconds",
    "seconds from a request's arrival to the end of its response",
    ["method", "route"],
    registry=API,
    buckets=_LONG_SECONDS,
)
TOO_MANY_REQUESTS = Counter(
    "payouts_too_many_requests",
    "requests that were answered 429, by reason: the API key's `rate_limit`, or too many callers `waiting` for "
    "allocations, for the `database`, or with `uploads`",
    ["reason"],
    registry=API,
)
for reason in ("rate_limit", "waiting", "database", "uploads"):
    TOO_MANY_REQUESTS.labels(reason)

# API: allocations.

ALLOCATIONS = Counter(
    "payouts_allocations", "allocations, by the outcome that the caller was told", ["outcome"], registry=API
)
ALLOCATION_SECONDS = Histogram(
    "payouts_allocation_seconds", "seconds from an allocation's arrival to its outcome", registry=API, buckets=_SECONDS
)
WAITING_SECONDS = Histogram(
    "payouts_waiting_seconds",
    "seconds from an allocation's arrival until its group is sent",
    registry=API,
    buckets=_SECONDS,
)
WAITING_CALLERS = prometheus_client.Gauge(
    "payouts_waiting_callers",
    "callers that wait for the outcome of an allocation now",
    registry=API,
    multiprocess_mode="livesum",
)
GROUP_ALLOCATIONS = Histogram(
    "payouts_group_allocations",
    "allocations in each group that was sent to the workers",
    registry=API,
    buckets=_ALLOCATIONS,
)
ROUND_TRIP_SECONDS = Histogram(
    "payouts_round_trip_seconds", "seconds from the sending of a group to its reply", registry=API, buckets=_SECONDS
)
ROUND_TRIP_AGE_SECONDS = prometheus_client.Gauge(
    "payouts_round_trip_age_seconds",
    "seconds since a worker last carried out a group of this process; without calls, an empty one is sent every 10 s",
    registry=API,
    multiprocess_mode="livemax",
)
PUBLISH_ERRORS = Counter("payouts_publish_errors", "groups that may not have reached the broker", registry=API)
RESENDS = Counter("payouts_resends", "groups that were sent again because no reply came", registry=API)
HELD_UP_RESENDS = Counter(
    "payouts_held_up_resends",
    "groups that were sent again because a worker wrote nothing: another transaction held rows of the business, say",
    registry=API,
)
RESOLUTIONS = Counter(
    "payouts_resolutions",
    "allocations without a reply at the deadline, by what the history said: `committed`; `never`, which stays so; "
    "`unknown`, where the database was out of reach, 500 was answered, and the allocation is resolved later",
    ["result"],
    registry=API,
)
for result in ("committed", "never", "unknown"):
    RESOLUTIONS.labels(result)
UNRESOLVED = prometheus_client.Gauge(
    "payouts_unresolved_allocations",
    "calls and payout batches of the installation that were answered in doubt and are not finished yet",
    registry=API,
    multiprocess_mode="livemax",
)
REVERSALS = Counter(
    "payouts_reversals", "allocations that were answered 500, had committed, and were reversed", registry=API
)
SUBSCRIBED = prometheus_client.Gauge(
    "payouts_replies_subscribed",
    "1 while the subscription to replies stands, 0 while there is none",
    registry=API,
    multiprocess_mode="livemin",
)
FORGERIES = Counter(
    "payouts_forgeries",
    "records in Redis that were dropped because this installation did not seal them, by kind of record",
    ["reason"],
    registry=API,
)
for reason in ("reply", "session", "verdict", "request"):
    FORGERIES.labels(reason)
SUBSCRIPTION_LOSSES = Counter(
    "payouts_reply_subscription_losses", "times that the subscription to replies was lost", registry=API
)
PAYOUT_BATCHES_ACCEPTED = Counter("payouts_payout_batches_accepted", "payout batches that were accepted", registry=API)
PAYOUT_BATCH_ROWS_ACCEPTED = Counter(
    "payouts_payout_batch_rows_accepted", "rows in accepted payout batches", registry=API
)
API_POOL_IN_USE = prometheus_client.Gauge(
    "payouts_api_pool_connections_in_use",
    "PostgreSQL connections of the API process in use, by pool: `calls` or `uploads`",
    ["pool"],
    registry=API,
    multiprocess_mode="livesum",
)
API_POOL_SIZE = prometheus_client.Gauge(
    "payouts_api_pool_connections_max",
    "PostgreSQL connections that the API process may have, by pool: `calls` or `uploads`",
    ["pool"],
    registry=API,
    multiprocess_mode="livesum",
)

# API: measured when somebody asks.

UP = Measured("payouts_reachable", "1 where `database`, `redis` or `broker` answered, 0 where not", ["server"])
QUEUE_MESSAGES = Measured("payouts_queue_messages", "messages that wait in each of the broker's queues", ["queue"])
QUEUE_AGE_SECONDS = Measured(
    "payouts_queue_oldest_message_age_seconds",
    "age of the oldest message in each queue, 0 while the queue is empty; not with RabbitMQ, which cannot tell",
    ["queue"],
)
OPEN_BATCHES = Measured("payouts_open_payout_batches", "payout batches that are not finished, by status", ["status"])
OPEN_BATCH_ROWS = Measured("payouts_open_payout_batch_rows", "rows of unfinished payout batches that are not paid yet")
BATCH_IDLE_SECONDS = Measured(
    "payouts_payout_batch_idle_seconds",
    "seconds since a worker last worked on the payout batch that waits longest; 0 where no batch waits, or payouts are "
    "disabled",
)
BOOKS_BALANCED = Measured(
    "payouts_books_balanced", "1 where the last verification of the books found them balanced, else 0"
)
BOOKS_DISCREPANCIES = Measured(
    "payouts_books_discrepancies", "rows that the last verification of the books found wrong"
)
BOOKS_VERIFIED = Measured(
    "payouts_books_verified_timestamp_seconds", "when the last verification of the books ended, by the database's clock"
)
BOOKS_SECONDS = Measured("payouts_books_verification_seconds", "how long the last verification of the books took")
BOOKS_EVERY_SECONDS = Measured(
    "payouts_books_verify_every_seconds",
    "seconds between verifications of the books, that is `PAYOUTS_VERIFY_EVERY_S`; 0: never",
)

# Workers.

TASK_SECONDS = Histogram(
    "payouts_task_seconds",
    "seconds that each task of a worker took",
    ["task"],
    registry=WORKER,
    buckets=_LONG_SECONDS,
)
LAST_TASK = prometheus_client.Gauge(
    "payouts_last_task_timestamp_seconds", "when the worker last ended a task, by its own clock", registry=WORKER
)
WORKER_ALLOCATIONS = Counter(
    "payouts_worker_allocations",
    "allocations that workers decided, by outcome; each copy of a group counts",
    ["outcome"],
    registry=WORKER,
)
for outcome in Outcome:
    ALLOCATIONS.labels(outcome.value)
    WORKER_ALLOCATIONS.labels(outcome.value)
HELD_UP = Counter(
    "payouts_held_up_allocations",
    "copies of allocations that workers left for later, because another transaction held rows of the business",
    registry=WORKER,
)
LOCKED_SECONDS = Histogram(
    "payouts_locked_seconds",
    "seconds from asking for the Redis locks of businesses until the worker went on",
    registry=WORKER,
    buckets=_SECONDS,
)
LOCK_WAITS = Counter(
    "payouts_lock_waits", "times that other workers held all the Redis locks that were asked for", registry=WORKER
)
UNLOCKED = Counter(
    "payouts_unlocked",
    "times that a worker went on without Redis locks: after a `timeout`, or because `redis` did not answer",
    ["reason"],
    registry=WORKER,
)
for reason in ("timeout", "redis"):
    UNLOCKED.labels(reason)
SQL_SECONDS = Histogram(
    "payouts_sql_seconds",
    "seconds that a worker's transaction took, commit included: for `allocations` or a `chunk` of a payout batch",
    ["work"],
    registry=WORKER,
    buckets=_SECONDS,
)
SQL_FAILURES = Counter(
    "payouts_sql_failures",
    "transactions of workers that failed: for `allocations` or a `chunk` of a payout batch",
    ["work"],
    registry=WORKER,
)
for work in ("allocations", "chunk"):
    SQL_SECONDS.labels(work)
    SQL_FAILURES.labels(work)
REPLIES_LOST = Counter("payouts_replies_lost", "replies of workers that could not be stored in Redis", registry=WORKER)
MESSAGES_DROPPED = Counter(
    "payouts_messages_dropped",
    "messages that workers dropped: damaged ones, and messages of other systems",
    registry=WORKER,
)
PAYOUT_BATCH_ROWS_PAID = Counter(
    "payouts_payout_batch_rows_paid", "rows of payout batches that were paid", registry=WORKER
)
PAYOUT_BATCHES_COMPLETED = Counter(
    "payouts_payout_batches_completed", "payout batches that were paid to the end", registry=WORKER
)
PAYOUT_BATCHES_RESUMED = Counter(
    "payouts_payout_batches_resumed",
    "payout batches on which no worker worked, and that were sent to the workers again",
    registry=WORKER,
)
WORKER_POOL_IN_USE = prometheus_client.Gauge(
    "payouts_worker_pool_connections_in_use", "PostgreSQL connections of the worker process in use", registry=WORKER
)
WORKER_POOL_SIZE = prometheus_client.Gauge(
    "payouts_worker_pool_connections_max", "PostgreSQL connections that the worker process may have", registry=WORKER
)

if not IS_SHARED:  # the library cannot add these up
    for registry in (API, WORKER):
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)


class _AllSiblings(Collector):
    """What all API processes behind the port have counted, as one."""

    def collect(self) -> Iterator[Metric]:
        """Add the processes' files up, without the gauges of those that are dead."""
        directory = os.environ[_DIRECTORY_VARIABLE]
        for path in Path(directory).glob("gauge_live*_*.db"):
            if not _is_alive(pid := _pid_of(path)):
                multiprocess.mark_process_dead(pid, directory)  # type: ignore[no-untyped-call]
        names = {metric.name for metric in API.collect()}
        merged: Collector = multiprocess.MultiProcessCollector(None, directory)  # type: ignore[no-untyped-call]
        yield from (metric for metric in merged.collect() if metric.name in names)


OLD_NAMES = {
    "payouts_group_allocations": "payouts_batch_allocations",
    "payouts_resolutions": "payouts_settles",
    "payouts_unresolved_allocations": "payouts_unsettled_allocations",
}
"""The names in 0.1 of metrics that have another one now. 0.2 gives both out, 0.3 the new one alone."""


class _WithOldNames(Collector):
    """What a registry has, and once more under its old name what was renamed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Give all metrics out."""
        for family in self._registry.collect():
            yield family
            if (old_name := OLD_NAMES.get(family.name)) is not None:
                renamed = Metric(old_name, f"the old name of {family.name}, until 0.3", family.type, family.unit)
                renamed.samples = [
                    sample._replace(name=old_name + sample.name.removeprefix(family.name)) for sample in family.samples
                ]
                yield renamed


def render_api(accept: str) -> tuple[bytes, str]:
    """Return the API's metrics in the format that fits an `Accept` header, and their content type."""
    source = API
    if IS_SHARED:
        source = CollectorRegistry()
        source.register(_AllSiblings())
        for metric in globals().values():
            if isinstance(metric, Measured):
                source.register(metric)
    registry = CollectorRegistry()
    registry.register(_WithOldNames(source))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
