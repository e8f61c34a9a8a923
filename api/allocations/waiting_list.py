"""The callers that wait for their turn, business by business."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from core.messages import Allocation, Outcome


@dataclass(slots=True, eq=False)
class Pending:
    """An allocation whose caller waits for the outcome."""

    allocation: Allocation
    outcome: asyncio.Future[Outcome]
    due_at: float
    """The deadline by the event loop's clock, for all waiting in this process: that clock never steps."""
    refusal: Outcome | None = None
    """What a worker answered while another copy was still under way: true only if that copy does nothing."""

    span: Any = None
    """The span of the caller's request, where there are traces."""

    def answer(self, outcome: Outcome) -> None:
        """Tell the caller, unless it has been told or has gone."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class WaitingList:
    """Gives out groups: businesses take turns, and one whose group is under way waits for its return."""

    def __init__(self) -> None:
        self._by_business: dict[UUID, deque[Pending]] = {}
        self._turns: deque[UUID] = deque()
        self._busy: set[UUID] = set()
        self.count = 0
        """How many wait, whether or not they may go."""

    def add(self, pending: Pending) -> None:
        """Let a caller wait."""
        business_id = pending.allocation.business_id
        queue = self._by_business.get(business_id)
        if queue is None:
            queue = self._by_business[business_id] = deque()
            if business_id not in self._busy:
                self._turns.append(business_id)
        queue.append(pending)
        self.count += 1

    def count_of(self, business_id: UUID) -> int:
        """Return how many wait of a business."""
        return len(self._by_business.get(business_id, ()))

    def take(self, group_max: int) -> list[Pending]:
        """Take a group of at most `group_max` over all businesses that may go; they are busy from now on."""
        group: list[Pending] = []
        taken: set[UUID] = set()
        while self._turns and len(group) < group_max:  # a round; the next ones fill what others left free
            share = max(1, (group_max - len(group)) // len(self._turns))
            for _ in range(min(len(self._turns), group_max - len(group))):
                business_id = self._turns.popleft()
                queue = self._by_business[business_id]
                # Whoever was answered meanwhile has gone, and nothing was sent for them.
                before = len(queue)
                popped = [pending for pending in _pop(queue, share) if not pending.outcome.done()]
                self.count -= before - len(queue)
                group.extend(popped)
                if popped:
                    taken.add(business_id)
                if queue:
                    self._turns.append(business_id)
                else:
                    del self._by_business[business_id]
        self._busy |= taken
        if taken:
            self._turns = deque(id_ for id_ in self._turns if id_ not in taken)
        return group

    def release(self, business_ids: Iterable[UUID]) -> None:
        """Let businesses take turns again, behind the others."""
        for business_id in business_ids:
            self._busy.discard(business_id)
            if business_id in self._by_business:
                self._turns.append(business_id)

    def take_expired(self, now: float) -> list[Pending]:
        """Remove and return those whose deadline passed while they waited (they were never sent)."""
        expired: list[Pending] = []
        for business_id, queue in list(self._by_business.items()):
            while queue and queue[0].due_at < now:
                expired.append(queue.popleft())
                self.count -= 1
            if not queue:
                del self._by_business[business_id]
        if expired:
            self._turns = deque(id_ for id_ in self._turns if id_ in self._by_business)
        return expired


def _pop(queue: deque[Pending], count: int) -> Iterator[Pending]:
    for _ in range(min(count, len(queue))):
        yield queue.popleft()
