"""Resolving: at the deadline, finding out for certain, so that a 500 never costs a cent."""

import asyncio
import logging
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID

from api.allocations.waiting_list import Pending
from core import metrics
from core.database.connection import DATABASE_ERRORS, Database, describe_error, is_connection_error
from core.ids import IdKind, format_id
from core.ledger import resolution
from core.logging.fields import about
from core.messages import Allocation, Outcome

logger = logging.getLogger(__name__)

_THREADS = 2
_AGAIN_AFTER_S = 0.1
_AGAIN_IN_BACKGROUND_AFTER_S = 1.0
_AGAIN_IN_BACKGROUND_AFTER_MAX_S = 30.0


class Resolver:
    """Answers those for whom no worker's reply came, from the history."""

    def __init__(self, database: Database, *, timeout_s: float) -> None:
        self._database = database
        self._timeout_s = timeout_s
        # Threads of its own: resolving must not queue behind look-ups of keys.
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolve")
        self.answered_unresolved: set[UUID] = set()
        """Ids of allocations that were answered 500 and are not resolved yet."""

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

    def close(self) -> None:
        """Let go of the threads, and name what nobody will resolve now."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for id_ in self.answered_unresolved:
            name = format_id(IdKind.TRANSACTION, id_)
            extra = about(allocation_id=name, always=True)
            logger.error("allocation %s was answered 500 and is left unresolved", name, extra=extra)

    def _give_up(self, pending: Pending) -> None:
        """Answer 500, also while an attempt to resolve is under way."""
        if not pending.outcome.done():
            id_ = pending.allocation.id
            self.answered_unresolved.add(id_)
            metrics.RESOLUTIONS.labels("unknown").inc()
            pending.answer(Outcome.FAILED)
            name, extra = format_id(IdKind.TRANSACTION, id_), about(allocations=[pending.allocation])
            logger.warning("allocation %s is answered 500 before it is resolved", name, extra=extra)

    async def _resolve_once(self, due: list[Pending]) -> set[UUID]:
        """Answer what is certain; return the ids of that."""
        loop = asyncio.get_running_loop()
        resolved: set[UUID] = set()
        try:
            found = await loop.run_in_executor(self._executor, self._look_up, [each.allocation for each in due])
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
            elif id_ in found.committed and await self._resolve_committed(pending, found.committed[id_]):
                resolved.add(id_)
                metrics.RESOLUTIONS.labels("committed").inc()
        self.answered_unresolved -= resolved
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

    def _look_up(self, allocations: list[Allocation]) -> resolution.Resolution:
        """Ask for all at once; where that fails, business by business, since one row may be out of reach alone."""
        try:
            return self._resolve_in_transaction(allocations)
        except DATABASE_ERRORS as error:
            business_ids = {allocation.business_id for allocation in allocations}
            if len(business_ids) == 1 or is_connection_error(error):
                raise
        found = resolution.Resolution({}, set())
        for business_id in business_ids:
            with suppress(*DATABASE_ERRORS):
                of_one = self._resolve_in_transaction([each for each in allocations if each.business_id == business_id])
                found.committed.update(of_one.committed)
                found.never.update(of_one.never)
        return found

    def _resolve_in_transaction(self, allocations: list[Allocation]) -> resolution.Resolution:
        with self._database.transaction() as connection:
            return resolution.resolve(connection, allocations)

    def _withdraw(self, allocation: Allocation) -> bool:
        with self._database.transaction() as connection:
            return resolution.withdraw(connection, allocation)
