"""Settling: at the deadline, finding out for certain, so that a 500 never costs a cent."""

import asyncio
import logging

from api.clock import DatabaseClock
from api.waiting import Pending
from core import settlement
from core.database import Database, describe_error
from core.messages import Allocation, Outcome

logger = logging.getLogger(__name__)

_AGAIN_AFTER_S = 0.1
_AGAIN_IN_BACKGROUND_AFTER_S = 1.0


class Settler:
    """Answers those for whom no worker's reply came, from the history."""

    def __init__(self, database: Database, clock: DatabaseClock, *, timeout_s: float) -> None:
        self._database = database
        self._clock = clock
        self._timeout_s = timeout_s

    async def settle(self, due: list[Pending]) -> None:
        """Wait for the deadlines, then ask the database until everything is certain.

        While the database is out of reach for longer than the time-out, callers are answered 500 and settling
        goes on in the background; what turns out to be committed after all is reversed.
        """
        loop = asyncio.get_running_loop()
        last_deadline_us = max(pending.allocation.deadline_us for pending in due)
        await asyncio.sleep(max(0.0, (last_deadline_us - self._clock.now_us()) / 1_000_000))
        give_up_at = loop.time() + self._timeout_s
        giving_up = loop.call_at(give_up_at, _answer_failed, due)
        while due := await self._settle_once(due):
            is_late = loop.time() >= give_up_at
            await asyncio.sleep(_AGAIN_IN_BACKGROUND_AFTER_S if is_late else _AGAIN_AFTER_S)
        if giving_up.when() <= loop.time():
            logger.warning("allocations that were answered 500 unsettled are settled now")
        giving_up.cancel()

    async def _settle_once(self, due: list[Pending]) -> list[Pending]:
        """Answer what is certain; return the others."""
        try:
            found = await asyncio.to_thread(self._look_up, [pending.allocation for pending in due])
            unsettled = []
            for pending in due:
                id_ = pending.allocation.id
                if id_ in found.committed:
                    await self._settle_committed(pending, found.committed[id_])
                elif id_ in found.never:
                    pending.answer(pending.refusal or Outcome.EXPIRED)
                else:
                    unsettled.append(pending)
        except Exception as error:  # noqa: BLE001 (nothing may end the settling)
            logger.debug("%d allocations could not be settled yet: %s", len(due), describe_error(error))
            return due  # those that were answered are answered the same again
        return unsettled

    async def _settle_committed(self, pending: Pending, outcome: Outcome) -> None:
        """Answer 201; whoever was told 500 gets the money back."""
        pending.answer(outcome)
        was_told_500 = not pending.outcome.cancelled() and pending.outcome.result() is Outcome.FAILED
        if was_told_500 and await asyncio.to_thread(self._withdraw, pending.allocation):
            logger.error("allocation %s was answered 500 but committed; it is reversed", pending.allocation.id)

    def _look_up(self, allocations: list[Allocation]) -> settlement.Settlement:
        with self._database.transaction() as connection:
            return settlement.settle(connection, allocations)

    def _withdraw(self, allocation: Allocation) -> bool:
        with self._database.transaction() as connection:
            return settlement.withdraw(connection, allocation)


def _answer_failed(due: list[Pending]) -> None:
    """Answer 500, also while an attempt to settle is under way."""
    logger.warning("%d allocations are answered 500 unsettled; settling goes on in the background", len(due))
    for pending in due:
        pending.answer(Outcome.FAILED)
