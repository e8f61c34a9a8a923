"""Coalesces whatever is waiting into one Celery task, and tells each caller its outcome.

Group commit in front of Celery: when a slot is free, everything that may go is sent as one group. Idle, that is
a group of one sent at once; under load, groups grow by themselves while the previous one is under way.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from api.allocations.database_clock import DatabaseClock
from api.allocations.publisher import Publisher
from api.allocations.replies import Replies, Told
from api.allocations.resolver import Resolver
from api.allocations.waiting_list import Pending, WaitingList
from api.web.errors import TooManyWaitingError
from core import metrics
from core.database.connection import describe_error
from core.logging.fields import about
from core.messages import Allocation, Outcome, Reply
from core.settings.loader import Settings

logger = logging.getLogger(__name__)

_SWEEP_S = 0.1
_POLL_S = 0.05
"""The shortest wait, so that deadlines which pass one after another are handed over together."""
_HELD_S = 0.05
_PROBE_AFTER_S = 10.0
_PROBE_TIMEOUT_S = 15.0
_HELD_UP_AGAIN_AFTER_S = 0.05
_HELD_UP_AGAIN_AFTER_MAX_S = 0.5
_HELD_UP_SHARE = 4
"""A business that is held up may let one in this many of all callers wait; it alone is refused beyond."""


_ENDED = {outcome: metrics.ALLOCATIONS.labels(outcome.value) for outcome in Outcome}


@dataclass(slots=True, eq=False)
class Exchange:
    """A group under way: copies of it were sent, and some of its callers are still to be told."""

    group: list[Pending]
    undecided: list[Pending] = field(init=False)
    business_ids: set[UUID] = field(init=False)
    """The businesses of those, which take no turns meanwhile."""
    copies: dict[str, tuple[list[Pending], float]] = field(default_factory=dict)
    """By task id what was sent, and when by the event loop's clock, as long as there is no reply."""
    published: int = 0
    untouched: int = 0
    """How many copies are known to have done nothing for those who are undecided, and never will."""
    held_up_again_after_s: float = _HELD_UP_AGAIN_AFTER_S
    resend_at: float = 0.0
    timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        """Begin with nobody told."""
        self.undecided = self.group
        self.business_ids = {pending.allocation.business_id for pending in self.group}


class Dispatcher:
    """Groups, publishes, resends and resolves. All of it runs on the event loop."""

    def __init__(
        self,
        settings: Settings,
        clock: DatabaseClock,
        publisher: Publisher,
        replies: Replies,
        resolver: Resolver,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._publisher = publisher
        self._replies = replies
        self._resolver = resolver
        self._take_span = publisher.take_span
        self._waiting = WaitingList()
        self._callers = 0
        self._exchanges: set[Exchange] = set()
        """Those that take one of the places for tasks under way."""
        self._held_up: set[Exchange] = set()
        """Those of businesses that no worker could do anything for, which take none: they are tried again."""
        self._held_up_businesses: set[UUID] = set()
        self._replied_at = time.monotonic()
        self._sent_at = 0.0
        self._looking_again: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def deadline_us(self) -> int:
        """Return the deadline of an allocation that arrives now, in the database's time."""
        return self._clock.now_us() + round(self._settings.reply_timeout_s * 1_000_000)

    async def allocate(self, allocation: Allocation) -> Outcome:
        """Have an allocation carried out and return its outcome.

        `expired` means that nothing was debited and nothing will be; `failed`, that this could not be found out
        in time, and that whatever was committed after all is taken back.

        Raises:
            TooManyWaitingError: too many others wait; nothing was sent.

        """
        waiting_max = self._settings.waiting_max
        if self._callers >= waiting_max or (
            self._held_up_businesses
            and allocation.business_id in self._held_up_businesses
            and self._waiting.count_of(allocation.business_id) >= waiting_max // _HELD_UP_SHARE
        ):
            metrics.TOO_MANY_REQUESTS.labels("waiting").inc()
            raise TooManyWaitingError
        loop = asyncio.get_running_loop()
        pending = Pending(allocation, loop.create_future(), loop.time() + self._settings.reply_timeout_s)
        if self._take_span is not None:
            pending.span = self._take_span()
        self._callers += 1
        try:
            self._waiting.add(pending)
            self._send_what_may_go()
            return await pending.outcome
        except asyncio.CancelledError:
            # The server stops and answers 500 for us, so whatever is committed has to be taken back.
            await self._resolver.record(pending)
            self._start(self._resolver.resolve([pending]))
            raise
        finally:
            self._callers -= 1
            if pending.outcome.done():
                _ENDED[pending.outcome.result()].note()
                metrics.ALLOCATION_SECONDS.note(loop.time() - pending.due_at + self._settings.reply_timeout_s)

    async def sweep(self) -> None:
        """Answer, for ever, those whose deadline passes before they could be sent."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            expired = self._waiting.take_expired(loop.time())
            for pending in expired:
                pending.answer(Outcome.EXPIRED)
            if expired:
                logger.warning(
                    "%d allocations are answered 500: their deadline passed before they could be sent",
                    len(expired),
                    extra=about(allocations=_allocations(expired)),
                )

    async def probe(self, timeout_s: float) -> bool:
        """Send an empty group; tell whether a worker carried it out in time."""
        task_id = self._publisher.make_task_id()
        reply = self._replies.expect_later(task_id)
        try:
            await self._publisher.publish(task_id, [])
            is_carried_out = await asyncio.wait_for(reply, timeout_s) is not None
        except TimeoutError:
            return False
        finally:
            self._replies.forget(task_id)
        if is_carried_out:
            self._replied_at = time.monotonic()
        return is_carried_out

    async def keep_probing(self) -> None:
        """Find out, for ever, whether a worker consumes while no call tells it."""
        while True:
            await asyncio.sleep(max(_PROBE_AFTER_S - self.round_trip_age_s, 1))
            if self.round_trip_age_s >= _PROBE_AFTER_S:
                await self.probe(_PROBE_TIMEOUT_S)

    @property
    def callers(self) -> int:
        """How many wait for an outcome."""
        return self._callers

    @property
    def round_trip_age_s(self) -> float:
        """How long ago a worker last carried something out for this process."""
        return time.monotonic() - self._replied_at

    async def close(self, timeout_s: float) -> None:
        """Wait until every group is answered and resolved, for a bounded time."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_s
        while (self._exchanges or self._held_up or self._tasks) and loop.time() < give_up_at:  # noqa: ASYNC110 (once, at the end)
            await asyncio.sleep(_POLL_S)
        if left := len(self._exchanges) + len(self._held_up) + len(self._tasks):
            logger.error("%d groups were still being resolved when the process ended", left)

    def _send_what_may_go(self) -> None:
        # At most half of all callers, so that API and workers are busy at the same time: otherwise the groups of
        # one busy business become everybody and nobody by turns, and each side waits for the other.
        group_max = min(self._settings.group_max, self._callers // 2 + 1)
        while len(self._exchanges) < self._settings.in_flight_max:
            if not self._is_worth_a_task():
                return
            group = self._waiting.take(group_max)
            if not group:
                return
            exchange = Exchange(group)
            self._exchanges.add(exchange)
            self._take_step(exchange, self._send_copy)

    def _is_worth_a_task(self) -> bool:
        """Tell whether those who wait make a group of their own, behind one that is under way.

        While a worker is busy with that, few are better sent later, as many; but not for long: it may be stuck.
        """
        loop = asyncio.get_running_loop()
        held_until = self._sent_at + _HELD_S
        if not self._exchanges or self._waiting.count >= self._callers // 3 or loop.time() >= held_until:
            return True
        if self._waiting.count and self._looking_again is None:
            self._looking_again = loop.call_at(held_until, self._look_again)
        return False

    def _look_again(self) -> None:
        self._looking_again = None
        self._send_what_may_go()

    def _take_step(self, exchange: Exchange, step: Callable[..., None], *arguments: Any) -> None:
        """Go on with a group; whatever breaks, every caller gets a certain answer."""
        try:
            step(exchange, *arguments)
        except Exception as error:  # noqa: BLE001 (the callers wait for one of us)
            undecided = [pending for pending in exchange.undecided if not pending.outcome.done()]
            logger.error(
                "a group of %d could not be exchanged: %s",
                len(exchange.group),
                describe_error(error),
                extra=about(error=error, allocations=_allocations(undecided)),
            )
            self._start(self._resolver.resolve(undecided))
            self._forget(exchange)
            asyncio.get_running_loop().call_soon(self._send_what_may_go)

    def _send_copy(self, exchange: Exchange) -> None:
        """Send what is undecided of a group, for the first time or again."""
        loop = asyncio.get_running_loop()
        task_id = self._publisher.make_task_id()
        undecided = exchange.undecided
        now = loop.time()
        exchange.copies[task_id] = (undecided, now)
        exchange.published += 1
        exchange.resend_at = now + self._settings.resend_after_s
        self._sent_at = now
        self._replies.expect(task_id, partial(self._take_step, exchange, self._receive, task_id))
        spans = [pending.span for pending in undecided if pending.span is not None]
        self._publisher.begin(task_id, _allocations(undecided), spans)
        if exchange.published == 1:
            metrics.GROUP_ALLOCATIONS.observe(len(undecided))
            arrived_before_s = now + self._settings.reply_timeout_s
            metrics.WAITING_SECONDS.observe_all([arrived_before_s - pending.due_at for pending in undecided])
        elif exchange in self._held_up:
            metrics.HELD_UP_RESENDS.inc()
        else:
            metrics.RESENDS.inc()
            logger.warning(
                "a group of %d is sent again: nobody answered for all of it",
                len(undecided),
                extra=about(allocations=_allocations(undecided), task_id=task_id, copy=exchange.published),
            )
        self._wait(exchange)

    def _wait(self, exchange: Exchange) -> None:
        """Go on when a group may be sent again, or when the next of its deadlines passes."""
        loop = asyncio.get_running_loop()
        until = min(exchange.resend_at, *(pending.due_at for pending in exchange.undecided))
        exchange.timer = loop.call_at(max(until, loop.time() + _POLL_S), self._take_step, exchange, self._go_on)

    def _go_on(self, exchange: Exchange) -> None:
        exchange.undecided = self._hand_over(exchange.undecided)
        if not exchange.undecided:
            self._end(exchange)
            return
        self._release_decided(exchange)
        if asyncio.get_running_loop().time() >= exchange.resend_at:
            self._send_copy(exchange)
        else:
            self._wait(exchange)
        self._send_what_may_go()

    def _receive(self, exchange: Exchange, task_id: str, reply: Told) -> None:
        """Tell callers what a worker answered, and send the next group before they go on."""
        sent, sent_at = exchange.copies.pop(task_id)
        metrics.ROUND_TRIP_SECONDS.observe(asyncio.get_running_loop().time() - sent_at)
        if reply is None:
            logger.warning(
                "a worker could not carry out a group of %d",
                len(sent),
                extra=about(allocations=_allocations(sent), task_id=task_id),
            )
        else:  # a worker that drops what we send is none
            self._replied_at = time.monotonic()
        self._answer(sent, reply, is_only_copy=exchange.published - exchange.untouched == 1)
        exchange.undecided = self._hand_over(exchange.undecided)
        if not exchange.undecided:
            self._end(exchange)
            return
        self._release_decided(exchange)
        if reply is not None and _left_untouched(exchange.undecided, sent, reply):
            exchange.untouched += 1
            if not exchange.copies:
                self._try_again_later(exchange)
        self._send_what_may_go()

    def _release_decided(self, exchange: Exchange) -> None:
        """Let the businesses of an exchange take turns again whose callers all have been told."""
        undecided = {pending.allocation.business_id for pending in exchange.undecided}
        if decided := exchange.business_ids - undecided:
            exchange.business_ids = undecided
            self._waiting.release(decided)
            self._note_held_up()

    def _note_held_up(self) -> None:
        if self._held_up or self._held_up_businesses:
            self._held_up_businesses = {id_ for each in self._held_up for id_ in each.business_ids}

    def _try_again_later(self, exchange: Exchange) -> None:
        """Make room for others: no worker could do anything for the businesses that are left of an exchange.

        Somebody holds their rows, say. They are tried again soon, then less often, and take no place meanwhile.
        """
        self._exchanges.discard(exchange)
        if exchange not in self._held_up:
            logger.warning(
                "a group of %d is sent again: no worker could carry out any of it",
                len(exchange.undecided),
                extra=about(allocations=_allocations(exchange.undecided), copy=exchange.published + 1),
            )
        self._held_up.add(exchange)
        self._note_held_up()
        exchange.resend_at = asyncio.get_running_loop().time() + exchange.held_up_again_after_s
        exchange.held_up_again_after_s = min(exchange.held_up_again_after_s * 2, _HELD_UP_AGAIN_AFTER_MAX_S)
        if exchange.timer is not None:
            exchange.timer.cancel()
        self._wait(exchange)

    def _end(self, exchange: Exchange) -> None:
        self._forget(exchange)
        self._send_what_may_go()

    def _forget(self, exchange: Exchange) -> None:
        """Let the businesses of a group take turns again; later replies to it are nobody's."""
        if exchange.timer is not None:
            exchange.timer.cancel()
        for task_id in exchange.copies:
            self._replies.forget(task_id)
        self._exchanges.discard(exchange)
        self._held_up.discard(exchange)
        self._note_held_up()
        self._waiting.release(exchange.business_ids)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answer(self, sent: list[Pending], reply: Told, *, is_only_copy: bool) -> None:
        """Answer callers from a worker's reply.

        A refusal is certain while only one copy of the group was ever sent, besides copies that are known to have
        done nothing. Otherwise another copy may still pay (after a top-up, say), so the caller is told at the
        deadline, when that is resolved.
        """
        if reply is None or len(reply.outcomes) != len(sent):
            return
        if Outcome.EXPIRED in reply.outcomes:
            self._clock.doubt()
        for pending, outcome in zip(sent, reply.outcomes, strict=True):
            if outcome is Outcome.FAILED:
                continue
            if is_only_copy or outcome in {Outcome.ALLOCATED, Outcome.REPLAYED, Outcome.EXPIRED}:
                pending.answer(outcome)
            else:
                pending.refusal = outcome

    def _hand_over(self, undecided: list[Pending]) -> list[Pending]:
        """Hand those that cannot be answered by a reply any more over to resolving; return the others."""
        now = asyncio.get_running_loop().time()
        due: list[Pending] = []
        others: list[Pending] = []
        for pending in undecided:
            if not pending.outcome.done():
                is_due = pending.refusal is not None or pending.due_at <= now
                (due if is_due else others).append(pending)
        if due:
            self._start(self._resolver.resolve(due))
        return others


def _left_untouched(undecided: list[Pending], sent: list[Pending], reply: Reply) -> bool:
    """Tell whether it is certain that a copy did nothing for any of those who are undecided, nor ever will."""
    if len(reply.outcomes) != len(sent):
        return False
    untouched = {id(sent[position]) for position in reply.untouched if 0 <= position < len(sent)}
    return all(id(pending) in untouched for pending in undecided)


def _allocations(group: list[Pending]) -> list[Allocation]:
    return [pending.allocation for pending in group]
