"""The task that carries a group of allocations out. No rules here: `core` decides and writes."""

import logging
from collections import Counter, defaultdict
from uuid import UUID

from celery import Celery, Task

from core import metrics
from core.database.connection import Database, describe_error, is_connection_error
from core.ledger import statements
from core.logging.fields import about
from core.messages import Allocation, GroupCodec, MessageError, Outcome
from workers.app import ALLOCATE_TASK
from workers.broker.consumer import names_in
from workers.broker.results import GroupReply
from workers.locks import BusinessLocks

logger = logging.getLogger(__name__)

_FAILURES_MAX = 2


class GroupProcessor:
    """Carries groups out: one transaction for the businesses whose locks are held, then the next."""

    def __init__(self, database: Database, locks: BusinessLocks, hash_secret: bytes) -> None:
        self._database = database
        self._locks = locks
        self._hash_secret = hash_secret

    def process(self, allocations: list[Allocation]) -> list[Outcome]:
        """Return the outcomes, in order; `failed` where something broke."""
        by_business: dict[UUID, list[int]] = defaultdict(list)
        for position, allocation in enumerate(allocations):
            by_business[allocation.business_id].append(position)
        outcomes = [Outcome.FAILED] * len(allocations)
        for business_ids in self._locks.hold_in_turn(by_business):
            positions = [position for id_ in business_ids for position in by_business[id_]]
            decided = self._allocate([allocations[position] for position in positions])
            for position, outcome in zip(positions, decided, strict=True):
                outcomes[position] = outcome
        for outcome, count in Counter(outcomes).items():
            metrics.WORKER_ALLOCATIONS.labels(outcome.value).inc(count)
        if Outcome.EXPIRED in outcomes:
            late = [each for each, outcome in zip(allocations, outcomes, strict=True) if outcome is Outcome.EXPIRED]
            text = "%d allocations came past their deadline; nothing was written"
            logger.warning(text, len(late), extra=about(allocations=late))
        return outcomes

    def _allocate(self, allocations: list[Allocation]) -> list[Outcome]:
        """Try the group, then business by business, so that what is wrong with one does not fail the others.

        Where PostgreSQL is out of reach, the rest is given up after the second failure in a row.
        """
        outcomes, error = self._try(allocations)
        if error is None:
            return outcomes
        outcome_by_id = dict.fromkeys((allocation.id for allocation in allocations), Outcome.FAILED)
        failures = 0
        for business_id in dict.fromkeys(allocation.business_id for allocation in allocations):
            own = [allocation for allocation in allocations if allocation.business_id == business_id]
            outcomes, error = self._try(own)
            outcome_by_id.update(zip((allocation.id for allocation in own), outcomes, strict=True))
            failures = failures + 1 if error is not None and is_connection_error(error) else 0
            if failures == _FAILURES_MAX:
                break
        return [outcome_by_id[allocation.id] for allocation in allocations]

    def _try(self, allocations: list[Allocation]) -> tuple[list[Outcome], Exception | None]:
        try:
            with metrics.SQL_SECONDS.labels("allocations").time(), self._database.pipeline() as connection:
                return statements.allocate(connection, self._hash_secret, allocations), None
        except Exception as error:  # noqa: BLE001 (whatever broke, the caller is told)
            metrics.SQL_FAILURES.labels("allocations").inc()
            logger.warning(
                "a group of %d allocations failed: %s",
                len(allocations),
                describe_error(error),
                extra=about(error=error, allocations=allocations, hash_secret=self._hash_secret),
            )
            return [Outcome.FAILED] * len(allocations), error


def register_tasks(celery: Celery, codec: GroupCodec, processor: GroupProcessor) -> None:
    """Make the tasks known to the worker."""

    @celery.task(name=ALLOCATE_TASK, bind=True)  # type: ignore[untyped-decorator]
    def allocate(task: Task, *arguments: object, **_: object) -> GroupReply | None:
        try:
            allocations = codec.open(arguments[0] if arguments else None)
        except MessageError as error:
            metrics.MESSAGES_DROPPED.inc()
            logger.error("a message was dropped: %s", error, extra={"fields": names_in(_headers_of(task))})
            return None
        return GroupReply(processor.process(allocations))


def _headers_of(task: Task) -> dict[str, object]:
    return {**(task.request.headers or {}), "id": task.request.id}
