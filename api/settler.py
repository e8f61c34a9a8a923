"""Settling: at the deadline, finding out for certain, so that a 500 never costs a cent."""

import asyncio
import logging
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID

from api.waiting import Pending
from core import metrics, settlement
from core.database import DATABASE_ERRORS, Database, describe_error, is_connection_error
from core.ids import IdKind, format_id
from core.logs import about
from core.messages import Allocation, Outcome

logger = logging.getLogger(__name__)

_THREADS = 2
_AGAIN_AFTER_S = 0.1
_AGAIN_IN_BACKGROUND_AFTER_S = 1.0
_AGAIN_IN_BACKGROUND_AFTER_MAX_S = 30.0


class Settler:
    """Answers those for whom no worker's reply came, from the history."""

    def __init__(self, database: Database, *, timeout_s: float) -> None:
        self._database = database
        self._timeout_s = timeout_s
        # Threads of its own: settling must not queue behind look-ups of keys.
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="settle")
        self.answered_unsettled: set[UUID] = set()
        """Ids of allocations that were answered 500 and are not settled yet."""

    async def settle(self, unsettled: list[Pending]) -> None:
        """Wait for each deadline, then ask the database until each is certain.

        While the database is out of reach for longer than the time-out, callers are answered 500 and settling
        goes on in the background; what turns out to be committed after all is taken back.
        """
        loop = asyncio.get_running_loop()
        for pending in unsettled:
            loop.call_at(pending.due_at + self._timeout_s, self._give_up, pending)
        again_after_s = _AGAIN_AFTER_S
        while unsettled:
            now = loop.time()
            due = [pending for pending in unsettled if pending.due_at <= now]
            if due:
                settled = await self._settle_once(due)
                unsettled = [pending for pending in unsettled if pending.allocation.id not in settled]
                if not settled and all(pending.outcome.done() for pending in unsettled):
                    again_after_s = min(
                        max(again_after_s * 2, _AGAIN_IN_BACKGROUND_AFTER_S), _AGAIN_IN_BACKGROUND_AFTER_MAX_S
                    )
                await asyncio.sleep(again_after_s if unsettled else 0)
            else:
                await asyncio.sleep(min(pending.due_at for pending in unsettled) - now)

    def close(self) -> None:
        """Let go of the threads, and name what nobody will settle now."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for id_ in self.answered_unsettled:
            name = format_id(IdKind.TRANSACTION, id_)
            extra = about(allocation_id=name, always=True)
            logger.error("allocation %s was answered 500 and is left unsettled", name, extra=extra)

    def _give_up(self, pending: Pending) -> None:
        """Answer 500, also while an attempt to settle is under way."""
        if not pending.outcome.done():
            id_ = pending.allocation.id
            self.answered_unsettled.add(id_)
            metrics.SETTLES.labels("unknown").inc()
            pending.answer(Outcome.FAILED)
            name, extra = format_id(IdKind.TRANSACTION, id_), about(allocations=[pending.allocation])
            logger.warning("allocation %s is answered 500 before it is settled", name, extra=extra)

    async def _settle_once(self, due: list[Pending]) -> set[UUID]:
        """Answer what is certain; return the ids of that."""
        loop = asyncio.get_running_loop()
        settled: set[UUID] = set()
        try:
            found = await loop.run_in_executor(self._executor, self._look_up, [each.allocation for each in due])
        except Exception as error:  # noqa: BLE001 (nothing may end the settling)
            extra = about(error=error, allocations=[each.allocation for each in due])
            logger.warning("%d allocations could not be settled yet: %s", len(due), describe_error(error), extra=extra)
            return settled
        for pending in due:
            id_ = pending.allocation.id
            if id_ in found.never:
                pending.answer(pending.refusal or Outcome.EXPIRED)
                settled.add(id_)
                metrics.SETTLES.labels("never").inc()
            elif id_ in found.committed and await self._settle_committed(pending, found.committed[id_]):
                settled.add(id_)
                metrics.SETTLES.labels("committed").inc()
        self.answered_unsettled -= settled
        self._log_settled([each for each in due if each.allocation.id in settled])
        return settled

    def _log_settled(self, settled: list[Pending]) -> None:
        by_outcome: dict[Outcome, list[Allocation]] = defaultdict(list)
        for pending in settled:
            if not pending.outcome.cancelled():
                by_outcome[pending.outcome.result()].append(pending.allocation)
        for outcome, allocations in by_outcome.items():
            extra = about(allocations=allocations, outcome=outcome)
            logger.warning("%d allocations were settled at their deadline: %s", len(allocations), outcome, extra=extra)

    async def _settle_committed(self, pending: Pending, outcome: Outcome) -> bool:
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
        except Exception as error:  # noqa: BLE001 (nothing may end the settling)
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

    def _look_up(self, allocations: list[Allocation]) -> settlement.Settlement:
        """Ask for all at once; where that fails, business by business, since one row may be out of reach alone."""
        try:
            return self._settle_in_transaction(allocations)
        except DATABASE_ERRORS as error:
            business_ids = {allocation.business_id for allocation in allocations}
            if len(business_ids) == 1 or is_connection_error(error):
                raise
        found = settlement.Settlement({}, set())
        for business_id in business_ids:
            with suppress(*DATABASE_ERRORS):
                of_one = self._settle_in_transaction([each for each in allocations if each.business_id == business_id])
                found.committed.update(of_one.committed)
                found.never.update(of_one.never)
        return found

    def _settle_in_transaction(self, allocations: list[Allocation]) -> settlement.Settlement:
        with self._database.transaction() as connection:
            return settlement.settle(connection, allocations)

    def _withdraw(self, allocation: Allocation) -> bool:
        with self._database.transaction() as connection:
            return settlement.withdraw(connection, allocation)
