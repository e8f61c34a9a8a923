"""Reading batches and their rows."""

from uuid import uuid4

from core.batches import reading
from core.batches.payout_batch import BatchRow, RowOutcome
from core.database.connection import Database
from tests.core.batch_builders import (
    accept,
    cancel,
    find_stalled,
    make_rows,
    pay_all,
    pay_chunk,
)
from tests.core.builders import (
    read_history,
    run_sql,
)
from tests.servers import Account, open_account

# What became of the rows


def test_rows_are_pending_then_allocated_or_cancelled(database: Database, payer: Account) -> None:
    rows = [BatchRow("a@example.com", 1, "x"), BatchRow("b@example.com", 2), BatchRow("a@example.com", 4, "y")]
    batch = accept(database, payer, rows)

    def read_outcomes() -> list[RowOutcome]:
        with database.transaction() as connection:
            found = reading.find_batch(connection, payer.business.id, batch.id)
            assert found is not None
            results = reading.list_results(connection, found, limit=10)
            assert [BatchRow(row.email, row.amount, row.reference) for row in results] == rows
            assert [row.position for row in results] == [0, 1, 2]
            assert reading.list_results(connection, found, limit=1, after=0) == results[1:2]
            assert reading.list_results(connection, found, limit=9, after=2) == []
        paid = {row.id: row.amount for row in read_history(database, payer.business.id)}
        allocated = [row for row in results if row.outcome is RowOutcome.ALLOCATED]
        assert {row.transaction_id: row.amount for row in allocated} == paid
        return [row.outcome for row in results]

    assert read_outcomes() == [RowOutcome.PENDING] * 3
    pay_chunk(database, batch, 0, 1)
    assert read_outcomes() == [RowOutcome.ALLOCATED, RowOutcome.PENDING, RowOutcome.PENDING]
    cancel(database, batch)
    assert read_outcomes() == [RowOutcome.ALLOCATED, RowOutcome.CANCELLED, RowOutcome.CANCELLED]


def test_batches_are_listed_newest_first_and_none_of_others(database: Database, payer: Account) -> None:
    accept(database, open_account(database), make_rows(1))
    batches = [accept(database, payer, make_rows(amount)) for amount in (1, 2, 3)]
    with database.transaction() as connection:
        listed = reading.list_batches(connection, payer.business.id, limit=10)
        assert listed == batches[::-1]
        assert reading.list_batches(connection, payer.business.id, limit=1, after=listed[0].id) == [batches[1]]
        assert reading.list_batches(connection, payer.business.id, limit=9, after=listed[2].id) == []
        assert reading.find_batch_anywhere(connection, batches[0].id) == batches[0]
        assert reading.find_batch_anywhere(connection, uuid4()) is None


# Finding what stands still


def test_only_unfinished_batches_that_nobody_works_on_are_found(database: Database, payer: Account) -> None:
    fresh, idle, begun, paid, cancelled = (accept(database, payer, make_rows(1, 2, 4)) for _ in range(5))
    pay_chunk(database, begun, 0, 2)
    pay_all(database, paid)
    cancel(database, cancelled)
    run_sql(
        database,
        "UPDATE payout_batches SET updated_at = now() - interval '1 hour' WHERE business_id = :id AND id <> :fresh",
        id=payer.business.id,
        fresh=fresh.id,
    )
    assert set(find_stalled(database, payer, idle_s=600)) == {(idle.id, 0), (begun.id, 2)}
    assert find_stalled(database, payer, idle_s=7_200.5) == []
    pay_chunk(database, begun, 2, 1)
    pay_chunk(database, idle, 0, 1)
    assert find_stalled(database, payer, idle_s=600) == []


def test_one_look_finds_batches_of_all_businesses(database: Database, payer: Account) -> None:
    other = open_account(database)
    batches = [accept(database, each, make_rows(1)) for each in (payer, other, payer)]
    assert {batch_id for batch_id, _ in find_stalled(database, payer, other)} == {batch.id for batch in batches}
