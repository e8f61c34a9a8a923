"""Resolving: at the deadline, finding out for certain, so that a 500 never costs a cent."""

import asyncio
import logging
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID

from api.allocations.waiting_list import Pending
from core import metrics
from core.database.connection import DATABASE_ERRORS, Database, describe_error, is_connection_error
from core.ids import IdKind, format_id
from core.in_doubt.records import Doubt, InDoubt
from core.ledger import resolution
from core.logging.fields import NAMED_MAX, about
from core.messages import Allocation, Outcome
from workers.in_doubt import InDoubtRecords

logger = logging.getLogger(__name__)

_THREADS = 2
_OVERDUE_AFTER_S = 1.0
"""So long after its deadline a call is resolved whatever the database's clock says: it may have been set back."""
_AGAIN_AFTER_S = 0.1
_AGAIN_IN_BACKGROUND_AFTER_S = 1.0
_AGAIN_IN_BACKGROUND_AFTER_MAX_S = 30.0


class Resolver:
    """Answers those for whom no worker's reply came, from the history."""

    def __init__(self, database: Database, records: InDoubtRecords, *, timeout_s: float) -> None:
        self._database = database
        self._records = records
        self._timeout_s = timeout_s
        # Threads of its own: resolving must not queue behind look-ups of keys, nor recording behind resolving.
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolve")
        self._recorder = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._to_record: list[tuple[Allocation, asyncio.Future[Outcome]]] = []
        self._recording: asyncio.Task[None] | None = None
        self._given_up: dict[UUID, InDoubt] = {}

    async def resolve(self, unresolved: list[Pending]) -> None:
        """Wait for each deadline, then ask the database until each is certain.

        While the database is out of reach for longer than the time-out, callers are answered 500 and resolving
        goes on in the background; what turns out to be committed after all is taken back.
        """
        loop = asyncio.get_running_loop()
        for pending in unresolved:
            loop.call_at(pending.due_at + self._timeout_s, self._give_up, pending)
        again_after_s = _AGAIN_AFTER_S
        while unresolved:
            now = loop.time()
            due = [pending for pending in unresolved if pending.due_at <= now]
            if due:
                resolved = await self._resolve_once(due)
                unresolved = [pending for pending in unresolved if pending.allocation.id not in resolved]
                if not resolved and all(pending.outcome.done() for pending in unresolved):
                    again_after_s = min(
                        max(again_after_s * 2, _AGAIN_IN_BACKGROUND_AFTER_S), _AGAIN_IN_BACKGROUND_AFTER_MAX_S
                    )
                await asyncio.sleep(again_after_s if unresolved else 0)
            else:
                await asyncio.sleep(min(pending.due_at for pending in unresolved) - now)

    @property
    def given_up(self) -> int:
        """How many calls this process answered 500, or will, before they were resolved."""
        return len(self._given_up)

    async def record(self, pending: Pending) -> None:
        """See to it that a call whose caller has gone, or is answered 500 by the server, is taken back."""
        recorded = asyncio.get_running_loop().create_future()
        self._decide_to_fail(pending, recorded)
        await asyncio.shield(recorded)

    async def close(self) -> None:
        """Let go of the threads, and name what another process has to resolve now."""
        if self._recording is not None:
            await self._recording
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._recorder.shutdown(wait=False)
        left = list(self._given_up.values())
        for named in (left[first : first + NAMED_MAX] for first in range(0, len(left), NAMED_MAX)):
            extra = about(allocation_ids=[record.name for record in named], always=True)
            text = "%d allocations were answered 500 and are left in doubt for other processes: see `payouts resolve`"
            logger.error(text, len(named), extra=extra)

    def _give_up(self, pending: Pending) -> None:
        """Answer 500, also while an attempt to resolve is under way: as soon as it is recorded outside the process."""
        if not pending.outcome.done():
            metrics.RESOLUTIONS.labels("unknown").inc()
            self._decide_to_fail(pending, pending.outcome)

    def _decide_to_fail(self, pending: Pending, told: asyncio.Future[Outcome]) -> None:
        """Let nothing but 500 be answered from now on; `told` gets its result when that is recorded."""
        pending.outcome = asyncio.get_running_loop().create_future()
        pending.answer(Outcome.FAILED)
        self._to_record.append((pending.allocation, told))
        if self._recording is None:
            self._recording = asyncio.create_task(self._record())

    async def _record(self) -> None:
        """Record what was given up, all at once: many may be at the same moment."""
        while self._to_record:
            given_up, self._to_record = self._to_record, []
            allocations = [allocation for allocation, _ in given_up]
            answered_at_s = int(time.time())
            records = [
                InDoubt(Doubt.CALL_FAILED, each.business_id, each.id, each.deadline_us, answered_at_s)
                for each in allocations
            ]
            self._given_up.update((record.id, record) for record in records)
            text = "%d allocations are answered 500 before they are resolved"
            try:
                await asyncio.get_running_loop().run_in_executor(self._recorder, self._records.add, records)
            except Exception as error:  # noqa: BLE001 (the callers wait for an answer)
                text += f", and cannot be recorded outside this process ({type(error).__name__}): do not stop it"
            for _, told in given_up:
                if not told.done():
                    told.set_result(Outcome.FAILED)
            # Each is named, however many they are: the log may be the last to know.
            for named in (allocations[first : first + NAMED_MAX] for first in range(0, len(allocations), NAMED_MAX)):
                logger.warning(text, len(named), extra=about(allocations=named, always=True))
        self._recording = None

    async def _discard(self, ids: set[UUID]) -> None:
        records = [record for id_ in ids if (record := self._given_up.pop(id_, None)) is not None]
        if records:
            with suppress(RuntimeError):  # the process ends; another one finds it finished
                await asyncio.get_running_loop().run_in_executor(self._recorder, self._records.discard, records)

    async def _resolve_once(self, due: list[Pending]) -> set[UUID]:
        """Answer what is certain; return the ids of that."""
        loop = asyncio.get_running_loop()
        resolved: set[UUID] = set()
        try:
            now = loop.time()
            overdue = [each.allocation for each in due if each.due_at + _OVERDUE_AFTER_S <= now]
            others = [each.allocation for each in due if each.due_at + _OVERDUE_AFTER_S > now]
            found = await loop.run_in_executor(self._executor, self._look_up_both, overdue, others)
        except Exception as error:  # noqa: BLE001 (nothing may end the resolving)
            extra = about(error=error, allocations=[each.allocation for each in due])
            logger.warning("%d allocations could not be resolved yet: %s", len(due), describe_error(error), extra=extra)
            return resolved
        for pending in due:
            id_ = pending.allocation.id
            if id_ in found.never:
                pending.answer(pending.refusal or Outcome.EXPIRED)
                resolved.add(id_)
                metrics.RESOLUTIONS.labels("never").inc()
            elif id_ in found.withdrawn:  # by another process, from the record
                pending.answer(Outcome.FAILED)
                resolved.add(id_)
            elif id_ in found.committed and await self._resolve_committed(pending, found.committed[id_]):
                resolved.add(id_)
                metrics.RESOLUTIONS.labels("committed").inc()
        await self._discard(resolved)
        self._log_resolved([each for each in due if each.allocation.id in resolved])
        return resolved

    def _log_resolved(self, resolved: list[Pending]) -> None:
        by_outcome: dict[Outcome, list[Allocation]] = defaultdict(list)
        for pending in resolved:
            if not pending.outcome.cancelled():
                by_outcome[pending.outcome.result()].append(pending.allocation)
        for outcome, allocations in by_outcome.items():
            extra = about(allocations=allocations, outcome=outcome)
            logger.warning("%d allocations were resolved at their deadline: %s", len(allocations), outcome, extra=extra)

    async def _resolve_committed(self, pending: Pending, outcome: Outcome) -> bool:
        """Answer 201; from whoever was told 500 it is taken back. Return whether that could be done."""
        pending.answer(outcome)
        if pending.outcome.cancelled() or pending.outcome.result() is not Outcome.FAILED:
            return True
        name = format_id(IdKind.TRANSACTION, pending.allocation.id)
        extra = about(allocations=[pending.allocation], always=True)
        try:
            is_reversed = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._withdraw, pending.allocation
            )
        except Exception as error:  # noqa: BLE001 (nothing may end the resolving)
            extra = about(error=error, allocations=[pending.allocation])
            logger.error("allocation %s could not be taken back yet: %s", name, describe_error(error), extra=extra)
            return False
        if is_reversed:
            metrics.REVERSALS.inc()
            logger.error("allocation %s was answered 500 but committed; it is reversed", name, extra=extra)
        else:
            text = "allocation %s was answered 500 but committed; a retry of it counts, or it is no more"
            logger.error(text, name, extra=extra)
        return True

    def _look_up_both(self, overdue: list[Allocation], others: list[Allocation]) -> resolution.Resolution:
        found = self._look_up(others, are_overdue=False)
        return _join(found, self._look_up(overdue, are_overdue=True)) if overdue else found

    def _look_up(self, allocations: list[Allocation], *, are_overdue: bool) -> resolution.Resolution:
        """Ask for all at once; where that fails, business by business, since one row may be out of reach alone."""
        try:
            return self._resolve_in_transaction(allocations, are_overdue=are_overdue)
        except DATABASE_ERRORS as error:
            business_ids = {allocation.business_id for allocation in allocations}
            if len(business_ids) == 1 or is_connection_error(error):
                raise
        found = resolution.Resolution({}, set())
        for business_id in business_ids:
            with suppress(*DATABASE_ERRORS):
                own = [each for each in allocations if each.business_id == business_id]
                found = _join(found, self._resolve_in_transaction(own, are_overdue=are_overdue))
        return found

    def _resolve_in_transaction(self, allocations: list[Allocation], *, are_overdue: bool) -> resolution.Resolution:
        if not allocations:
            return resolution.Resolution({}, set())
        with self._database.transaction() as connection:
            return resolution.resolve(connection, allocations, are_overdue=are_overdue)

    def _withdraw(self, allocation: Allocation) -> bool:
        with self._database.transaction() as connection:
            return resolution.withdraw(connection, allocation)


def _join(some: resolution.Resolution, others: resolution.Resolution) -> resolution.Resolution:
    return resolution.Resolution(
        some.committed | others.committed, some.never | others.never, some.withdrawn | others.withdrawn
    )
