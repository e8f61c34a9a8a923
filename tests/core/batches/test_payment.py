"""Paying and cancelling on PostgreSQL: whatever comes between two chunks, each row is paid once, or given back."""

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from threading import Barrier
from uuid import uuid4

import pytest
import sqlalchemy as sa

from core.batches import payment, reading
from core.batches.payout_batch import BatchRow, BatchStatus, PayoutBatch, PayoutBatchError
from core.database.connection import DATABASE_ERRORS, Database
from core.parties.api_keys import revoke_api_key
from core.parties.businesses import set_payouts_enabled
from tests.core.batch_builders import (
    accept,
    assert_books_balance,
    cancel,
    find_stalled,
    make_rows,
    pay_all,
    pay_chunk,
    read_balances,
    read_batch,
    read_business,
    read_progress,
    switch_payouts,
)
from tests.core.batches.faults import FUNDS_CENTS, THREADS, die_in_chunk
from tests.core.builders import (
    allocate,
    allocation_of,
    read_history,
    read_user_balances,
    run_sql,
    wait_until_blocked,
)
from tests.servers import Account, open_account

# Paying


def test_a_chunk_credits_and_writes_the_history_and_uses_the_reservation_up(database: Database, payer: Account) -> None:
    batch = accept(database, payer, [BatchRow("a@example.com", 100), BatchRow("b@example.com", 20)])
    assert pay_chunk(database, batch, 0) is None
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 2, 120)
    assert read_balances(database, payer) == (FUNDS_CENTS - 120, 0)
    assert read_user_balances(database, payer.business.id) == {"a@example.com": 100, "b@example.com": 20}
    rows = read_history(database, payer.business.id)
    assert [(row.type, row.email, row.amount, row.payout_balance_after, row.user_balance_after) for row in rows] == [
        ("allocation", "a@example.com", 100, FUNDS_CENTS - 120, 100),
        ("allocation", "b@example.com", 20, FUNDS_CENTS - 120, 20),
    ]


@pytest.mark.parametrize("rows_max", [1, 2, 3, 6, 7, 100])
def test_chunks_of_any_size_pay_each_row_once_and_in_order(database: Database, payer: Account, rows_max: int) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4, 8, 16, 32, 64))
    position: int | None = 0
    paid = 0
    while position is not None:
        position = pay_chunk(database, batch, position, rows_max)
        paid = min(paid + rows_max, 7)
        status = BatchStatus.COMPLETED if paid == 7 else BatchStatus.PROCESSING
        assert read_progress(database, batch) == (status, paid, 2**paid - 1)
        assert position == (paid if paid < 7 else None)
        assert read_balances(database, payer) == (FUNDS_CENTS - 127, 127 - (2**paid - 1))
        assert_books_balance(database)
    history = read_history(database, payer.business.id)
    assert [row.amount for row in history] == [1, 2, 4, 8, 16, 32, 64]


def test_each_row_says_its_users_balance_right_after_it(database: Database, payer: Account) -> None:
    emails = ["a@example.com", "b@example.com", "a@example.com", "a@example.com", "b@example.com", "a@example.com"]
    allocate(database, allocation_of(payer, "a@example.com", 1_000))
    batch = accept(database, payer, [BatchRow(email, 10**number) for number, email in enumerate(emails)])
    assert pay_chunk(database, batch, 0, 4) == 4
    allocate(database, allocation_of(payer, "a@example.com", 7))
    assert pay_chunk(database, batch, 4, 4) is None
    running: dict[str | None, int] = defaultdict(int)
    with database.transaction() as connection:
        query = sa.text(
            "SELECT email, amount, user_balance_after FROM payout_transactions AS history "
            "JOIN payout_users ON payout_users.id = payout_user_id WHERE history.business_id = :id "
            "ORDER BY history.created_at, history.id"
        )
        for email, amount, user_balance_after in connection.execute(query, {"id": payer.business.id}):
            running[email] += amount
            assert user_balance_after == running[email]
    assert running == {"a@example.com": 1_007 + 1 + 100 + 1_000 + 100_000, "b@example.com": 10 + 10_000}


def test_the_history_says_what_is_free_and_a_batch_does_not_change_that(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(10, 20))
    assert pay_chunk(database, batch, 0, 1) == 1
    allocate(database, allocation_of(payer, "sync@example.com", 100))
    assert pay_chunk(database, batch, 1, 1) is None
    rows = sorted(read_history(database, payer.business.id), key=lambda row: row.amount)
    assert [(row.amount, row.payout_balance_after) for row in rows] == [
        (10, FUNDS_CENTS - 30),
        (20, FUNDS_CENTS - 130),
        (100, FUNDS_CENTS - 130),
    ]


def test_a_user_of_a_batch_is_the_same_as_that_of_one_call(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, "old@example.com", 1), allocation_of(payer, "other@example.com", 1))
    pay_all(database, accept(database, payer, [BatchRow("old@example.com", 2), BatchRow("new@example.com", 3)]))
    allocate(database, allocation_of(payer, "new@example.com", 4))
    assert read_user_balances(database, payer.business.id) == {
        "old@example.com": 3,
        "other@example.com": 1,
        "new@example.com": 7,
    }
    query = sa.text(
        "SELECT item.hash_digest = payee.hash_digest FROM payout_batch_items AS item "
        "JOIN payout_users AS payee USING (business_id, email) WHERE business_id = :id"
    )
    with database.transaction() as connection:
        assert connection.execute(query, {"id": payer.business.id}).scalars().all() == [True, True]


def test_an_inactive_user_is_paid_and_stays_inactive(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, "a@example.com", 1))
    run_sql(database, "UPDATE payout_users SET status = 'inactive' WHERE business_id = :id", id=payer.business.id)
    pay_all(database, accept(database, payer, [BatchRow("a@example.com", 2)]))
    with database.transaction() as connection:
        query = sa.text("SELECT balance, status FROM payout_users WHERE business_id = :id")
        row = connection.execute(query, {"id": payer.business.id}).one()
    assert tuple(row) == (3, "inactive")


def test_batches_of_two_businesses_do_not_touch_each_other(database: Database, payer: Account) -> None:
    other = open_account(database)
    own, foreign = (accept(database, each, make_rows(10, 20)) for each in (payer, other))
    with database.pipeline() as connection:
        assert payment.pay_chunk(connection, payer.business.id, foreign.id, 0, 500).next_first is None
        assert payment.pay_chunk(connection, other.business.id, own.id, 0, 500).next_first is None
    with database.transaction() as connection:
        assert reading.find_batch(connection, payer.business.id, foreign.id) is None
        with pytest.raises(PayoutBatchError, match=r"There is no such payout batch\."):
            payment.cancel(connection, payer.business.id, foreign.id)
    assert read_progress(database, own) == read_progress(database, foreign) == (BatchStatus.QUEUED, 0, 0)
    pay_all(database, own)
    assert read_user_balances(database, other.business.id) == {}


@pytest.mark.parametrize("first", [0, 1, 3, 4, 5, 2**40])
def test_a_message_that_names_another_row_than_the_next_does_nothing(
    database: Database, payer: Account, first: int
) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4, 8))
    assert pay_chunk(database, batch, 0, 2) == 2
    before = read_batch(database, batch), read_history(database, payer.business.id)
    assert pay_chunk(database, batch, first, 2) is None
    assert (read_batch(database, batch), read_history(database, payer.business.id)) == before


def test_nothing_is_paid_of_what_is_finished_or_unknown(database: Database, payer: Account) -> None:
    paid, cancelled = (accept(database, payer, make_rows(1, 2, 4)) for _ in range(2))
    pay_all(database, paid)
    pay_chunk(database, cancelled, 0, 1)
    cancel(database, cancelled)
    for batch in (paid, cancelled):
        before = read_batch(database, batch)
        for first in range(4):
            assert pay_chunk(database, batch, first) is None
        assert read_batch(database, batch) == before
    with database.pipeline() as connection:
        assert payment.pay_chunk(connection, payer.business.id, uuid4(), 0, 500).next_first is None
        assert payment.pay_chunk(connection, uuid4(), paid.id, 0, 500).next_first is None


def test_copies_of_a_message_at_once_pay_once(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(*range(1, 41)))
    start = Barrier(THREADS)

    def work(_: int) -> None:
        for first in range(0, 40, 10):
            start.wait()
            pay_chunk(database, batch, first, 10)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, range(THREADS)))
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 40, 820)
    assert len(read_history(database, account.business.id)) == 40


def test_workers_that_race_each_other_through_a_batch_pay_each_row_once(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(*range(1, 201), emails=17))

    def work(seed: int) -> None:
        random = Random(seed)  # noqa: S311 (a fixed sequence)
        while (found := read_batch(database, batch)).finished_at is None:
            pay_all(database, batch, found.processed, random.randint(1, 20))

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, range(THREADS)))
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 200, 20_100)
    assert read_balances(database, account) == (FUNDS_CENTS - 20_100, 0)


def test_a_worker_that_dies_in_a_chunk_leaves_it_to_the_next(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4, 8, 16))
    assert pay_chunk(database, batch, 0, 2) == 2
    die_in_chunk(database, batch, 2, 2)
    assert read_progress(database, batch) == (BatchStatus.PROCESSING, 2, 3)
    assert find_stalled(database, payer) == [(batch.id, 2)]
    pay_all(database, batch, 2, 2)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 5, 31)


def test_a_chunk_that_cannot_be_paid_stays_reserved_as_a_whole(database: Database, payer: Account) -> None:
    run_sql(database, "ALTER TABLE payout_transactions ADD CONSTRAINT refuse CHECK (amount <> 666) NOT VALID")
    batch = accept(database, payer, make_rows(1, 2, 4, 666))
    assert pay_chunk(database, batch, 0, 2) == 2
    for _ in range(2):
        with pytest.raises(DATABASE_ERRORS, match="refuse"):
            pay_chunk(database, batch, 2, 2)
        assert read_progress(database, batch) == (BatchStatus.PROCESSING, 2, 3)
        assert read_balances(database, payer) == (FUNDS_CENTS - 673, 670)
    run_sql(database, "ALTER TABLE payout_transactions DROP CONSTRAINT refuse")
    pay_all(database, batch, 2)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 4, 673)


def test_a_session_that_is_ended_in_a_chunk_loses_nothing(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4))

    def pay_and_be_cut() -> None:
        with database.pipeline() as connection:
            payment.pay_chunk(connection, payer.business.id, batch.id, 0, 2)
            connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(DATABASE_ERRORS):
        pay_and_be_cut()
    assert read_progress(database, batch) == (BatchStatus.QUEUED, 0, 0)
    pay_all(database, batch)
    assert read_user_balances(database, payer.business.id) == {
        "0@example.com": 1,
        "1@example.com": 2,
        "2@example.com": 4,
    }


# Payouts that are disabled midway


def test_while_payouts_are_disabled_the_rest_waits(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4, 8))
    assert pay_chunk(database, batch, 0, 2) == 2
    switch_payouts(database, payer, enabled=False)
    before = read_batch(database, batch)
    assert pay_chunk(database, batch, 2, 2) is None
    assert read_batch(database, batch) == before
    assert find_stalled(database, payer) == []
    assert read_balances(database, payer) == (FUNDS_CENTS - 15, 12)

    switch_payouts(database, payer, enabled=True)
    assert find_stalled(database, payer) == [(batch.id, 2)]
    pay_all(database, batch, 2, 1)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 4, 15)


def test_a_chunk_that_waits_for_a_disabling_pays_nothing(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(1, 2))
    with ThreadPoolExecutor() as threads:
        with database.transaction() as connection:
            set_payouts_enabled(connection, account.business.id, enabled=False)
            position = threads.submit(pay_chunk, database, batch, 0, 1)
            wait_until_blocked(database)
        assert position.result() is None
    assert read_progress(database, batch) == (BatchStatus.QUEUED, 0, 0)


def test_a_batch_goes_on_when_the_key_that_brought_it_is_revoked(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2))
    with database.transaction() as connection:
        revoke_api_key(connection, payer.api_key_id)
    pay_all(database, batch)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 2, 3)


# Cancelling


@pytest.mark.parametrize("paid", [0, 1, 3])
@pytest.mark.parametrize("enabled", [True, False])
def test_cancelling_gives_the_rest_back(database: Database, payer: Account, paid: int, enabled: bool) -> None:
    other = accept(database, payer, make_rows(1_000))
    batch = accept(database, payer, make_rows(1, 2, 4, 8))
    if paid:
        assert pay_chunk(database, batch, 0, paid) == paid
    switch_payouts(database, payer, enabled=enabled)
    cancelled = cancel(database, batch)
    assert (cancelled.status, cancelled.processed, cancelled.allocated_amount) == (
        BatchStatus.CANCELLED,
        paid,
        2**paid - 1,
    )
    assert cancelled == read_batch(database, batch)
    assert cancelled.finished_at is not None
    assert read_balances(database, payer) == (FUNDS_CENTS - 1_000 - (2**paid - 1), 1_000)
    assert read_progress(database, other) == (BatchStatus.QUEUED, 0, 0)


def test_cancelling_twice_gives_back_once(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2))
    cancel(database, batch)
    with pytest.raises(PayoutBatchError, match=r"The payout batch is cancelled already\."):
        cancel(database, batch)
    assert read_balances(database, payer) == (FUNDS_CENTS, 0)


def test_what_is_completed_cannot_be_cancelled(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2))
    pay_all(database, batch)
    with pytest.raises(PayoutBatchError, match=r"The payout batch is completed already\."):
        cancel(database, batch)
    assert read_balances(database, payer) == (FUNDS_CENTS - 3, 0)


def test_cancelling_at_once_gives_back_once(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(1, 2, 4))
    pay_chunk(database, batch, 0, 1)
    start = Barrier(THREADS)

    def try_to_cancel(_: int) -> bool:
        start.wait()
        try:
            cancel(database, batch)
        except PayoutBatchError:
            return False
        return True

    with ThreadPoolExecutor(THREADS) as threads:
        assert sum(threads.map(try_to_cancel, range(THREADS))) == 1
    assert read_balances(database, account) == (FUNDS_CENTS - 1, 0)


def test_cancelling_waits_for_the_chunk_that_is_under_way(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(1, 2, 4))
    with ThreadPoolExecutor() as threads:
        with database.pipeline() as connection:
            assert payment.pay_chunk(connection, account.business.id, batch.id, 0, 2).next_first == 2
            cancelled = threads.submit(cancel, database, batch)
            wait_until_blocked(database)
        assert cancelled.result().allocated_amount == 3
    assert read_balances(database, account) == (FUNDS_CENTS - 3, 0)


def test_a_chunk_that_waits_for_a_cancelling_pays_nothing(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(1, 2, 4))
    with ThreadPoolExecutor() as threads:
        with database.transaction() as connection:
            payment.cancel(connection, account.business.id, batch.id)
            position = threads.submit(pay_chunk, database, batch, 0, 2)
            wait_until_blocked(database)
        assert position.result() is None
    assert read_progress(database, batch) == (BatchStatus.CANCELLED, 0, 0)


def test_cancelling_and_the_last_chunk_at_once_are_one_or_the_other(database: Database) -> None:
    account = open_account(database)
    seen: Counter[BatchStatus] = Counter()
    start = Barrier(2)

    def cancel_or_not(batch: PayoutBatch) -> None:
        start.wait()
        with suppress(PayoutBatchError):
            cancel(database, batch)

    def pay(batch: PayoutBatch) -> None:
        start.wait()
        pay_all(database, batch, rows_max=2)

    with ThreadPoolExecutor(2) as threads:
        for _ in range(25):
            batch = accept(database, account, make_rows(1, 2, 4))
            free = read_business(database, account).payout_balance
            for work in [threads.submit(cancel_or_not, batch), threads.submit(pay, batch)]:
                work.result()
            status, _, allocated = read_progress(database, batch)
            seen[status] += 1
            assert allocated in ({7} if status is BatchStatus.COMPLETED else {0, 3})
            assert read_balances(database, account) == (free + 7 - allocated, 0)
    assert seen.keys() <= {BatchStatus.COMPLETED, BatchStatus.CANCELLED}
