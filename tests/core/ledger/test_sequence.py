"""The numbers of a business's history: from 1, without gaps, in the order of commits, whoever writes."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import core.database.schema
from core.database.connection import Database
from core.database.schema import migrate
from core.ids import new_id
from core.ledger.history import Selection, list_transactions
from core.parties import businesses
from tests.core.batch_builders import accept, cancel, make_rows, pay_all, pay_chunk
from tests.core.builders import allocate, allocation_of, run_sql, withdraw
from tests.servers import Account, Servers, open_account, verify_books

# The statement by which workers of version 0.1 write, frozen.
_WRITE_OF_0_1 = """
    WITH entry AS MATERIALIZED (
        SELECT *
        FROM unnest(CAST(:ids AS uuid[]), CAST(:emails AS text[]), CAST(:amounts AS bigint[]))
            AS entry (id, email, amount)
    ), credited AS (
        INSERT INTO payout_users AS existing (business_id, id, email, hash_digest, balance)
        SELECT :business_id, uuidv7(), email, '', sum(amount)
        FROM entry
        GROUP BY email
        ON CONFLICT (business_id, email) DO UPDATE
            SET balance = existing.balance + excluded.balance, updated_at = now()
        RETURNING business_id, email, id, balance
    ), written AS (
        INSERT INTO payout_transactions (
            business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after
        )
        SELECT business_id, entry.id, 'allocation', credited.id, amount, 0, balance
        FROM entry
        JOIN credited USING (email)
        RETURNING business_id, amount
    )
    UPDATE businesses
    SET payout_balance = payout_balance - debit.amount
    FROM (SELECT business_id, sum(amount) AS amount FROM written GROUP BY business_id) AS debit
    WHERE businesses.id = debit.business_id
"""


def read_numbers(database: Database, business_id: UUID) -> list[tuple[int, UUID]]:
    """Return (number, id) in the order of numbers, after a look at what the business itself says."""
    query = "SELECT sequence, id FROM payout_transactions WHERE business_id = :id ORDER BY sequence"
    with database.snapshot() as connection:
        rows = connection.execute(sa.text(query), {"id": business_id}).all()
        last = businesses.get_business(connection, business_id).last_sequence
    assert [row.sequence for row in rows] == list(range(1, last + 1))
    return [(row.sequence, row.id) for row in rows]


def fund(database: Database, business_id: UUID) -> None:
    with database.transaction() as connection:
        businesses.fund_business(connection, business_id, 5)


def test_every_way_to_write_takes_the_next_numbers(database: Database, payer: Account) -> None:
    first, second = allocation_of(payer, "a@example.com"), allocation_of(payer, "b@example.com")
    allocate(database, first, second)
    assert withdraw(database, first)
    fund(database, payer.business.id)
    with database.transaction() as connection:
        businesses.deposit(connection, payer.business.id, 50)
        businesses.add_funds(connection, payer.business.id, 50)
    pay_all(database, accept(database, payer, make_rows(3, 4, 5)), rows_max=2)
    stopped = accept(database, payer, make_rows(6, 7))
    pay_chunk(database, stopped, 0, rows_max=1)
    cancel(database, stopped)
    numbers = read_numbers(database, payer.business.id)
    assert [id_ for _, id_ in numbers[1:3]] == [first.id, second.id]
    assert len(numbers) == 1 + 2 + 1 + 1 + 1 + 3 + 1
    assert len(read_numbers(database, payer.business.twin_id)) == 1
    assert verify_books(database).balanced


def test_what_was_refused_takes_no_number(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, amount_cents=10**8), allocation_of(payer, amount_cents=1))
    assert len(read_numbers(database, payer.business.id)) == 2


def test_businesses_of_one_group_are_numbered_apart(database: Database) -> None:
    accounts = [open_account(database) for _ in range(3)]
    group = [allocation_of(account, f"{number}@example.com") for number in range(4) for account in accounts]
    allocate(database, *group)
    for account in accounts:
        own = [each.id for each in group if each.business_id == account.business.id]
        assert [id_ for _, id_ in read_numbers(database, account.business.id)[1:]] == own


def test_numbers_are_in_the_order_of_commits_whoever_writes_at_once(shared_database: Database) -> None:
    account = open_account(shared_database)
    seen: list[int] = []
    done = threading.Event()

    def write(number: int) -> None:
        for _ in range(25):
            paid = allocation_of(account, f"{random.randrange(5)}@example.com", 1)  # noqa: S311 (not a secret)
            allocate(shared_database, paid, allocation_of(account, "shared@example.com", 2))
            if number == 0:
                withdraw(shared_database, paid)
            if number == 1:
                fund(shared_database, account.business.id)

    def look() -> None:
        """Whenever a number can be seen, all before it can be seen."""
        while not done.is_set():
            seen.append(len(read_numbers(shared_database, account.business.id)))

    with ThreadPoolExecutor(5) as threads:
        looking = threads.submit(look)
        for each in [threads.submit(write, number) for number in range(4)]:
            each.result()
        done.set()
        looking.result()
    assert len(set(seen)) > 2
    assert len(read_numbers(shared_database, account.business.id)) == 1 + 4 * 25 * 2 + 25 + 25


def test_a_number_is_given_once(database: Database, payer: Account) -> None:
    with pytest.raises(sa.exc.IntegrityError, match="uq_payout_transactions_business_id_sequence"):
        run_sql(
            database,
            "INSERT INTO payout_transactions (business_id, id, type, amount, payout_balance_after, sequence)"
            " VALUES (:business_id, :id, 'funding', 5, 5, 1)",
            business_id=payer.business.id,
            id=new_id(),
        )


def test_rows_that_a_worker_of_the_version_before_writes_are_numbered(database: Database, payer: Account) -> None:
    ids = [new_id() for _ in range(3)]
    run_sql(
        database,
        _WRITE_OF_0_1,
        business_id=payer.business.id,
        ids=ids,
        emails=["a@example.com", "b@example.com", "a@example.com"],
        amounts=[1, 2, 3],
    )
    assert {id_ for _, id_ in read_numbers(database, payer.business.id)[1:]} == set(ids)
    allocate(database, allocation_of(payer, "a@example.com", 4))
    assert len(read_numbers(database, payer.business.id)) == 5
    assert verify_books(database).balanced


def test_lists_follow_the_numbers_whatever_the_clock_said(database: Database, payer: Account) -> None:
    paid = [allocation_of(payer, f"{number}@example.com") for number in range(6)]
    for number, each in enumerate(paid):
        allocate(database, each)
        run_sql(
            database,
            "UPDATE payout_transactions SET created_at = created_at - :back * interval '1 hour' WHERE id = :id",
            back=number % 3,
            id=each.id,
        )
    with database.transaction() as connection:
        rows = list_transactions(connection, payer.business.id, Selection(), limit=10)
    assert [row.id for row in rows][:-1] == [each.id for each in reversed(paid)]


def test_rows_from_before_are_numbered_by_time(servers: Servers) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(core.database.schema.__file__).parent / "migrations"))
    with Database(servers.create(f"empty_{uuid4().hex}"), transaction_timeout_s=None) as database:
        with database.transaction() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0005")
        ids = [uuid4(), uuid4()]
        for id_ in ids:
            run_sql(
                database,
                """
                WITH business AS (
                    INSERT INTO businesses (id, name, mode, twin_id, payout_balance) VALUES (:id, 'A', 'live', :id, 10)
                )
                INSERT INTO payout_transactions (business_id, id, type, amount, payout_balance_after, created_at)
                SELECT :id, uuidv7(), 'funding', number, 0, now() - number * interval '1 hour'
                FROM generate_series(1, 4) AS number
                """,
                id=id_,
            )
        migrate(database)
        # Each funding has got its origin.
        assert verify_books(database).discrepancies == []
        for id_ in ids:
            assert len(read_numbers(database, id_)) == 4
            with database.transaction() as connection:
                rows = list_transactions(connection, id_, Selection(), limit=10)
            assert [row.amount for row in rows] == [1, 2, 3, 4]
            fund(database, id_)
            assert len(read_numbers(database, id_)) == 5
