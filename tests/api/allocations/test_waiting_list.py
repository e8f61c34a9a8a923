"""The waiting list: whose turn it is, and that nobody is lost or taken twice."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from api.allocations.waiting_list import Pending, WaitingList
from core.ids import new_id
from core.messages import Allocation, Outcome


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    opened = asyncio.new_event_loop()
    yield opened
    opened.close()


def make_pending(loop: asyncio.AbstractEventLoop, business: int, deadline_us: int = 0) -> Pending:
    allocation = Allocation(new_id(), UUID(int=business), UUID(int=0), "user@example.com", 1, deadline_us)
    return Pending(allocation, loop.create_future(), due_at=deadline_us)


def fill(waiting: WaitingList, loop: asyncio.AbstractEventLoop, businesses: str) -> list[Pending]:
    added = [make_pending(loop, ord(business)) for business in businesses]
    for pending in added:
        waiting.add(pending)
    return added


def names(group: list[Pending]) -> str:
    return "".join(chr(pending.allocation.business_id.int) for pending in group)


def ids(businesses: str) -> set[UUID]:
    return {UUID(int=ord(business)) for business in businesses}


def test_nobody_waits_at_first() -> None:
    assert WaitingList().take(10) == []
    assert WaitingList().take_expired(2**63) == []


def test_one_business_is_taken_in_order_of_arrival(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    added = fill(waiting, loop, "aaaa")
    assert waiting.take(10) == added


def test_a_group_has_at_most_group_max(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    added = fill(waiting, loop, "aaaaa")
    first = waiting.take(2)
    waiting.release(ids("a"))
    second = waiting.take(2)
    waiting.release(ids("a"))
    assert [*first, *second, *waiting.take(2)] == added
    assert (len(first), len(second)) == (2, 2)


def test_a_flood_leaves_room_for_the_others(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    fill(waiting, loop, "a" * 1000 + "bcd")
    group = names(waiting.take(8))
    assert Counter(group) == {"a": 5, "b": 1, "c": 1, "d": 1}


def test_two_floods_share_a_group(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    fill(waiting, loop, "a" * 100 + "b" * 100)
    assert Counter(names(waiting.take(10))) == {"a": 5, "b": 5}


def test_room_that_the_others_do_not_need_is_used(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    fill(waiting, loop, "abc" + "d" * 100)
    assert Counter(names(waiting.take(20))) == {"a": 1, "b": 1, "c": 1, "d": 17}


def test_more_businesses_than_fit_take_turns(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    fill(waiting, loop, "aabbccddee")
    groups = []
    for _ in range(5):
        groups.append(names(waiting.take(2)))
        waiting.release(ids(groups[-1]))
    assert groups == ["ab", "cd", "ea", "bc", "de"]


def test_a_busy_business_is_not_taken(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    fill(waiting, loop, "aab")
    assert names(waiting.take(2)) == "ab"
    fill(waiting, loop, "aabc")
    assert names(waiting.take(10)) == "c"
    assert waiting.take(10) == []


def test_a_released_business_is_taken_again(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    fill(waiting, loop, "ab")
    waiting.take(10)
    fill(waiting, loop, "aabb")
    waiting.release(ids("a"))
    assert names(waiting.take(10)) == "aa"
    waiting.release(ids("b"))
    assert names(waiting.take(10)) == "bb"


def test_a_released_business_goes_behind_those_who_waited(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    fill(waiting, loop, "aaabc")
    assert names(waiting.take(1)) == "a"
    waiting.release(ids("a"))
    assert names(waiting.take(1)) == "b"


def test_releasing_a_business_that_nobody_waits_for_is_nothing(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    fill(waiting, loop, "a")
    waiting.take(1)
    waiting.release(ids("a"))
    assert waiting.take(1) == []
    fill(waiting, loop, "a")
    assert names(waiting.take(1)) == "a"


def test_expired_ones_are_taken_out_also_of_a_busy_business(loop: asyncio.AbstractEventLoop) -> None:
    waiting = WaitingList()
    sent = make_pending(loop, 1, deadline_us=5)
    waiting.add(sent)
    assert waiting.take(1) == [sent]
    late = [make_pending(loop, business, deadline_us=10) for business in (1, 2, 2, 3)]
    in_time = [make_pending(loop, business, deadline_us=20) for business in (1, 3)]
    for pending in late + in_time:
        waiting.add(pending)
    assert waiting.take_expired(10) == []
    assert sorted(waiting.take_expired(11), key=id) == sorted(late, key=id)
    assert waiting.take(10) == [in_time[1]]
    waiting.release([UUID(int=1)])
    assert waiting.take(10) == [in_time[0]]


def test_only_the_first_answer_counts(loop: asyncio.AbstractEventLoop) -> None:
    pending = make_pending(loop, 1)
    pending.answer(Outcome.ALLOCATED)
    pending.answer(Outcome.FAILED)
    assert pending.outcome.result() is Outcome.ALLOCATED


def test_a_caller_who_has_gone_is_not_answered(loop: asyncio.AbstractEventLoop) -> None:
    pending = make_pending(loop, 1)
    pending.outcome.cancel()
    pending.answer(Outcome.ALLOCATED)
    assert pending.outcome.cancelled()


class WaitingListMachine(RuleBasedStateMachine):
    """Any order of arrivals, groups, returns and deadlines."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.waiting = WaitingList()
        self.inside: dict[int, list[Pending]] = {}
        self.in_flight: list[set[UUID]] = []
        self.now_us = 0

    @rule(business=st.integers(0, 5), count=st.integers(1, 5))
    def add(self, business: int, count: int) -> None:
        for _ in range(count):
            self.now_us += 1
            pending = make_pending(self.loop, business, deadline_us=self.now_us)
            self.waiting.add(pending)
            self.inside.setdefault(business, []).append(pending)

    @rule(group_max=st.integers(1, 12))
    def take(self, group_max: int) -> None:
        group = self.waiting.take(group_max)
        businesses = {pending.allocation.business_id for pending in group}
        busy = set().union(*self.in_flight)
        assert not businesses & busy
        may_go = {business: len(queue) for business, queue in self.inside.items() if UUID(int=business) not in busy}
        assert len(group) == min(group_max, sum(may_go.values()))
        assert len(businesses) == min(group_max, len(may_go))
        self.remove(group)
        if group:
            self.in_flight.append(businesses)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        businesses = data.draw(st.sampled_from(self.in_flight))
        self.in_flight.remove(businesses)
        self.waiting.release(businesses)

    @rule(age_us=st.integers(0, 10))
    def expire(self, age_us: int) -> None:
        now_us = self.now_us - age_us
        expired = self.waiting.take_expired(now_us)
        due = [
            pending for queue in self.inside.values() for pending in queue if pending.allocation.deadline_us < now_us
        ]
        assert Counter(map(id, expired)) == Counter(map(id, due))
        self.remove(expired)

    def remove(self, taken: list[Pending]) -> None:
        """Check that those taken were at the head of their businesses' queues, in order."""
        for pending in taken:
            business = pending.allocation.business_id.int
            assert self.inside[business].pop(0) is pending
            if not self.inside[business]:
                del self.inside[business]

    @invariant()
    def no_business_is_in_two_groups(self) -> None:
        assert sum(map(len, self.in_flight)) == len(set().union(*self.in_flight))

    @invariant()
    def everybody_is_counted(self) -> None:
        assert self.waiting.count == sum(map(len, self.inside.values()))

    def teardown(self) -> None:
        for businesses in self.in_flight:
            self.waiting.release(businesses)
        self.in_flight = []
        self.take(100_000)
        assert self.inside == {}
        self.loop.close()


TestWaitingList = WaitingListMachine.TestCase
