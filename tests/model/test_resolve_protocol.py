"""A model check of the promise: a 500 never costs a cent, and a 201 is in the history exactly once.

API, workers, administrators and the database's clock are interleaved statement by statement. What they run in the
database is the product's; only what the API keeps in memory (`api/allocations`) is modelled here:
who was told what, which copies are out, which replies were heard. Time is modelled more loosely than it is: the API
may resend, resolve and give up whenever it likes, since its own clock is not what the promise rests on. The database's
clock is set forward and back. An API process dies at any step; what it recorded is finished by another one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection

from core.database.connection import Database
from core.ids import new_id
from core.ledger import resolution, statements
from core.ledger.resolution import Resolution
from core.messages import Allocation, Outcome
from core.parties.api_keys import revoke_api_key
from core.parties.businesses import fund_business, set_payouts_enabled
from tests.core.builders import HASH_SECRET
from tests.model.schedule import Actor, Stage, open_stage
from tests.servers import Servers, verify_books

SCHEDULES = 2_000
ACTORS = 4
CALLS_MAX = 5
COPIES_MAX = 3
TOP_UP_CENTS = 200
BEGIN_S = 100
"""The clock may be set back from there."""
ANSWERED_201 = {Outcome.ALLOCATED, Outcome.REPLAYED}
ANSWERED_500 = {Outcome.EXPIRED, Outcome.FAILED}

Item = TypeVar("Item")
Result = TypeVar("Result")

TIMES_LEFT_S = st.sampled_from([1, 4])
STATEMENTS = st.sampled_from([20, 1, 2, 3])
SETTINGS = settings(
    max_examples=SCHEDULES,
    stateful_step_count=20,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

OPEN_BUSINESS = """
    WITH business AS (
        INSERT INTO businesses (id, name, mode, twin_id, payout_balance, payouts_enabled)
        VALUES (%(id)s, 'Model', 'live', %(id)s, %(funds)s, true)
    ), keys AS (
        INSERT INTO api_keys (business_id, id, kind, digest, last4)
        SELECT %(id)s, id, 'secret', uuid_send(id), '0000' FROM unnest(%(api_key_ids)s::uuid[]) AS id
    ), origin AS (
        INSERT INTO main_transactions (business_id, id, type, amount, balance_after)
        VALUES (%(id)s, %(id)s, 'external', %(funds)s, 0)
    )
    INSERT INTO payout_transactions (business_id, id, type, amount, payout_balance_after)
    VALUES (%(id)s, %(id)s, 'funding', %(funds)s, %(funds)s)
"""
BALANCES = """
    SELECT payout_balance, (
        SELECT sum(CASE type WHEN 'allocation' THEN -amount ELSE amount END) FROM payout_transactions
        WHERE business_id = %(id)s
    ) FROM businesses WHERE id = %(id)s
"""
STANDING = """
    SELECT id, email, amount, idempotency_key
    FROM payout_transactions AS allocation
    JOIN (SELECT business_id, id AS payout_user_id, email FROM payout_users) AS payout_user
        USING (business_id, payout_user_id)
    WHERE business_id = %(id)s AND type = 'allocation' AND NOT EXISTS (
        SELECT FROM payout_transactions AS reversal
        WHERE reversal.business_id = %(id)s AND reversal.reversed_id = allocation.id
    )
"""
FENCE = "SELECT fence_us FROM businesses WHERE id = %(id)s"
HISTORY = "SELECT id FROM payout_transactions WHERE business_id = %(id)s"
CLAIMS = "SELECT id, transaction_id FROM claims WHERE business_id = %(id)s AND withdrawn_at IS NULL"


@dataclass(frozen=True)
class Request:
    """What a caller asks for: in two schedules of three with a key that others use too."""

    email: str
    amount_cents: int
    idempotency_key: str | None = None
    api_key: int = 0


REQUESTS = [
    Request("ann", 60, "a"),
    Request("ann", 60),
    Request("ann", 60, "a", api_key=1),
    Request("bob", 40, "b"),
    Request("bob", 150),  # more than there is before a top-up
    Request("ann", 100, "a"),
]


@dataclass(eq=False)
class Call:
    """A caller that waits, as the API knows it."""

    allocation: Allocation
    answer: Outcome | None = None
    refusal: Outcome | None = None
    is_handed_over: bool = False
    is_being_resolved: bool = False
    is_to_withdraw: bool = False
    is_resolved: bool = False
    is_given_up: bool = False
    """It will be answered 500 and nothing else, once it is recorded as in doubt."""
    is_recorded: bool = False
    """Outside the process: any other one may resolve it."""
    is_dead: bool = False
    """Its API process was killed: what is not recorded, nobody resolves."""
    is_gone: bool = False
    """It was killed before it answered: it is never answered."""

    def tell(self, outcome: Outcome) -> None:
        if self.answer is None and not self.is_gone and not self.is_given_up:
            self.answer = outcome

    def die(self) -> None:
        """Lose what the API process knows, but for what is recorded."""
        self.is_gone = self.answer is None
        self.is_dead = True
        if not self.is_being_resolved:
            self.is_to_withdraw = False

    @property
    def waits_for_resolving(self) -> bool:
        has_begun = self.is_being_resolved or self.is_to_withdraw or self.is_resolved
        return self.is_recorded if self.is_dead and not has_begun else self.is_handed_over and not has_begun

    @property
    def is_answer_at_stake(self) -> bool:
        """Whether something may still have to be told or taken back."""
        return not self.is_dead and (self.answer is None or (self.is_recorded and not self.is_resolved))


@dataclass(eq=False)
class Copy:
    """A message with a task id of its own."""

    exchange: "Exchange"
    calls: list[Call]
    deliveries_left: int = 1
    tries_left: int = 1
    replies: list[list[Outcome]] = field(default_factory=list)
    is_heard: bool = False
    found_held: bool = False
    """The worker wrote nothing, because another transaction held the business's row, and says so."""

    @property
    def may_come_twice(self) -> bool:
        # The broker delivers at most once, and on that rests a refusal that is told while there is one copy, besides
        # those that found the business held.
        refused = any(call.answer is not None and call.answer not in ANSWERED_201 | ANSWERED_500 for call in self.calls)
        copies = [copy for copy in self.exchange.copies if not copy.found_held]
        return self.deliveries_left == 0 and len(copies) > 1 and self in copies and not refused


@dataclass(eq=False)
class Exchange:
    """A group of one API process, published until each call is answered or handed over to resolving."""

    calls: list[Call]
    copies: list[Copy] = field(default_factory=list)

    @property
    def undecided(self) -> list[Call]:
        return [call for call in self.calls if call.answer is None and not call.is_handed_over and not call.is_gone]

    @property
    def may_be_killed(self) -> bool:
        return any(call.is_answer_at_stake for call in self.calls)

    def publish(self) -> None:
        self.copies.append(Copy(self, self.undecided))


class ResolveProtocol(RuleBasedStateMachine):
    """One business, a few calls, and everything that can happen to them."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.exchanges: list[Exchange] = []
        self.business_id = new_id()
        self.api_key_ids = [new_id(), new_id()]
        self.stage.set_clock(BEGIN_S)
        self.is_calm = False
        self.is_failing = False
        self.is_changed = False

    # The API

    @initialize(
        funds_cents=st.sampled_from([100, 10]),
        request=st.sampled_from(REQUESTS),
        time_left_s=TIMES_LEFT_S,
        is_calm=st.booleans(),
    )
    def send_the_first(self, funds_cents: int, request: Request, time_left_s: int, is_calm: bool) -> None:
        """In calm schedules nothing else is sent and nothing fails: they look closely at one call."""
        self.stage.write(OPEN_BUSINESS, id=self.business_id, api_key_ids=self.api_key_ids, funds=funds_cents)
        self.is_calm, self.is_changed = is_calm, True
        self.send([request], time_left_s)

    @precondition(lambda self: not self.is_calm and len(self.calls) < CALLS_MAX)
    @rule(
        requests=st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=2),
        time_left_s=TIMES_LEFT_S,
        knows_fence=st.booleans(),
    )
    def send_more(self, requests: list[Request], time_left_s: int, knows_fence: bool) -> None:
        self.send(requests, time_left_s, knows_fence=knows_fence)

    def send(self, requests: list[Request], time_left_s: int, *, knows_fence: bool = False) -> None:
        deadline_us = (self.stage.now_s + time_left_s) * 1_000_000
        if knows_fence:
            [(fence_us,)] = self.stage.look_up(FENCE, id=self.business_id)
            deadline_us = max(deadline_us, fence_us + time_left_s * 1_000_000)
        exchange = Exchange([Call(self.allocation_of(request, deadline_us)) for request in requests])
        exchange.publish()
        self.exchanges.append(exchange)

    @precondition(lambda self: self.resendable)
    @rule(index=st.integers(0, 3))
    def resend(self, index: int) -> None:
        pick(self.resendable, index).publish()

    @precondition(lambda self: self.unheard)
    @rule(index=st.integers(0, 3))
    def hear(self, index: int) -> None:
        copy, reply = pick(self.unheard, index)
        copy.is_heard = True
        others = [other for other in copy.exchange.copies if other is not copy]
        is_only_copy = all(other.is_heard and other.found_held for other in others)
        for call, outcome in zip(copy.calls, reply, strict=True):
            note(f"call {self.calls.index(call)} hears {outcome}")
            if outcome is Outcome.FAILED:
                continue
            if is_only_copy or outcome in {Outcome.ALLOCATED, Outcome.REPLAYED, Outcome.EXPIRED}:
                call.tell(outcome)
            else:
                call.refusal = outcome
        for call in copy.exchange.undecided:
            call.is_handed_over = call.refusal is not None  # the others go on waiting

    @precondition(lambda self: self.stage.free and (self.unresolved or self.undecided))
    @rule(index=st.integers(0, 3), together=st.booleans(), are_overdue=st.booleans(), statements=STATEMENTS)
    def resolve(self, index: int, together: bool, are_overdue: bool, statements: int) -> None:
        """By the database's clock, or by the API's, which may say anything."""
        calls = self.unresolved + self.undecided
        if not together:
            calls = [pick(calls, index)]
        self.go_on(self.start_resolving(calls, are_overdue=are_overdue), statements)

    @precondition(lambda self: self.to_record)
    @rule(index=st.integers(0, 3))
    def record(self, index: int) -> None:
        pick(self.to_record, index).is_recorded = True

    @precondition(lambda self: self.to_answer_500)
    @rule(index=st.integers(0, 3))
    def answer_500(self, index: int) -> None:
        pick(self.to_answer_500, index).answer = Outcome.FAILED

    @precondition(lambda self: self.to_withdraw and self.stage.free)
    @rule(index=st.integers(0, 3), statements=STATEMENTS)
    def withdraw(self, index: int, statements: int) -> None:
        self.go_on(self.start_withdrawing(pick(self.to_withdraw, index)), statements)

    # The workers

    @precondition(lambda self: self.undelivered and self.stage.free)
    @rule(
        index=st.integers(0, 3),
        is_pipelined=st.booleans(),
        waits=st.sampled_from([True, True, True, False]),
        statements=STATEMENTS,
    )
    def deliver(self, index: int, is_pipelined: bool, waits: bool, statements: int) -> None:
        """Let a worker wait for the business's row, or go on where another one holds it."""
        copy = pick(self.undelivered, index)
        copy.deliveries_left -= 1
        self.go_on(self.start_allocating(copy, is_pipelined=is_pipelined, waits=waits), statements)

    # Everybody's transactions

    @precondition(lambda self: self.stage.movable)
    @rule(index=st.integers(0, 3), statements=STATEMENTS)
    def advance(self, index: int, statements: int) -> None:
        self.go_on(pick(self.stage.movable, index), statements)

    # The rest of the world

    @rule(seconds=st.sampled_from([2, 1, 5, -2, -60]))
    def move_the_clock(self, seconds: int) -> None:
        self.stage.set_clock(max(self.stage.now_s + seconds, 1))

    @precondition(lambda self: self.stage.free)
    @rule(what=st.sampled_from(["fund", "fund", "enable", "disable", "revoke"]), statements=STATEMENTS)
    def administer(self, what: str, statements: int) -> None:
        self.go_on(self.start_administering(what), statements)

    # What goes wrong

    @precondition(lambda self: not self.is_calm)
    @rule(fault=st.sampled_from(["lost", "gave up", "lost", "twice", "killed"]), index=st.integers(0, 3))
    def fail(self, fault: str, index: int) -> None:
        if fault == "lost" and self.stage.movable:
            self.step(pick(self.stage.movable, index), is_lost=True)
        elif fault == "gave up" and self.unanswered:
            # The database was out of reach for too long, or the API was told to stop.
            call = pick(self.unanswered, index)
            call.is_given_up = call.is_handed_over = True
        elif fault == "twice" and self.repeatable and self.stage.free:
            self.start_allocating(pick(self.repeatable, index), is_pipelined=True)
        elif fault == "killed" and self.killable:
            for call in pick(self.killable, index).calls:
                if call.is_answer_at_stake:
                    call.die()

    # What has to hold, always and in the end

    @invariant()
    def the_books_balance(self) -> None:
        if not self.is_changed:
            return
        self.is_changed = False
        [(payout_balance, expected)] = self.stage.look_up(BALANCES, id=self.business_id)
        self.is_failing = payout_balance != expected or payout_balance < 0
        assert not self.is_failing, f"the payout balance is {payout_balance}, by the history {expected}"

    def teardown(self) -> None:
        try:
            if not self.is_failing:
                self.finish()
                self.check_answers()
        finally:
            self.stage.clear()

    def finish(self) -> None:
        """Let a copy of each call arrive and each call be resolved; then deliver everything once more, late."""
        for exchange in self.exchanges:
            self.run_all()
            if exchange.undecided and exchange.copies[-1].deliveries_left:
                self.start_allocating(exchange.copies[-1], is_pipelined=True)
        self.run_all()
        for call in self.calls:
            if call.is_given_up and not call.is_dead:
                call.is_recorded, call.answer = True, Outcome.FAILED
        last_s = max((call.allocation.deadline_us for call in self.calls), default=0) // 1_000_000
        self.stage.set_clock(max(self.stage.now_s, last_s) + 10)
        while unresolved := self.unresolved + self.undecided + self.to_withdraw:
            if unresolved[0].is_to_withdraw:
                self.start_withdrawing(unresolved[0])
            else:
                calls = [call for call in unresolved if not call.is_to_withdraw]
                self.start_resolving(calls, are_overdue=False)
            self.run_all()
        late_s = self.stage.now_s
        # A refusal that is told while there is one copy rests on the broker, which delivers at most once.
        certain = [
            call
            for exchange in self.exchanges
            for call in exchange.calls
            if call.answer in ANSWERED_201 | ANSWERED_500 or (call.answer is not None and len(exchange.copies) > 1)
        ]
        for now_s, calls in ((1, certain), (late_s, self.calls)):
            self.stage.set_clock(now_s)
            before = set(self.stage.look_up(HISTORY, id=self.business_id))
            self.start(partial(allocate, [call.allocation for call in calls]), ignore, do_nothing)
            self.run_all()
            after = set(self.stage.look_up(HISTORY, id=self.business_id))
            assert after == before, f"a late copy was carried out at {now_s} s"

    def check_answers(self) -> None:
        rows = self.stage.look_up(STANDING, id=self.business_id)
        standing = {id_: Request(*request) for id_, *request in rows}
        claims = dict(self.stage.look_up(CLAIMS, id=self.business_id))
        counted_on: set[UUID] = set()
        for number, call in enumerate(self.calls):
            id_ = call.allocation.id
            counts_on = {id_, claims.get(id_, id_)} & standing.keys()
            name = f"call {number}, answered {call.answer},"
            if call.answer in ANSWERED_201:
                assert len(counts_on) == 1, f"{name} is in the history {len(counts_on)} times"
                [row_id] = counts_on
                assert standing[row_id] == request_of(call.allocation), f"{name} was another payment"
                assert (row_id == id_) is (call.answer is Outcome.ALLOCATED), f"{name} counts on the wrong row"
            elif call.answer is not None:
                assert id_ not in claims, f"{name} claims a payment"
            if call.answer in ANSWERED_201 or call.is_gone:
                counted_on.update(counts_on)
        assert standing.keys() == counted_on, "something was paid for calls that were refused or answered 500"
        keys = [request.idempotency_key for request in standing.values() if request.idempotency_key is not None]
        assert len(keys) == len(set(keys)), "an idempotency key was paid twice"

    # Transactions

    def start(
        self,
        job: Callable[[Connection], Result],
        then: Callable[[Result], None],
        lost: Callable[[], None],
        *,
        is_pipelined: bool = False,
    ) -> Actor:
        actor = self.stage.start(job, then, lost, is_pipelined=is_pipelined)
        note(f"actor {self.stage.actors.index(actor)} begins")
        return actor

    def start_allocating(self, copy: Copy, *, is_pipelined: bool, waits: bool = True) -> Actor:
        """Carry a copy out as workers do, or with time between the statements that they send at once."""

        def lost() -> None:
            if copy.tries_left:
                copy.tries_left -= 1
                copy.deliveries_left += 1
            else:
                copy.replies.append([Outcome.FAILED] * len(copy.calls))

        def reply(found: tuple[list[Outcome], set[UUID]]) -> None:
            outcomes, held = found
            copy.found_held |= bool(held)
            copy.replies.append(outcomes)

        job = partial(allocate_where_free, [call.allocation for call in copy.calls])
        if waits:
            job = partial(allocate_and_wait, [call.allocation for call in copy.calls])
        return self.start(job, reply, lost, is_pipelined=is_pipelined)

    def start_resolving(self, calls: list[Call], *, are_overdue: bool) -> Actor:
        owned = [call for call in calls if not call.is_dead]

        def resolved(found: Resolution) -> None:
            lost()
            for call in calls:
                id_ = call.allocation.id
                if call in owned and call.is_dead:
                    continue  # the process that asked is no more
                if id_ in found.never:
                    call.tell(call.refusal or Outcome.EXPIRED)
                    call.is_resolved = True
                elif id_ in found.withdrawn:
                    call.is_resolved = True
                elif id_ in found.committed:
                    call.tell(found.committed[id_])
                    call.is_to_withdraw = call.is_given_up
                    call.is_resolved = not call.is_to_withdraw

        def lost() -> None:
            for call in calls:
                call.is_being_resolved = False

        for call in calls:
            call.is_handed_over = call.is_being_resolved = True
        job = partial(resolve, [call.allocation for call in calls], are_overdue)
        return self.start(job, resolved, lost)

    def start_withdrawing(self, call: Call) -> Actor:
        is_owned = not call.is_dead

        def withdrawn(_: bool) -> None:
            call.is_being_resolved = False
            call.is_resolved = not (is_owned and call.is_dead)

        def lost() -> None:
            call.is_being_resolved = False

        call.is_to_withdraw, call.is_being_resolved = False, True
        return self.start(partial(withdraw, call.allocation), withdrawn, lost)

    def start_administering(self, what: str) -> Actor:
        def change(connection: Connection) -> None:
            if what == "fund":
                fund_business(connection, self.business_id, TOP_UP_CENTS)
            elif what == "revoke":
                revoke_api_key(connection, self.api_key_ids[1])
            else:
                set_payouts_enabled(connection, self.business_id, enabled=what == "enable")

        return self.start(change, ignore, do_nothing)

    def step(self, actor: Actor, *, is_lost: bool = False) -> None:
        gate = " ".join(actor.gate.split())[:60]
        note(f"actor {self.stage.actors.index(actor)} {'is lost before' if is_lost else 'goes on:'} {gate}")
        self.is_failing = True
        self.stage.advance(actor, is_lost=is_lost)
        self.is_failing = False
        self.is_changed |= actor.is_transaction_over

    def go_on(self, actor: Actor, statements: int) -> None:
        """Carry statements out, until one has to wait for another actor."""
        for _ in range(statements):
            if actor in self.stage.movable:
                self.step(actor)

    def run_all(self) -> None:
        while movable := self.stage.movable:
            self.step(movable[0])

    # What may happen next

    @property
    def calls(self) -> list[Call]:
        return [call for exchange in self.exchanges for call in exchange.calls]

    @property
    def copies(self) -> list[Copy]:
        return [copy for exchange in self.exchanges for copy in exchange.copies]

    @property
    def undecided(self) -> list[Call]:
        return [call for exchange in self.exchanges for call in exchange.undecided]

    @property
    def unanswered(self) -> list[Call]:
        return [call for call in self.calls if call.answer is None and not call.is_dead and not call.is_given_up]

    @property
    def to_record(self) -> list[Call]:
        return [call for call in self.calls if call.is_given_up and not call.is_recorded and not call.is_dead]

    @property
    def to_answer_500(self) -> list[Call]:
        return [call for call in self.calls if call.is_recorded and call.answer is None and not call.is_dead]

    @property
    def unresolved(self) -> list[Call]:
        return [call for call in self.calls if call.waits_for_resolving]

    @property
    def to_withdraw(self) -> list[Call]:
        return [call for call in self.calls if call.is_to_withdraw]

    @property
    def resendable(self) -> list[Exchange]:
        return [each for each in self.exchanges if each.undecided and len(each.copies) < COPIES_MAX]

    @property
    def killable(self) -> list[Exchange]:
        return [each for each in self.exchanges if each.may_be_killed]

    @property
    def undelivered(self) -> list[Copy]:
        return [copy for copy in self.copies if copy.deliveries_left]

    @property
    def repeatable(self) -> list[Copy]:
        return [copy for copy in self.copies if copy.may_come_twice]

    @property
    def unheard(self) -> list[tuple[Copy, list[Outcome]]]:
        copies = [copy for copy in self.copies if not copy.is_heard and copy.exchange.undecided]
        return [(copy, reply) for copy in copies for reply in copy.replies]

    def allocation_of(self, request: Request, deadline_us: int) -> Allocation:
        return Allocation(
            new_id(),
            self.business_id,
            self.api_key_ids[request.api_key],
            request.email,
            request.amount_cents,
            deadline_us,
            request.idempotency_key,
        )


def allocate(allocations: Sequence[Allocation], connection: Connection) -> list[Outcome]:
    return statements.allocate(connection, HASH_SECRET, allocations)


def allocate_and_wait(allocations: Sequence[Allocation], connection: Connection) -> tuple[list[Outcome], set[UUID]]:
    return allocate(allocations, connection), set()


def allocate_where_free(allocations: Sequence[Allocation], connection: Connection) -> tuple[list[Outcome], set[UUID]]:
    return statements.allocate_where_free(connection, HASH_SECRET, allocations)


def resolve(allocations: Sequence[Allocation], are_overdue: bool, connection: Connection) -> Resolution:
    return resolution.resolve(connection, allocations, are_overdue=are_overdue)


def withdraw(allocation: Allocation, connection: Connection) -> bool:
    return resolution.withdraw(connection, allocation)


def request_of(allocation: Allocation) -> Request:
    return Request(allocation.email, allocation.amount_cents, allocation.idempotency_key)


def pick(items: Sequence[Item], index: int) -> Item:
    return items[index % len(items)]


def ignore(_: object) -> None:
    pass


def do_nothing() -> None:
    pass


@pytest.mark.timeout(300)
def test_a_500_never_costs_a_cent_and_a_201_is_paid_once_in_every_schedule(servers: Servers) -> None:
    with servers.clone() as url, open_stage(url, actors=ACTORS) as stage:

        class Model(ResolveProtocol):
            def __init__(self) -> None:
                super().__init__(stage)

        run_state_machine_as_test(Model, settings=SETTINGS)
        with Database(url, transaction_timeout_s=None) as database:
            assert verify_books(database).balanced
