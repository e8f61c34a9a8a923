"""The task that carries a group of allocations out. No rules here: `core` decides and writes."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from uuid import UUID

from celery import Celery, Task

from core import metrics
from core.database.connection import (
    Database,
    describe_error,
    is_connection_error,
    is_lock_timeout,
    is_rolled_back,
)
from core.ids import IdKind, format_id
from core.ledger import statements
from core.logging.fields import about
from core.messages import Allocation, GroupCodec, MessageError, Outcome, Reply
from workers.app import ALLOCATE_TASK
from workers.broker.consumer import names_in
from workers.broker.results import GroupReply
from workers.locks import BusinessLocks
from workers.patience import BRIEF_WAIT_S, Patience

logger = logging.getLogger(__name__)

_FAILURES_MAX = 2


class _Group:
    """The allocations of one task, and what is known of each."""

    def __init__(self, allocations: list[Allocation]) -> None:
        self.allocations = allocations
        self.outcomes = [Outcome.FAILED] * len(allocations)
        self.untouched: set[int] = set()
        self.positions: dict[UUID, list[int]] = defaultdict(list)
        for position, allocation in enumerate(allocations):
            self.positions[allocation.business_id].append(position)

    def of(self, business_ids: Iterable[UUID]) -> list[Allocation]:
        """Return the allocations of some businesses."""
        return [self.allocations[position] for id_ in business_ids for position in self.positions[id_]]

    def note(self, business_ids: Iterable[UUID], outcomes: list[Outcome]) -> None:
        """Note what became of those, in the same order."""
        positions = (position for id_ in business_ids for position in self.positions[id_])
        for position, outcome in zip(positions, outcomes, strict=True):
            self.outcomes[position] = outcome
            self.untouched.discard(position)

    def note_untouched(self, business_id: UUID) -> None:
        """Note that nothing was written for a business."""
        self.untouched.update(self.positions[business_id])


class GroupProcessor:
    """Carries groups out: one transaction for all businesses whose rows are free, then one for each of the others."""

    def __init__(self, database: Database, locks: BusinessLocks, hash_secret: bytes, patience: Patience) -> None:
        self._database = database
        self._locks = locks
        self._hash_secret = hash_secret
        self._patience = patience

    def process(self, allocations: list[Allocation]) -> Reply:
        """Return the outcomes, in order; `failed` where something broke, or where others hold a business's rows."""
        group = _Group(allocations)
        held = {id_ for id_ in group.positions if self._patience.is_known_as_held(id_)}
        left: list[UUID] = []
        for business_ids in self._locks.hold_in_turn(group.positions.keys() - held):
            left += self._try_together(group, sorted(business_ids))
        if left or held:
            self._try_one_by_one(group, left, held)
        for outcome, count in Counter(group.outcomes).items():
            metrics.WORKER_ALLOCATIONS.labels(outcome.value).inc(count)
        if Outcome.EXPIRED in group.outcomes:
            late = [each for each, outcome in zip(allocations, group.outcomes, strict=True) if outcome == "expired"]
            text = "%d allocations came past their deadline; nothing was written"
            logger.warning(text, len(late), extra=about(allocations=late))
        return Reply(group.outcomes, sorted(group.untouched))

    def _try_together(self, group: _Group, business_ids: list[UUID]) -> Collection[UUID]:
        """Carry out what can be without waiting for a business; return the businesses to be tried alone."""
        allocations = group.of(business_ids)
        try:
            with metrics.SQL_SECONDS.labels("allocations").time(), self._database.pipeline() as connection:
                outcomes, held = statements.allocate_where_free(connection, self._hash_secret, allocations)
        except Exception as error:  # noqa: BLE001 (whatever broke, the caller is told)
            if len(business_ids) > 1 or not is_rolled_back(error):
                self._note_failure(allocations, error)
                return business_ids
            self._note_refusal(group, business_ids[0], error)
            return ()
        group.note(business_ids, outcomes)
        return held

    def _try_one_by_one(self, group: _Group, business_ids: Collection[UUID], held: Collection[UUID]) -> None:
        """Carry out business by business, so that what is wrong with one, or who holds it, concerns no other.

        All waits for rows together take as long as there is patience for. Those that are known as `held` come last,
        and are hardly waited for. Where PostgreSQL is out of reach, the rest is given up after the second failure in
        a row.
        """
        give_up_at = time.monotonic() + self._patience.left_s()
        waits_left = len(business_ids)
        failures = 0
        for business_id in (*business_ids, *held):
            now = time.monotonic()
            until = now
            if waits_left:
                until = now + (give_up_at - now) / waits_left
                waits_left -= 1
            failures = failures + 1 if self._try_alone(group, business_id, until) else 0
            if failures == _FAILURES_MAX:
                break

    def _try_alone(self, group: _Group, business_id: UUID, until: float) -> bool:
        """Carry out what is a business's, waiting for its rows until then; tell whether the connection broke."""
        allocations = group.of([business_id])
        try:
            for _ in self._locks.hold_in_turn([business_id], wait_s=until - time.monotonic()):
                wait_s = max(until - time.monotonic(), BRIEF_WAIT_S)
                with metrics.SQL_SECONDS.labels("allocations").time(), self._database.pipeline() as connection:
                    outcomes = statements.allocate(connection, self._hash_secret, allocations, wait_s=wait_s)
        except Exception as error:  # noqa: BLE001 (whatever broke, the caller is told)
            if is_rolled_back(error):
                self._note_refusal(group, business_id, error)
            else:
                self._note_failure(allocations, error)
            return is_connection_error(error)
        group.note([business_id], outcomes)
        self._patience.note_success(business_id)
        return False

    def _note_refusal(self, group: _Group, business_id: UUID, error: Exception) -> None:
        """Note that PostgreSQL refused what is one business's: nothing of it was written."""
        group.note_untouched(business_id)
        allocations = group.of([business_id])
        if not is_lock_timeout(error):
            self._note_failure(allocations, error)
            return
        metrics.HELD_UP.inc(len(allocations))
        if self._patience.note_vain_wait(business_id):
            logger.warning(
                "%d allocations have to wait: another transaction holds rows of %s",
                len(allocations),
                format_id(IdKind.BUSINESS, business_id),
                extra=about(error=error, allocations=allocations, hash_secret=self._hash_secret),
            )

    def _note_failure(self, allocations: list[Allocation], error: Exception) -> None:
        metrics.SQL_FAILURES.labels("allocations").inc()
        logger.warning(
            "a group of %d allocations failed: %s",
            len(allocations),
            describe_error(error),
            extra=about(error=error, allocations=allocations, hash_secret=self._hash_secret),
        )


def register_tasks(celery: Celery, codec: GroupCodec, processor: GroupProcessor) -> None:
    """Make the tasks known to the worker."""

    @celery.task(name=ALLOCATE_TASK, bind=True)  # type: ignore[untyped-decorator]
    def allocate(task: Task, *arguments: object, **_: object) -> GroupReply | None:
        try:
            group = codec.open(arguments[0] if arguments else None, task.request.id)
        except MessageError as error:
            metrics.MESSAGES_DROPPED.inc()
            logger.error("a message was dropped: %s", error, extra={"fields": names_in(_headers_of(task))})
            return None
        reply = processor.process(group.allocations)
        sealed = codec.seal_reply(reply, task.request.id) if group.wants_sealed_reply else None
        return GroupReply(reply.outcomes, sealed)


def _headers_of(task: Task) -> dict[str, object]:
    return {**(task.request.headers or {}), "id": task.request.id}
