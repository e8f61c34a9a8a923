"""A model check of the isolation of businesses: whatever is held, calls of all others are answered soon.

The dispatcher and the worker's patience are the product's. Broker, worker and time are modelled: the worker carries out
one group after another, as `workers/tasks/allocations.py` does, and time passes only while nobody has anything to do.
"""

import asyncio
import selectors
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api.allocations.dispatcher import Dispatcher
from api.allocations.waiting_list import Pending
from core.ids import new_id
from core.messages import Allocation, Outcome, Reply
from core.settings.loader import Settings
from tests.servers import HASH_SECRET
from workers.patience import Patience

ANSWERED_WITHIN_S = 1.5
_DELIVERY_S = 0.002
_TASK_S = 0.003
_BRIEF_WAIT_S = 0.005
_API_KEY_ID = new_id()


class ModelTime(selectors.DefaultSelector):
    """A selector that lets time pass at once, where it would be waited for."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += max(timeout or 0.0, 0.0)
        return super().select(0)


class ModelLoop(asyncio.SelectorEventLoop):
    """An event loop by whose clock no time passes while anything is to be done."""

    def __init__(self) -> None:
        self._model_time = ModelTime()
        super().__init__(self._model_time)

    def time(self) -> float:
        return self._model_time.now_s


@dataclass(frozen=True)
class Hold:
    """Rows of a business that somebody holds for a while; or a business of which PostgreSQL refuses every write."""

    business: int
    since_s: float
    until_s: float
    is_refused: bool = False


@dataclass
class World:
    """What lies between the API processes and the database, and one worker."""

    holds: list[tuple[UUID, Hold]]
    clock: Callable[[], float]
    wait_s: float
    queue: asyncio.Queue[tuple["Broker", str, list[Allocation]]] = field(default_factory=asyncio.Queue)

    async def work(self) -> None:
        """Be the worker, for ever."""
        patience = Patience(self.wait_s, self.clock)
        while True:
            broker, task_id, allocations = await self.queue.get()
            reply = await self._carry_out(patience, allocations)
            asyncio.get_running_loop().call_later(_DELIVERY_S, broker.tell, task_id, reply)

    async def _carry_out(self, patience: Patience, allocations: list[Allocation]) -> Reply:
        business_ids = list(dict.fromkeys(allocation.business_id for allocation in allocations))
        known = [id_ for id_ in business_ids if patience.is_known_as_held(id_)]
        await asyncio.sleep(_TASK_S)
        held = [id_ for id_ in business_ids if id_ not in known and self._hold_of(id_)]
        give_up_at = self.clock() + patience.left_s()
        untouched: set[UUID] = set()
        for number, id_ in enumerate([*held, *known]):
            until = self.clock() + _BRIEF_WAIT_S
            if number < len(held):
                until = max(until, self.clock() + (give_up_at - self.clock()) / (len(held) - number))
            hold = self._hold_of(id_)
            if hold is not None and not hold.is_refused:
                await asyncio.sleep(min(until, hold.until_s) - self.clock())
                hold = self._hold_of(id_)
                if hold is not None:
                    patience.note_vain_wait(id_)
            if hold is not None:
                untouched.add(id_)
            await asyncio.sleep(_TASK_S)
        outcomes = [Outcome.FAILED if each.business_id in untouched else Outcome.ALLOCATED for each in allocations]
        return Reply(outcomes, [n for n, each in enumerate(allocations) if each.business_id in untouched])

    def _hold_of(self, business_id: UUID) -> Hold | None:
        now = self.clock()
        return next(
            (hold for id_, hold in self.holds if id_ == business_id and hold.since_s <= now < hold.until_s), None
        )


class Broker:
    """What a dispatcher sees of publisher, replies, clock and resolver."""

    take_span = None

    def __init__(self, world: World) -> None:
        self._world = world
        self._expected: dict[str, Callable[[Reply | None], None]] = {}

    def now_us(self) -> int:
        return round(self._world.clock() * 1_000_000)

    def make_task_id(self) -> str:
        return new_id().hex

    def begin(self, task_id: str, allocations: Sequence[Allocation], _: object = ()) -> Future[None]:
        asyncio.get_running_loop().call_later(
            _DELIVERY_S, self._world.queue.put_nowait, (self, task_id, list(allocations))
        )
        return Future()

    def expect(self, task_id: str, tell: Callable[[Reply | None], None]) -> None:
        self._expected[task_id] = tell

    def forget(self, task_id: str) -> None:
        self._expected.pop(task_id, None)

    def tell(self, task_id: str, reply: Reply) -> None:
        if (tell := self._expected.pop(task_id, None)) is not None:
            tell(reply)

    async def resolve(self, unresolved: list[Pending]) -> None:
        for pending in unresolved:
            await asyncio.sleep(pending.due_at - self._world.clock())
            pending.answer(pending.refusal or Outcome.EXPIRED)


@dataclass(frozen=True)
class Call:
    at_s: float
    business: int
    api: int


def run_model(
    limits: Settings, holds: list[Hold], calls: list[Call], businesses: int
) -> list[tuple[Call, Outcome, float]]:
    """Return each call's outcome, and how long it took."""
    loop = ModelLoop()
    ids = [new_id() for _ in range(businesses)]
    world = World([(ids[hold.business], hold) for hold in holds], loop.time, limits.held_row_wait_s)

    async def make_call(dispatcher: Dispatcher, call: Call) -> tuple[Call, Outcome, float]:
        await asyncio.sleep(call.at_s)
        allocation = Allocation(new_id(), ids[call.business], _API_KEY_ID, "a@example.com", 1, dispatcher.deadline_us())
        outcome = await dispatcher.allocate(allocation)
        return call, outcome, loop.time() - call.at_s

    async def run() -> list[tuple[Call, Outcome, float]]:
        brokers: list[Any] = [Broker(world), Broker(world)]
        dispatchers = [Dispatcher(limits, broker, broker, broker, broker) for broker in brokers]
        endless = [asyncio.create_task(work) for work in (world.work(), *(each.sweep() for each in dispatchers))]
        answers = await asyncio.gather(*(make_call(dispatchers[call.api], call) for call in calls))
        for task in endless:
            task.cancel()
        await asyncio.gather(*endless, return_exceptions=True)
        return list(answers)

    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def make_limits(**others: Any) -> Settings:
    return Settings(database_url="postgresql://", redis_url="redis://", hash_secret=HASH_SECRET, **others)


HELD_MAX = 3
FREE = 3
times_s = st.integers(0, 16).map(lambda halves: halves / 2)  # so that many come at once
holds = st.builds(
    lambda business, since_s, for_s, is_refused: Hold(business, since_s, since_s + for_s, is_refused),
    st.integers(0, HELD_MAX - 1),
    st.sampled_from([0.0, 0.0, 1.0, 3.5]),
    st.sampled_from([30.0, 8.0, 1.0, 0.1]),
    st.booleans(),
)
calls = st.lists(
    st.builds(Call, times_s, st.integers(0, HELD_MAX + FREE - 1), st.integers(0, 1)), min_size=1, max_size=100
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(holds, min_size=1, max_size=6), calls, st.sampled_from([1, 2]), st.sampled_from([1, 2, 500]))
@example(  # one that is held and one that is not, in the same group
    [Hold(0, 0, 30)],
    [*(Call(0, business, 0) for business in (3, 4, 0, 5)), Call(1, 5, 0), Call(1.5, 5, 0)],
    2,
    500,
)
@example(
    [Hold(0, 0, 30)],
    [Call(n / 10, 0, n % 2) for n in range(100)] + [Call(n / 4, HELD_MAX, n % 2) for n in range(48)],
    2,
    500,
)
@example(
    [Hold(business, 0, 30) for business in range(HELD_MAX)],
    [Call(n / 20, n % (HELD_MAX + 1), n // 4 % 2) for n in range(240)],
    2,
    1,
)
@example(
    [Hold(business, 0, 30, is_refused=business > 0) for business in range(HELD_MAX)],
    [Call(n / 10, n % (HELD_MAX + 1), 0) for n in range(120)],
    1,
    500,
)
def test_businesses_that_are_held_keep_no_other_waiting(
    holds: list[Hold], calls: list[Call], in_flight_max: int, group_max: int
) -> None:
    limits = make_limits(in_flight_max=in_flight_max, group_max=group_max)
    for call, outcome, seconds in run_model(limits, holds, calls, HELD_MAX + FREE):
        if all(hold.business != call.business for hold in holds):
            assert outcome is Outcome.ALLOCATED, call
            assert seconds < ANSWERED_WITHIN_S, call


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.floats(0.1, 4), st.lists(st.floats(0, 3), min_size=1, max_size=20))
def test_calls_of_a_held_business_are_paid_soon_after_it_is_free(until_s: float, times: list[float]) -> None:
    calls = [Call(at_s, 0, 0) for at_s in times]
    for call, outcome, seconds in run_model(make_limits(), [Hold(0, 0, until_s)], calls, 1):
        assert outcome is Outcome.ALLOCATED
        assert seconds < max(until_s - call.at_s, 0) + 1.2
