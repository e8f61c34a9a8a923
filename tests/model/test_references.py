"""A state machine over files, calls, cancels, reversals and repeats, on a real database.

After every step: no reference has two payments that stand, nobody was paid who was not named, what was answered as paid
is paid or waits to be, and the books balance.
"""

from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from core.batches import reading
from core.batches.acceptance import Accepted, ReferencesReused
from core.batches.payout_batch import BatchRow, PayoutBatch, RowOutcome
from core.database.connection import Database
from core.messages import Allocation, Outcome
from tests.core.batch_builders import cancel, pay_chunk, read_batch, release_batch, try_to_accept
from tests.core.builders import allocate, allocation_of, withdraw
from tests.servers import Account, open_account, verify_books

PEOPLE = ["ann@example.com", "bob@example.com", "cyd@example.com"]
REFERENCES = ["r1", "r2", "r3", "r4", "r5"]
KEYS = ["k1", "k2", "k3"]
people, amounts = st.sampled_from(PEOPLE), st.integers(1, 3)
references = st.none() | st.sampled_from(REFERENCES)


def without_repetitions(file: list[BatchRow]) -> list[BatchRow]:
    """Leave out rows whose reference an earlier row has: one file may not name it twice."""
    first = {row.reference: number for number, row in reversed(list(enumerate(file)))}
    return [row for number, row in enumerate(file) if row.reference is None or first[row.reference] == number]


rows = st.lists(st.builds(BatchRow, people, amounts, references), min_size=1, max_size=6).map(without_repetitions)


# Payments that stand, by reference: made and not reversed, or waiting in a batch that is not finished.
_STANDING = sa.text("""
    SELECT reference, email, amount FROM (
        SELECT paid.reference, payout_users.email, paid.amount
        FROM payout_transactions AS paid
        JOIN payout_users ON payout_users.business_id = paid.business_id AND payout_users.id = paid.payout_user_id
        WHERE paid.business_id = :id AND paid.type = 'allocation' AND NOT EXISTS (
            SELECT FROM payout_transactions AS reversal
            WHERE reversal.business_id = paid.business_id AND reversal.reversed_id = paid.id
        )
        UNION ALL
        SELECT item.reference, item.email, item.amount
        FROM payout_batch_items AS item
        JOIN payout_batches AS batch ON batch.business_id = item.business_id AND batch.id = item.batch_id
        WHERE item.business_id = :id AND batch.finished_at IS NULL AND item.position >= batch.processed
    ) AS standing
""")


class References(RuleBasedStateMachine):
    """What callers do with references, in any order, on a real database; the expectations are counted here."""

    database: Database
    account: Account
    calls = Bundle("calls")
    batches = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.account = open_account(self.database, funds_cents=10**9)
        self.named: Counter[tuple[str | None, str, int]] = Counter()
        self.files: list[list[BatchRow]] = []

    @rule(target=calls, email=people, amount=amounts, reference=references, key=st.none() | st.sampled_from(KEYS))
    def call(self, email: str, amount: int, reference: str | None, key: str | None) -> Any:
        """Pay once; what it is answered must be so."""
        sent = allocation_of(self.account, email, amount, reference=reference, idempotency_key=key)
        before = self.standing()
        (outcome,) = allocate(self.database, sent)
        after = self.standing()
        if outcome is Outcome.ALLOCATED:
            self.named[reference, email, amount] += 1
            assert after == before + Counter([(reference, email, amount)])
            assert reference is None or not any(each[0] == reference for each in before)
            return sent
        assert after == before
        if outcome is Outcome.REPLAYED:
            # By its key, or by its reference: somebody is paid this sum, or will be.
            assert any(each[1:] == (email, amount) for each in before)
        else:
            assert outcome in {Outcome.REFERENCE_REUSED, Outcome.IDEMPOTENCY_KEY_REUSED}
        if outcome is Outcome.REFERENCE_REUSED:
            assert any(each[0] == reference and each[1:] != (email, amount) for each in before)
        return multiple()

    @rule(sent=calls)
    def deliver_again(self, sent: Allocation) -> None:
        """A copy of a message changes nothing."""
        before = self.standing()
        assert allocate(self.database, sent) == [Outcome.ALLOCATED]
        assert self.standing() == before

    @rule(sent=consumes(calls))
    def reverse(self, sent: Allocation) -> None:
        """Take a call back that was answered 500; a replay that was answered 201 keeps it."""
        before = self.standing()
        taken_back = withdraw(self.database, sent)
        expected = before - Counter([(sent.reference, sent.email, sent.amount_cents)]) if taken_back else before
        assert self.standing() == expected

    @rule(target=batches, file=rows)
    def hand_in(self, file: list[BatchRow]) -> Any:
        """Hand a file in."""
        return self.accept(file)

    @rule(target=batches, data=st.data())
    def hand_in_again(self, data: st.DataObject) -> Any:
        """Hand an earlier file in again: as it is, in another order, or with some rows more or less."""
        if not self.files:
            return multiple()
        file = list(data.draw(st.permutations(data.draw(st.sampled_from(self.files)))))
        more = [row for row in data.draw(rows) if row.reference not in {each.reference for each in file}]
        return self.accept(file[data.draw(st.integers(0, 1)) :] + more[:2])

    def accept(self, file: list[BatchRow]) -> Any:
        if not file:
            return multiple()
        before = self.standing()
        by_reference = {reference: rest for reference, *rest in before if reference is not None}
        answer = try_to_accept(self.database, self.account, file)
        wrong = [
            number
            for number, row in enumerate(file)
            if row.reference in by_reference and by_reference[row.reference] != [row.email, row.amount_cents]
        ]
        if wrong:
            assert answer == ReferencesReused(wrong)
            assert self.standing() == before
            return multiple()
        assert isinstance(answer, Accepted)
        new = [row for row in file if row.reference is None or row.reference not in by_reference]
        assert (answer.batch.total, answer.batch.already_paid) == (len(file), len(file) - len(new))
        payments = Counter((row.reference, row.email, row.amount_cents) for row in new)
        self.named += payments
        self.files.append(file)
        if answer.batch.finished_at is None:
            assert release_batch(self.database, answer.batch) is not None
        assert self.standing() == before + payments
        return answer.batch

    @rule(batch=batches, rows_max=st.integers(1, 4))
    def pay(self, batch: PayoutBatch, rows_max: int) -> None:
        """Pay the next rows, where any are left."""
        before = self.standing()
        found = read_batch(self.database, batch)
        pay_chunk(self.database, batch, found.processed - found.already_paid, rows_max)
        assert self.standing() == before

    @rule(batch=batches)
    def cancel(self, batch: PayoutBatch) -> None:
        """Cancel what is not paid yet."""
        if read_batch(self.database, batch).finished_at is None:
            cancel(self.database, batch)

    @rule(batch=batches)
    def read_results(self, batch: PayoutBatch) -> None:
        """Every row has an outcome, and what is called paid is in the history."""
        found = read_batch(self.database, batch)
        with self.database.transaction() as connection:
            results = reading.list_results(connection, found, limit=100)
            paid = set(connection.execute(sa.text("SELECT id FROM payout_transactions")).scalars())
        assert [row.position for row in results] == list(range(found.total))
        assert all(row.transaction_id in paid for row in results if row.outcome is RowOutcome.ALLOCATED)

    @invariant()
    def no_reference_has_two_payments(self) -> None:
        """The promise."""
        assert all(count == 1 for count in Counter(each[0] for each in self.standing().elements() if each[0]).values())

    @invariant()
    def nobody_was_paid_who_was_not_named(self) -> None:
        """Every payment is one that a call or a file asked for."""
        assert self.standing() <= self.named

    def teardown(self) -> None:
        """The books balance at the end, too."""
        assert verify_books(self.database).balanced

    def standing(self) -> Counter[tuple[str | None, str, int]]:
        """Count the payments that stand."""
        with self.database.transaction() as connection:
            return Counter(tuple(row) for row in connection.execute(_STANDING, {"id": self.account.business.id}))


@pytest.fixture
def machine(database: Database) -> type[References]:
    References.database = database
    return References


def test_no_reference_is_paid_twice_and_nobody_who_was_not_named(machine: type[References]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
