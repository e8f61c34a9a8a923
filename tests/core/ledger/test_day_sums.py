"""The sums by day: what is kept and what came later are together what the history says, at every moment."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from core.database.connection import Database
from core.ids import IdKind, format_id
from core.ledger import statements
from core.ledger.day_sums import (
    FEW_ROWS,
    DaySum,
    Due,
    forget_sums,
    list_due,
    read_day_sums,
    sum_next,
    sum_together,
)
from core.ledger.history import TransactionType
from core.parties.businesses import fund_business
from tests.core.builders import HASH_SECRET, allocate, allocation_of, run_sql, withdraw
from tests.servers import Account, open_account, verify_books

LONG_AGO = date(2020, 1, 1)
NOWHERE = UUID(int=0)

_PLAIN_SUMS = sa.text("""
    SELECT (created_at AT TIME ZONE 'UTC')::date AS day, type, count(*) AS rows, sum(amount)::bigint AS amount
    FROM payout_transactions WHERE business_id = :business_id GROUP BY 1, 2 ORDER BY 1, 2
""")


def read_plain_sums(database: Database, business_id: UUID) -> list[DaySum]:
    with database.transaction() as connection:
        rows = connection.execute(_PLAIN_SUMS, {"business_id": business_id}).all()
    return [DaySum(row.day, TransactionType(row.type), row.rows, row.amount) for row in rows]


def read_sums(database: Database, business_id: UUID, since: date = LONG_AGO) -> list[DaySum]:
    with database.transaction() as connection:
        return read_day_sums(connection, business_id, since)


def sum_all(database: Database, business_id: UUID, rows_max: int = 50_000) -> int:
    """Sum in steps, each in a transaction of its own; return how many it took."""
    steps, is_more = 0, True
    while is_more:
        with database.transaction() as connection:
            is_more = sum_next(connection, business_id, rows_max)
        steps += 1
    return steps


def count_kept(database: Database, business_id: UUID) -> int:
    query = sa.text("SELECT COALESCE(sum(count), 0) FROM payout_day_sums WHERE business_id = :id")
    with database.transaction() as connection:
        return int(connection.execute(query, {"id": business_id}).scalar_one())


def write_past(database: Database, account: Account, days: int, rows_a_day: int) -> None:
    """Write a history of the past, one row of each time."""
    run_sql(
        database,
        """
        INSERT INTO payout_transactions (business_id, id, type, amount, payout_balance_after, created_at)
        SELECT :id, uuidv7(), 'funding', number, 0, now() - day * interval '1 day' - number * interval '1 second'
        FROM generate_series(1, :days) AS day, generate_series(1, :rows) AS number
        """,
        id=account.business.id,
        days=days,
        rows=rows_a_day,
    )


def test_nothing_kept_yet_is_read_from_the_history(database: Database, payer: Account) -> None:
    paid = allocation_of(payer, amount_cents=30)
    allocate(database, paid, allocation_of(payer, amount_cents=12))
    assert withdraw(database, paid)
    today = datetime.now(UTC).date()
    assert read_sums(database, payer.business.id) == [
        DaySum(today, TransactionType.ALLOCATION, 2, 42),
        DaySum(today, TransactionType.FUNDING, 1, 1_000_000),
        DaySum(today, TransactionType.REVERSAL, 1, 30),
    ]


def test_kept_sums_and_the_rest_are_what_the_history_says(database: Database, payer: Account) -> None:
    write_past(database, payer, days=5, rows_a_day=20)
    with database.transaction() as connection:
        assert sum_next(connection, payer.business.id, rows_max=60)
    assert count_kept(database, payer.business.id) == 60
    assert read_sums(database, payer.business.id) == read_plain_sums(database, payer.business.id)
    allocate(database, allocation_of(payer))
    assert read_sums(database, payer.business.id) == read_plain_sums(database, payer.business.id)
    sum_all(database, payer.business.id)
    assert count_kept(database, payer.business.id) == 102
    assert read_sums(database, payer.business.id) == read_plain_sums(database, payer.business.id)


@pytest.mark.parametrize("rows_max", [1, 7, 1000])
def test_steps_are_bounded_and_add_up(database: Database, payer: Account, rows_max: int) -> None:
    write_past(database, payer, days=3, rows_a_day=10)
    steps = sum_all(database, payer.business.id, rows_max)
    assert steps == -(-31 // rows_max)
    assert count_kept(database, payer.business.id) == 31
    assert read_sums(database, payer.business.id) == read_plain_sums(database, payer.business.id)


def test_rows_of_one_time_may_be_summed_apart(database: Database, payer: Account) -> None:
    allocate(database, *[allocation_of(payer, f"{number}@example.com") for number in range(20)])
    assert sum_all(database, payer.business.id, rows_max=3) == 7
    assert read_sums(database, payer.business.id) == read_plain_sums(database, payer.business.id)


def test_summing_again_changes_nothing(database: Database, payer: Account) -> None:
    for _ in range(3):
        sum_all(database, payer.business.id)
        with database.transaction() as connection:
            sum_together(connection, [payer.business.id])
        assert count_kept(database, payer.business.id) == 1
    assert verify_books(database).balanced


def test_only_the_days_asked_for_are_read(database: Database, payer: Account) -> None:
    write_past(database, payer, days=5, rows_a_day=3)
    since = datetime.now(UTC).date() - timedelta(days=2)
    expected = [each for each in read_plain_sums(database, payer.business.id) if each.day >= since]
    assert read_sums(database, payer.business.id, since) == expected
    sum_all(database, payer.business.id)
    assert read_sums(database, payer.business.id, since) == expected


def test_days_are_those_of_utc(database: Database, payer: Account) -> None:
    run_sql(database, "UPDATE payout_transactions SET created_at = '2026-03-01T23:59:59.999999Z'")
    allocate(database, allocation_of(payer))
    run_sql(database, "UPDATE payout_transactions SET created_at = '2026-03-02T00:00:00Z' WHERE type = 'allocation'")
    for _ in range(2):
        assert [each.day for each in read_sums(database, payer.business.id)] == [date(2026, 3, 1), date(2026, 3, 2)]
        sum_all(database, payer.business.id)


def test_a_row_that_commits_late_is_summed_whoever_writes_it(database: Database, payer: Account) -> None:
    """Nothing that PostgreSQL shows of sessions is asked for, so that another role's writer is no exception."""
    with database.transaction() as connection:
        fund_business(connection, payer.business.id, 5)
        sum_all(database, payer.business.id)
        assert count_kept(database, payer.business.id) == 1
    assert read_sums(database, payer.business.id) == read_plain_sums(database, payer.business.id)
    sum_all(database, payer.business.id)
    assert count_kept(database, payer.business.id) == 2
    assert read_sums(database, payer.business.id) == read_plain_sums(database, payer.business.id)


def test_businesses_with_something_to_sum_are_found(database: Database, payer: Account) -> None:
    write_past(database, payer, days=1, rows_a_day=FEW_ROWS)  # and the funding makes one more
    with database.transaction() as connection:
        due = list_due(connection, NOWHERE)
    assert (due.few, due.many) == ([payer.business.twin_id], [payer.business.id])
    assert due.last == max(payer.business.id, payer.business.twin_id)
    sum_all(database, payer.business.id)
    with database.transaction() as connection:
        sum_together(connection, due.few)
        assert list_due(connection, NOWHERE) == Due([], [], due.last)
        assert list_due(connection, due.last) == Due([], [], None)


def test_businesses_are_summed_together_each_from_its_own_number(database: Database) -> None:
    accounts = [open_account(database) for _ in range(4)]
    ids = [account.business.id for account in accounts]
    for number, account in enumerate(accounts):
        if number % 2:
            sum_all(database, account.business.id)
        write_past(database, account, days=number + 1, rows_a_day=3)
    stranger = open_account(database)
    for _ in range(2):
        with database.transaction() as connection:
            sum_together(connection, ids)
        assert [count_kept(database, id_) for id_ in ids] == [4, 7, 10, 13]
    assert count_kept(database, stranger.business.id) == 0
    for id_ in ids:
        assert read_sums(database, id_) == read_plain_sums(database, id_)
    with database.transaction() as connection:
        sum_together(connection, [])


def test_forgotten_sums_are_made_anew(database: Database, payer: Account) -> None:
    sum_all(database, payer.business.id)
    run_sql(database, "UPDATE payout_day_sums SET amount = amount + 1")
    (discrepancy,) = verify_books(database).discrepancies
    assert discrepancy.id == format_id(IdKind.BUSINESS, payer.business.id)
    assert (discrepancy.expected_cents, discrepancy.actual_cents) == (1_000_000, 1_000_001)
    with database.transaction() as connection:
        forget_sums(connection, payer.business.id)
    assert count_kept(database, payer.business.id) == 0
    assert verify_books(database).balanced
    sum_all(database, payer.business.id)
    assert count_kept(database, payer.business.id) == 1
    assert verify_books(database).balanced


@pytest.fixture
def writers(shared_database: Database) -> Iterator[tuple[Account, threading.Event]]:
    """Pay and take back from several threads, until told to stop."""
    account = open_account(shared_database)
    stop = threading.Event()

    def write(number: int) -> None:
        while not stop.is_set():
            paid = allocation_of(account, f"{number}@example.com", 1)
            if number % 2:
                allocate(shared_database, paid, allocation_of(account, "shared@example.com", 2))
            else:
                with shared_database.pipeline() as connection:
                    time.sleep(0.05)  # commits late
                    statements.allocate(connection, HASH_SECRET, [paid])
            if number == 1:
                assert withdraw(shared_database, paid)

    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(write, number) for number in range(4)]
        yield account, stop
        stop.set()
        for each in running:
            each.result()


def test_summing_by_two_while_others_write_loses_nothing(
    shared_database: Database, writers: tuple[Account, threading.Event]
) -> None:
    account, stop = writers
    give_up_at = time.monotonic() + 8

    def keep_summing() -> None:
        while time.monotonic() < give_up_at:
            with shared_database.transaction() as connection:
                sum_together(connection, [account.business.id, account.business.twin_id])
            sum_all(shared_database, account.business.id, rows_max=5)

    with ThreadPoolExecutor(2) as threads:
        summing = [threads.submit(keep_summing) for _ in range(2)]
        while time.monotonic() < give_up_at:
            with shared_database.snapshot() as connection:
                kept = read_day_sums(connection, account.business.id, LONG_AGO)
                rows = connection.execute(_PLAIN_SUMS, {"business_id": account.business.id}).all()
            assert [(each.type, each.count, each.amount) for each in kept] == [
                (row.type, row.rows, row.amount) for row in rows
            ]
        for each in summing:
            each.result()
    stop.set()
    assert count_kept(shared_database, account.business.id) > 20
    assert verify_books(shared_database).balanced
