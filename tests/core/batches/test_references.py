"""References in payout batches: what was paid is not paid again, and what was not paid can be."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from core.batches import acceptance, reading
from core.batches.acceptance import Accepted, ReferencesReused, ReferencesTakenError, Sorting
from core.batches.payout_batch import BatchRow, BatchStatus, PayoutBatch, RowOutcome
from core.database.connection import Database
from core.ids import new_id
from core.messages import Outcome
from tests.core.batch_builders import (
    accept,
    cancel,
    pay_all,
    pay_chunk,
    read_balances,
    read_progress,
    submission_of,
    try_to_accept,
)
from tests.core.builders import HASH_SECRET, allocate, allocation_of, read_history
from tests.servers import Account, open_account, verify_books


def rows_of(*references: str | None, amount: int = 10) -> list[BatchRow]:
    return [
        BatchRow(f"{number % 3}@example.com" if reference is None else f"{reference}@example.com", amount, reference)
        for number, reference in enumerate(references)
    ]


def results_of(database: Database, batch: PayoutBatch, limit: int = 100) -> list[tuple[int, str | None, RowOutcome]]:
    """Read all results, `limit` at a time."""
    results: list[tuple[int, str | None, RowOutcome]] = []
    while True:
        with database.transaction() as connection:
            found = reading.find_batch(connection, batch.business_id, batch.id)
            assert found is not None
            after = results[-1][0] if results else None
            rows = reading.list_results(connection, found, limit=limit, after=after)
        results += [(row.position, row.reference, row.outcome) for row in rows]
        if len(rows) < limit:
            return results


def payments(database: Database, account: Account) -> list[tuple[str | None, str | None, int]]:
    return [(row.reference, row.email, row.amount) for row in read_history(database, account.business.id)]


def test_a_paid_row_is_in_the_history_with_its_reference(database: Database, payer: Account) -> None:
    pay_all(database, accept(database, payer, rows_of("x", None)))
    assert payments(database, payer) == [("x", "x@example.com", 10), (None, "1@example.com", 10)]


def test_yesterdays_file_with_one_line_more_pays_one_line(database: Database, payer: Account) -> None:
    pay_all(database, accept(database, payer, rows_of("a", "b", "c")))
    batch = accept(database, payer, rows_of("c", "new", "a", "b"))
    assert (batch.total, batch.already_paid, batch.processed, batch.amount) == (4, 3, 3, 10)
    assert read_balances(database, payer) == (1_000_000 - 40, 10)
    pay_all(database, batch)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 4, 10)
    assert results_of(database, batch) == [
        (0, "c", RowOutcome.ALREADY_PAID),
        (1, "new", RowOutcome.ALLOCATED),
        (2, "a", RowOutcome.ALREADY_PAID),
        (3, "b", RowOutcome.ALREADY_PAID),
    ]
    assert len(payments(database, payer)) == 4
    assert verify_books(database).balanced


def test_of_an_already_paid_row_the_results_name_the_payment(database: Database, payer: Account) -> None:
    call = allocation_of(payer, "a@example.com", 10, reference="a")
    allocate(database, call)
    batch = accept(database, payer, rows_of("a"))
    with database.transaction() as connection:
        (row,) = reading.list_results(connection, batch, limit=10)
    assert (row.transaction_id, row.email, row.amount, row.reference) == (call.id, "a@example.com", 10, "a")


def test_a_batch_of_which_all_is_paid_is_completed_at_once(database: Database) -> None:
    account = open_account(database, funds_cents=20)
    pay_all(database, accept(database, account, rows_of("a", "b")))
    batch = accept(database, account, rows_of("b", "a"), "key")
    assert (batch.status, batch.total, batch.already_paid, batch.amount) == (BatchStatus.COMPLETED, 2, 2, 0)
    assert batch.finished_at is not None
    assert pay_chunk(database, batch, 0) is None
    replay = try_to_accept(database, account, rows_of("b", "a"), "key")
    assert isinstance(replay, Accepted)
    assert (replay.is_replay, replay.batch.id) == (True, batch.id)
    assert verify_books(database).balanced


def test_other_values_are_refused_by_row_and_nothing_is_accepted(database: Database, payer: Account) -> None:
    accept(database, payer, rows_of("a", "b"))
    rows = [*rows_of("new", "a"), BatchRow("b@example.com", 11, "b"), BatchRow("other@example.com", 10, "a")]
    assert try_to_accept(database, payer, rows[:3]) == ReferencesReused([2])
    assert try_to_accept(database, payer, rows[2:]) == ReferencesReused([0, 1])
    assert read_balances(database, payer) == (1_000_000 - 20, 20)


def test_a_reference_is_used_from_the_acceptance_on(database: Database, payer: Account) -> None:
    batch = accept(database, payer, rows_of("a"))
    call = allocation_of(payer, "a@example.com", 10, reference="a")
    assert allocate(database, call) == [Outcome.REPLAYED]
    assert allocate(database, allocation_of(payer, "a@example.com", 11, reference="a")) == [Outcome.REFERENCE_REUSED]
    assert accept(database, payer, rows_of("a")).already_paid == 1
    pay_all(database, batch)
    assert payments(database, payer) == [("a", "a@example.com", 10)]


def test_a_cancelled_batch_is_finished_by_sending_its_file_again(database: Database, payer: Account) -> None:
    rows = rows_of("a", "b", "c", "d", "e")
    first = accept(database, payer, rows)
    pay_chunk(database, first, 0, 2)
    waiting = accept(database, payer, rows)
    assert waiting.already_paid == 5
    cancel(database, first)
    again = accept(database, payer, rows)
    assert (again.already_paid, again.amount) == (2, 30)
    pay_all(database, again)
    assert sorted(reference or "" for reference, *_ in payments(database, payer)) == ["a", "b", "c", "d", "e"]
    # The file that was sent while the first one ran tells what became of it.
    assert [outcome for *_, outcome in results_of(database, waiting)] == [
        RowOutcome.ALREADY_PAID,
        RowOutcome.ALREADY_PAID,
        RowOutcome.CANCELLED,
        RowOutcome.CANCELLED,
        RowOutcome.CANCELLED,
    ]
    assert read_balances(database, payer) == (1_000_000 - 50, 0)
    assert verify_books(database).balanced


def test_cancelling_again_and_again_frees_each_time(database: Database, payer: Account) -> None:
    for _ in range(3):
        cancel(database, accept(database, payer, rows_of("a", "b")))
    call = allocation_of(payer, "a@example.com", 10, reference="a")
    assert allocate(database, call) == [Outcome.ALLOCATED]
    batch = accept(database, payer, rows_of("a", "b"))
    assert (batch.already_paid, batch.total) == (1, 2)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_results_are_paged_through_in_the_order_of_the_file(database: Database, payer: Account, limit: int) -> None:
    paid = [f"p{number}" for number in range(4)]
    pay_all(database, accept(database, payer, rows_of(*paid)))
    file = ["n0", "p0", "p1", "n1", "n2", "p2", "n3", "n4", "n5", "p3"]
    batch = accept(database, payer, rows_of(*file))
    pay_chunk(database, batch, 0, 3)
    outcomes = dict.fromkeys(paid, RowOutcome.ALREADY_PAID)
    outcomes |= {f"n{number}": RowOutcome.ALLOCATED if number < 3 else RowOutcome.PENDING for number in range(6)}
    expected = [(row, name, outcomes[name]) for row, name in enumerate(file)]
    assert results_of(database, batch, limit) == expected


def test_a_reference_that_is_used_between_the_look_and_the_lock_is_noticed(database: Database, payer: Account) -> None:
    submission = submission_of(payer, rows_of("a", "b"))
    with database.transaction() as connection:
        sorting = acceptance.sort_rows(connection, submission)
    assert isinstance(sorting, Sorting)
    allocate(database, allocation_of(payer, "b@example.com", 10, reference="b"))

    def accept_late() -> None:
        with database.transaction() as connection:
            batch_id = new_id()
            acceptance.load_rows(connection, HASH_SECRET, submission, batch_id, sorting)
            acceptance.accept(connection, submission, batch_id, sorting)

    with pytest.raises(ReferencesTakenError):
        accept_late()
    assert read_balances(database, payer) == (1_000_000 - 10, 0)


def test_files_and_calls_at_once_share_nothing_twice(shared_database: Database) -> None:
    account = open_account(shared_database)
    names = [f"r{number}" for number in range(40)]
    start = Barrier(6)

    def send(number: int) -> None:
        start.wait()
        if number < 3:
            rotated = names[number * 5 :] + names[: number * 5]
            pay_all(shared_database, accept(shared_database, account, rows_of(*rotated)), rows_max=7)
        else:
            for name in names:
                call = allocation_of(account, f"{name}@example.com", 10, reference=name)
                while (outcome := allocate(shared_database, call)[0]) is Outcome.FAILED:
                    time.sleep(0.01)  # a batch with it is not released yet: the API sends the call again
                assert outcome in {Outcome.ALLOCATED, Outcome.REPLAYED}

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(send, range(6)))
    assert sorted(reference or "" for reference, *_ in payments(shared_database, account)) == sorted(names)
    assert read_balances(shared_database, account) == (1_000_000 - 400, 0)
    assert verify_books(shared_database).balanced
