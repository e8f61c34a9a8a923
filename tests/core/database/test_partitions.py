"""A larger installation may split its tables by business: keys and statements are made for it.

An experiment on a copy of the schema, where all tables with a business's rows are partitioned by hash of `business_id`.
Without statistics the planner takes indexes, as it does with large tables; small ones it may read as a whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from core.database.connection import Database
from core.ledger import resolution, statements
from core.messages import Outcome
from tests.core.builders import HASH_SECRET, allocate, allocation_of, read_payout_balance, resolve, withdraw
from tests.servers import Account, open_account, verify_books

TABLES = ["payout_users", "payout_transactions", "claims", "payout_batches", "payout_batch_items"]
PARTITIONS = 8
_PRIMARY_KEYS = sa.text("""
    SELECT conrelid::regclass::text, pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE contype = 'p' AND conrelid = ANY(CAST(:tables AS regclass[]))
""")
_TOUCHED = sa.text("""
    SELECT relname
    FROM pg_stat_xact_user_tables
    WHERE relname ~ '_p[0-9]+$' AND COALESCE(seq_scan, 0) + COALESCE(idx_scan, 0) + n_tup_ins + n_tup_upd > 0
""")
_HOME = sa.text("SELECT DISTINCT tableoid::regclass::text FROM payout_users WHERE business_id = :id")


def read_primary_keys(connection: Connection) -> dict[str, str]:
    return {row[0]: row[1] for row in connection.execute(_PRIMARY_KEYS, {"tables": TABLES})}


@pytest.fixture
def partitioned(database: Database) -> Database:
    with database.transaction() as connection:
        keys = read_primary_keys(connection)
        for table in TABLES:
            connection.execute(sa.text(f"ALTER TABLE {table} RENAME TO old"))
            connection.execute(
                sa.text(f"CREATE TABLE {table} (LIKE old INCLUDING ALL) PARTITION BY HASH (business_id)")
            )
            connection.execute(sa.text("DROP TABLE old"))
            for number in range(PARTITIONS):
                connection.execute(
                    sa.text(
                        f"CREATE TABLE {table}_p{number} PARTITION OF {table} "
                        f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number})"
                    )
                )
        assert read_primary_keys(connection) == keys
    return database


@contextmanager
def touching_only(database: Database, number: str) -> Iterator[Connection]:
    """Give a transaction of a new session, whose counts begin at none, and look which partitions it touched."""
    url = database.engine.url.render_as_string(hide_password=False)
    with Database(url, transaction_timeout_s=None) as fresh, fresh.transaction() as connection:
        yield connection
        touched = {name.rpartition("_p")[2] for name in connection.execute(_TOUCHED).scalars()}
        assert touched == {number}


def home_of(database: Database, account: Account) -> str:
    with database.transaction() as connection:
        return str(connection.execute(_HOME, {"id": account.business.id}).scalar_one()).rpartition("_p")[2]


def test_ledger_and_resolving_touch_one_partition_of_each_table(partitioned: Database) -> None:
    payers = [open_account(partitioned) for _ in range(6)]
    for payer in payers:  # everything is filled, and some of everything is written again
        with partitioned.transaction() as connection:
            before = allocation_of(payer, idempotency_key="order-1")
            assert statements.allocate(connection, HASH_SECRET, [before]) == [Outcome.ALLOCATED]
    for payer in payers:
        home = home_of(partitioned, payer)
        batch = [
            allocation_of(payer, "user@example.com", 7),
            allocation_of(payer, "other@example.com", 7, idempotency_key="order-2"),
            allocation_of(payer, idempotency_key="order-1"),
        ]
        with touching_only(partitioned, home) as connection:
            outcomes = statements.allocate(connection, HASH_SECRET, batch)
            assert outcomes == [Outcome.ALLOCATED, Outcome.ALLOCATED, Outcome.REPLAYED]
        with touching_only(partitioned, home) as connection:
            assert resolution.resolve(connection, batch).committed.keys() == {each.id for each in batch}
        with touching_only(partitioned, home) as connection:
            assert resolution.withdraw(connection, batch[2]) is False  # the first attempt's money stays


def test_books_balance_on_partitions(partitioned: Database) -> None:
    payers = [open_account(partitioned, funds_cents=1_000) for _ in range(20)]
    sent = [allocation_of(payer, f"user{n}@example.com", 300) for n in range(4) for payer in payers]
    outcomes = allocate(partitioned, *sent)
    assert outcomes == [Outcome.ALLOCATED] * 60 + [Outcome.INSUFFICIENT_BALANCE] * 20
    assert withdraw(partitioned, sent[0])
    assert resolve(partitioned, *sent[20:40]).committed.keys() == {each.id for each in sent[20:40]}
    assert [read_payout_balance(partitioned, payer.business.id) for payer in payers] == [400] + [100] * 19
    assert verify_books(partitioned).balanced
    assert len({home_of(partitioned, payer) for payer in payers}) > 1
