"""The clock from which deadlines count, when the database's own is set back."""

import asyncio
import time

from api.allocations.database_clock import DatabaseClock
from core.database.connection import Database
from core.ids import new_id
from core.ledger import resolution
from core.messages import Allocation
from tests.core.builders import run_sql
from tests.servers import Account, open_account

HOUR_US = 3_600_000_000


def set_clock_back(database: Database) -> None:
    """Have every later session find a clock that is an hour behind."""
    run_sql(database, "CREATE SCHEMA IF NOT EXISTS past")
    run_sql(
        database,
        "CREATE FUNCTION past.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE "
        "AS $$ SELECT pg_catalog.clock_timestamp() - interval '1 hour' $$",
    )
    name = database.engine.url.database
    run_sql(database, f"ALTER DATABASE {name} SET search_path = past, public, pg_catalog")
    database.close()


def raise_fence(database: Database, account: Account, deadline_us: int) -> None:
    call = Allocation(new_id(), account.business.id, account.api_key_id, "user@example.com", 1, deadline_us)
    with database.transaction() as connection:
        resolution.resolve(connection, [call], are_overdue=True)


def now_us() -> int:
    return time.time_ns() // 1000


def test_clock_is_the_databases(database: Database) -> None:
    clock = DatabaseClock(database)
    clock.measure()
    assert abs(clock.now_us() - now_us()) < HOUR_US / 60


def test_clock_that_is_set_back_is_followed_after_four_measurements(database: Database) -> None:
    clock = DatabaseClock(database)
    clock.measure()
    set_clock_back(database)
    for _ in range(3):
        clock.measure()
        assert abs(clock.now_us() - now_us()) < HOUR_US / 60
    clock.measure()
    assert abs(clock.now_us() - now_us() + HOUR_US) < HOUR_US / 60


def test_new_deadlines_are_beyond_every_fence_though_the_clock_is_behind_it(database: Database) -> None:
    account = open_account(database)
    fence_us = now_us()
    raise_fence(database, account, fence_us)
    set_clock_back(database)
    clock = DatabaseClock(database)
    clock.measure()
    assert fence_us < clock.now_us() < fence_us + HOUR_US / 60


def test_clock_that_is_doubted_is_measured_at_once(database: Database) -> None:
    account = open_account(database)
    clock = DatabaseClock(database)
    clock.measure()
    fence_us = now_us() + HOUR_US

    async def run() -> None:
        keeping = asyncio.create_task(clock.keep_fresh())
        await asyncio.to_thread(raise_fence, database, account, fence_us)
        clock.doubt()
        async with asyncio.timeout(4):
            while clock.now_us() <= fence_us:  # noqa: ASYNC110 (the clock tells nobody)
                await asyncio.sleep(0.01)
        keeping.cancel()

    asyncio.run(run())
