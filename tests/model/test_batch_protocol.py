"""A model check of payout batches: what is answered 500 is never paid, and what is answered 202 is.

API processes that take batches in, workers, single calls and those who finish what is in doubt are interleaved
statement by statement. What they run in the database is the product's; what the API keeps in memory (`api/batches`) is
modelled here. A connection may be lost before a commit, or after it and before its reply. A batch counts as abandoned
at any time, since no clock is what the promise rests on.
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

from core.batches import acceptance, payment, reading, release
from core.batches.acceptance import Accepted, ReferencesTakenError, ReferencesUndecidedError, Sorting, Submission
from core.batches.payout_batch import BatchRow, BatchStatus, PayoutBatch
from core.database.connection import Database
from core.ids import new_id
from core.in_doubt.records import Doubt
from core.ledger import statements
from core.messages import Allocation, Outcome
from core.parties.businesses import lock_business
from tests.core.builders import FAR_FUTURE_US, HASH_SECRET
from tests.model.schedule import Actor, Stage, open_stage
from tests.model.test_resolve_protocol import OPEN_BUSINESS
from tests.servers import Servers, verify_books

SCHEDULES = 1_000
ACTORS = 4
ATTEMPTS_MAX = 4
FUNDS_CENTS = 30
SETTINGS = settings(
    max_examples=SCHEDULES,
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
STATEMENTS = st.sampled_from([30, 1, 2, 4])

BALANCES = """
    SELECT payout_balance + reserved_balance, (
        SELECT sum(CASE type WHEN 'allocation' THEN -amount ELSE amount END) FROM payout_transactions
        WHERE business_id = %(id)s
    ), payout_balance, reserved_balance FROM businesses WHERE id = %(id)s
"""
BATCHES = "SELECT id, status, processed, total, idempotency_key FROM payout_batches WHERE business_id = %(id)s"
PAID = "SELECT batch_id, reference FROM payout_transactions WHERE business_id = %(id)s AND type = 'allocation'"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class Attempt:
    """A call that hands a batch in, as its API process knows it."""

    submission: Submission
    own_id: UUID = field(default_factory=new_id)
    batch: PayoutBatch | None = None
    """Seen to be committed, or replayed."""
    is_busy: bool = False
    is_unknown: bool = False
    is_dead: bool = False
    answer: int | None = None

    @property
    def is_open(self) -> bool:
        return not self.is_dead and self.answer is None

    def tell(self, status: int) -> None:
        if self.is_open:
            self.answer = status


class BatchProtocol(RuleBasedStateMachine):
    """One business, a few batches with the same key or reference, and everything that can happen to them."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.attempts: list[Attempt] = []
        self.records: dict[UUID, Doubt] = {}
        self.replayed: list[str] = []
        """References by which single calls were answered 201, without being paid themselves."""
        self.business_id = new_id()
        self.api_key_ids = [new_id(), new_id()]
        self.stage.set_clock(100)
        self.is_failing = False
        self.is_changed = False

    @initialize()
    def open_business(self) -> None:
        self.stage.write(OPEN_BUSINESS, id=self.business_id, api_key_ids=self.api_key_ids, funds=FUNDS_CENTS)

    # The API

    @precondition(lambda self: self.stage.free and len(self.attempts) < ATTEMPTS_MAX)
    @rule(key=st.sampled_from(["march", None]), reference=st.sampled_from([None, "r"]), statements=STATEMENTS)
    def hand_in(self, key: str | None, reference: str | None, statements: int) -> None:
        rows = [BatchRow("ann", 5, reference), BatchRow("bob", 7, None)]
        attempt = Attempt(Submission.of(self.business_id, self.api_key_ids[0], rows, key))
        self.attempts.append(attempt)
        self.go_on(self.start_accepting(attempt), statements)

    @precondition(lambda self: self.stage.free and self.unknown)
    @rule(index=st.integers(0, 3), statements=STATEMENTS)
    def find_out(self, index: int, statements: int) -> None:
        attempt = pick(self.unknown, index)

        def found(batch: PayoutBatch | None) -> None:
            attempt.is_busy, attempt.is_unknown, attempt.batch = False, False, batch
            if batch is None:
                attempt.tell(500)

        self.go_on(self.start(partial(find_behind_lock, attempt), found, partial(rest, attempt), attempt), statements)

    @precondition(lambda self: self.unknown)
    @rule(index=st.integers(0, 3))
    def give_up_finding_out(self, index: int) -> None:
        attempt = pick(self.unknown, index)
        self.records[attempt.own_id] = Doubt.BATCH_FAILED
        attempt.is_unknown = False
        attempt.tell(500)

    @precondition(lambda self: self.stage.free and self.committed)
    @rule(index=st.integers(0, 3), statements=STATEMENTS)
    def release(self, index: int, statements: int) -> None:
        attempt = pick(self.committed, index)
        batch = attempt.batch
        assert batch is not None

        def released(found: PayoutBatch | None) -> None:
            attempt.is_busy = False
            attempt.tell(500 if found is None else 202)

        def lost() -> None:
            """Whether it is released, only the database tells: the answer is 202, and others release it."""
            attempt.is_busy = False
            if attempt.is_open:
                self.records[batch.id] = Doubt.BATCH_ACCEPTED
                attempt.tell(202)

        self.go_on(self.start(partial(release_one, batch.id, batch.business_id), released, lost, attempt), statements)

    @precondition(lambda self: self.committed)
    @rule(index=st.integers(0, 3), is_recorded=st.booleans())
    def stop_the_server(self, index: int, is_recorded: bool) -> None:
        """The caller is answered 500 before the release; recording it only makes it faster."""
        attempt = pick(self.committed, index)
        if is_recorded and attempt.batch is not None and attempt.batch.id == attempt.own_id:
            self.records[attempt.own_id] = Doubt.BATCH_FAILED
        attempt.tell(500)

    @precondition(lambda self: self.open_attempts)
    @rule(index=st.integers(0, 3))
    def kill(self, index: int) -> None:
        pick(self.open_attempts, index).is_dead = True

    # Workers, and whoever finishes what is in doubt

    @precondition(lambda self: self.stage.free and self.attempts)
    @rule(index=st.integers(0, 3), first=st.integers(0, 1), statements=STATEMENTS)
    def pay(self, index: int, first: int, statements: int) -> None:
        batch_id = pick(self.attempts, index).own_id
        self.go_on(self.start(partial(pay_one, self.business_id, batch_id, first), ignore, do_nothing), statements)

    @precondition(lambda self: self.stage.free and self.records)
    @rule(index=st.integers(0, 3), statements=STATEMENTS)
    def finish_record(self, index: int, statements: int) -> None:
        batch_id, doubt = pick(list(self.records.items()), index)
        self.go_on(self.start_finishing(batch_id, doubt), statements)

    @precondition(lambda self: self.stage.free and self.abandonable)
    @rule(index=st.integers(0, 3), statements=STATEMENTS)
    def cancel_abandoned(self, index: int, statements: int) -> None:
        batch_id = pick(self.abandonable, index)
        job = partial(cancel_one, batch_id, self.business_id)
        self.go_on(self.start(job, ignore, do_nothing), statements)

    @precondition(lambda self: self.stage.free)
    @rule(statements=STATEMENTS)
    def call_with_the_reference(self, statements: int) -> None:
        self.go_on(self.start_calling(), statements)

    # Everybody's transactions, and what goes wrong

    @precondition(lambda self: self.stage.movable)
    @rule(index=st.integers(0, 3), statements=STATEMENTS)
    def advance(self, index: int, statements: int) -> None:
        self.go_on(pick(self.stage.movable, index), statements)

    @precondition(lambda self: self.stage.movable)
    @rule(index=st.integers(0, 3))
    def lose_connection(self, index: int) -> None:
        self.step(pick(self.stage.movable, index), is_lost=True)

    # What has to hold, always and in the end

    @invariant()
    def the_books_balance(self) -> None:
        if self.is_changed:
            self.is_changed = False
            [(held, expected, free, reserved)] = self.stage.look_up(BALANCES, id=self.business_id)
            self.is_failing = held != expected or min(free, reserved) < 0
            assert not self.is_failing, f"the business has {held}, by the history {expected}"

    def teardown(self) -> None:
        try:
            if not self.is_failing:
                self.finish()
                self.check_answers()
        finally:
            self.stage.clear()

    def finish(self) -> None:
        """Finish what is recorded, cancel what nobody will release, and pay the rest."""
        self.run_all()
        for attempt in self.attempts:
            attempt.is_dead |= attempt.answer is None
        for batch_id, doubt in list(self.records.items()):
            self.start_finishing(batch_id, doubt)
            self.run_all()
        for attempt in self.attempts:
            self.start(partial(cancel_one, attempt.own_id, self.business_id), ignore, do_nothing)
            self.run_all()
            for first in (0, 1):
                self.start(partial(pay_one, self.business_id, attempt.own_id, first), ignore, do_nothing)
                self.run_all()

    def check_answers(self) -> None:
        status_by_id = {id_: status for id_, status, *_ in self.stage.look_up(BATCHES, id=self.business_id)}
        paid = self.stage.look_up(PAID, id=self.business_id)
        accepted_ids = {a.batch.id for a in self.attempts if a.answer == 202 and a.batch is not None}
        for number, attempt in enumerate(self.attempts):
            name = f"attempt {number}, answered {attempt.answer},"
            if attempt.answer == 202:
                assert attempt.batch is not None
                assert status_by_id[attempt.batch.id] == BatchStatus.COMPLETED, f"{name} was not paid"
            elif attempt.answer is not None and attempt.own_id not in accepted_ids:
                assert not [id_ for id_, _ in paid if id_ == attempt.own_id], f"{name} was paid"
                assert status_by_id.get(attempt.own_id, "cancelled") == "cancelled", f"{name} stands"
        for reference in self.replayed:
            assert reference in {each for _, each in paid}, "a call was answered by a payment that was never made"
        references = [each for _, each in paid if each is not None]
        assert len(references) == len(set(references)), "a reference was paid twice"
        [(*_, reserved)] = self.stage.look_up(BALANCES, id=self.business_id)
        assert reserved == 0, "money stays reserved"

    # Transactions

    def start(
        self,
        job: Callable[[Connection], Result],
        then: Callable[[Result], None],
        lost: Callable[[], None],
        attempt: Attempt | None = None,
    ) -> Actor:
        if attempt is not None:
            attempt.is_busy = True
        actor = self.stage.start(job, then, lost)
        note(f"actor {self.stage.actors.index(actor)} begins")
        return actor

    def start_accepting(self, attempt: Attempt) -> Actor:
        def accepted(answer: Accepted | int) -> None:
            attempt.is_busy = False
            if isinstance(answer, int):
                attempt.tell(answer)
                return
            attempt.batch = answer.batch
            if answer.batch.released_at is not None or answer.batch.finished_at is not None:
                attempt.tell(202)

        def lost() -> None:
            attempt.is_busy, attempt.is_unknown = False, True

        return self.start(partial(accept, attempt), accepted, lost, attempt)

    def start_finishing(self, batch_id: UUID, doubt: Doubt) -> Actor:
        def finished(_: object) -> None:
            self.records.pop(batch_id, None)

        job = cancel_one if doubt is Doubt.BATCH_FAILED else release_one
        return self.start(partial(job, batch_id, self.business_id), finished, do_nothing)

    def start_calling(self) -> Actor:
        call = Allocation(new_id(), self.business_id, self.api_key_ids[0], "ann", 5, FAR_FUTURE_US, reference="r")

        def answered(outcomes: list[Outcome]) -> None:
            if outcomes == [Outcome.REPLAYED]:
                self.replayed.append("r")

        return self.start(partial(allocate, call), answered, do_nothing)

    def step(self, actor: Actor, *, is_lost: bool = False) -> None:
        gate = " ".join(actor.gate.split())[:60]
        note(f"actor {self.stage.actors.index(actor)} {'is lost before' if is_lost else 'goes on:'} {gate}")
        self.is_failing = True
        self.stage.advance(actor, is_lost=is_lost)
        self.is_failing = False
        self.is_changed |= actor.is_transaction_over

    def go_on(self, actor: Actor, statements: int) -> None:
        for _ in range(statements):
            if actor in self.stage.movable:
                self.step(actor)

    def run_all(self) -> None:
        while movable := self.stage.movable:
            self.step(movable[0])

    # What may happen next

    @property
    def open_attempts(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.is_open]

    @property
    def unknown(self) -> list[Attempt]:
        return [attempt for attempt in self.open_attempts if attempt.is_unknown and not attempt.is_busy]

    @property
    def committed(self) -> list[Attempt]:
        return [attempt for attempt in self.open_attempts if attempt.batch is not None and not attempt.is_busy]

    @property
    def abandonable(self) -> list[UUID]:
        """Batches that the periodic task may take for abandoned: none that is recorded as answered 202."""
        accepted_ids = {id_ for id_, doubt in self.records.items() if doubt is Doubt.BATCH_ACCEPTED}
        # The one who releases it decides within seconds, and the periodic task waits for minutes.
        releasing_ids = {a.batch.id for a in self.attempts if a.is_busy and a.batch is not None}
        return [a.own_id for a in self.attempts if a.own_id not in accepted_ids | releasing_ids]


class _NotAcceptedError(Exception):
    """Rolls back what was loaded."""


def accept(attempt: Attempt, connection: Connection) -> Accepted | int:
    """Accept as the API does, in one transaction; what is refused rolls back in a savepoint."""
    submission = attempt.submission
    answer: Accepted | int = 400
    try:
        with connection.begin_nested():
            lock_business(connection, submission.business_id)
            sorting = acceptance.sort_rows(connection, submission)
            if not isinstance(sorting, Sorting):
                return sorting if isinstance(sorting, Accepted) else 400
            acceptance.load_rows(connection, HASH_SECRET, submission, attempt.own_id, sorting)
            found = acceptance.accept(connection, submission, attempt.own_id, sorting)
            if isinstance(found, Outcome) or found.is_replay:
                answer = found if isinstance(found, Accepted) else 400
                raise _NotAcceptedError
            return found
    except _NotAcceptedError:
        return answer
    except (ReferencesTakenError, ReferencesUndecidedError):
        return 500


def find_behind_lock(attempt: Attempt, connection: Connection) -> PayoutBatch | None:
    lock_business(connection, attempt.submission.business_id)
    return reading.find_batch(connection, attempt.submission.business_id, attempt.own_id)


def release_one(batch_id: UUID, business_id: UUID, connection: Connection) -> PayoutBatch | None:
    return release.release(connection, business_id, batch_id)


def cancel_one(batch_id: UUID, business_id: UUID, connection: Connection) -> PayoutBatch | None:
    return release.cancel_unreleased(connection, business_id, batch_id)


def pay_one(business_id: UUID, batch_id: UUID, first: int, connection: Connection) -> object:
    return payment.pay_chunk(connection, business_id, batch_id, first, 1)


def allocate(call: Allocation, connection: Connection) -> list[Outcome]:
    return statements.allocate(connection, HASH_SECRET, [call])


def rest(attempt: Attempt) -> None:
    attempt.is_busy = False


def pick(items: Sequence[Item], index: int) -> Item:
    return items[index % len(items)]


def ignore(_: object) -> None:
    pass


def do_nothing() -> None:
    pass


@pytest.mark.timeout(300)
def test_a_batch_answered_500_is_never_paid_and_one_answered_202_is_in_every_schedule(servers: Servers) -> None:
    with servers.clone() as url, open_stage(url, actors=ACTORS) as stage:

        class Model(BatchProtocol):
            def __init__(self) -> None:
                super().__init__(stage)

        run_state_machine_as_test(Model, settings=SETTINGS)
        with Database(url, transaction_timeout_s=None) as database:
            assert verify_books(database).balanced
