"""What is in doubt is finished by any process, from its record alone, and as often as one likes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa

from core.batches.payout_batch import BatchStatus, PayoutBatch
from core.database.connection import Database
from core.ids import new_id
from core.in_doubt.finishing import Finished, Finisher
from core.in_doubt.records import Doubt, InDoubt
from core.messages import Allocation, Outcome
from tests.core.batch_builders import accept, accept_unreleased, make_rows, pay_all, read_balances, read_progress
from tests.core.builders import allocate, allocation_of, database_now_us, read_payout_balance
from tests.servers import Account, open_account, verify_books


@dataclass
class Store:
    """Records in memory: where they are kept is tested elsewhere."""

    records: list[InDoubt] = field(default_factory=list)

    def add(self, records: Sequence[InDoubt]) -> None:
        self.records.extend(records)

    def read(self) -> list[InDoubt]:
        return list(self.records)

    def discard(self, records: Sequence[InDoubt]) -> None:
        self.records = [record for record in self.records if record not in records]


def record_of(call: Allocation) -> InDoubt:
    return InDoubt(Doubt.CALL_FAILED, call.business_id, call.id, call.deadline_us)


def record_of_batch(batch: PayoutBatch, doubt: Doubt = Doubt.BATCH_FAILED) -> InDoubt:
    return InDoubt(doubt, batch.business_id, batch.id)


def finish(database: Database, store: Store, overdue_after_s: float = 0) -> Finished:
    return Finisher(database, store, overdue_after_s=overdue_after_s).work()


def test_call_that_committed_is_reversed(database: Database, payer: Account) -> None:
    call = allocation_of(payer)
    allocate(database, call)
    store = Store([record_of(call)])
    result = finish(database, store)
    assert result.finished == result.reversed == [record_of(call)]
    assert store.records == []
    assert read_payout_balance(database, payer.business.id) == payer.business.payout_balance
    assert verify_books(database).balanced


def test_call_that_did_not_commit_is_never_paid(database: Database, payer: Account) -> None:
    call = allocation_of(payer)  # by the database's clock, its deadline is far away
    store = Store([record_of(call)])
    result = finish(database, store)
    assert (result.finished, result.reversed) == ([record_of(call)], [])
    assert allocate(database, call) == [Outcome.EXPIRED]


def test_call_is_not_overdue_before_it_was_known_for_long(database: Database, payer: Account) -> None:
    early = allocation_of(payer)
    late = allocation_of(payer, deadline_us=database_now_us(database) - 1)
    store = Store([record_of(early), record_of(late)])
    result = finish(database, store, overdue_after_s=60)
    assert (result.finished, result.left) == ([record_of(late)], [record_of(early)])
    assert store.records == [record_of(early)]
    assert allocate(database, early) == [Outcome.ALLOCATED]


def test_replay_that_was_answered_500_is_withdrawn_and_the_payment_stays(database: Database, payer: Account) -> None:
    paid, again = (allocation_of(payer, idempotency_key="key") for _ in range(2))
    allocate(database, paid)
    allocate(database, again)
    result = finish(database, Store([record_of(again)]))
    assert (result.finished, result.reversed) == ([record_of(again)], [])
    assert read_payout_balance(database, payer.business.id) == payer.business.payout_balance - 100


def test_what_was_finished_once_is_not_reversed_again(database: Database, payer: Account) -> None:
    call = allocation_of(payer)
    allocate(database, call)
    finish(database, Store([record_of(call)]))
    result = finish(database, Store([record_of(call)]))
    assert (result.finished, result.reversed) == ([record_of(call)], [])
    assert read_payout_balance(database, payer.business.id) == payer.business.payout_balance


def test_batch_that_was_answered_500_is_cancelled(database: Database, payer: Account) -> None:
    before = read_balances(database, payer)
    batch = accept_unreleased(database, payer, make_rows(1, 2, 4))
    result = finish(database, Store([record_of_batch(batch)]))
    assert result.finished == result.cancelled == [record_of_batch(batch)]
    assert read_balances(database, payer) == before


def test_batch_that_was_never_accepted_is_finished(database: Database, payer: Account) -> None:
    record = InDoubt(Doubt.BATCH_FAILED, payer.business.id, new_id())
    result = finish(database, Store([record]))
    assert (result.finished, result.cancelled) == ([record], [])


def test_batch_that_a_retry_had_released_is_left_to_it(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4))
    result = finish(database, Store([record_of_batch(batch)]))
    assert (result.finished, result.cancelled) == ([record_of_batch(batch)], [])
    pay_all(database, batch)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 3, 7)


def test_batch_that_was_answered_202_is_released(database: Database, payer: Account) -> None:
    batch = accept_unreleased(database, payer, make_rows(1, 2, 4))
    finish(database, Store([record_of_batch(batch, Doubt.BATCH_ACCEPTED)]))
    pay_all(database, batch)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 3, 7)


def test_unknown_business_keeps_nothing_from_being_finished(database: Database, payer: Account) -> None:
    strangers = [InDoubt(Doubt.BATCH_FAILED, new_id(), new_id()), InDoubt(Doubt.CALL_FAILED, new_id(), new_id(), 1)]
    call = allocation_of(payer)
    allocate(database, call)
    result = finish(database, Store([*strangers, record_of(call)]))
    assert result.reversed == [record_of(call)]
    assert verify_books(database).balanced


def test_records_stay_while_the_database_is_out_of_reach(database_url: str, payer: Account) -> None:
    store = Store([record_of(allocation_of(payer))])
    with (
        Database("postgresql://127.0.0.1:1/none", transaction_timeout_s=1) as nowhere,
        pytest.raises(sa.exc.OperationalError),
    ):
        finish(nowhere, store)
    assert len(store.records) == 1


def test_each_business_is_finished_by_itself(database: Database, payer: Account) -> None:
    other = open_account(database)
    mine, theirs = allocation_of(payer), allocation_of(other)
    allocate(database, mine, theirs)
    result = finish(database, Store([record_of(mine), record_of(theirs)]))
    assert len(result.reversed) == 2
