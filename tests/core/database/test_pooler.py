"""Behind PgBouncer in transaction mode, every promise that rests on a setting of PostgreSQL still holds."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa

from core.database.connection import (
    DATABASE_ERRORS,
    Database,
    DatabaseUrlError,
    PoolerError,
    describe_error,
    driver_of,
    is_connection_error,
)
from core.database.revision import find_schema_problem
from core.database.schema import migrate
from core.ledger import statements
from core.startup import wait_until_ready
from tests.core.builders import allocate, allocation_of, read_payout_balance, resolve
from tests.pgbouncer import PgBouncer, run_pgbouncer
from tests.servers import HASH_SECRET, ROOT, Servers, open_account, verify_books

KINDS = ["transaction", "pipeline", "snapshot"]
TIMEOUT_S = 0.5
LEFT_BEHIND = {
    "synchronous_commit": "off",
    "transaction_timeout": "1h",
    "lock_timeout": "1h",
    "statement_timeout": "1h",
    "timezone": "Asia/Tokyo",
    "client_min_messages": "debug1",
    "search_path": "pg_catalog",
}


def wait_for_schema(database: Database, timeout_s: float) -> None:
    wait_until_ready(lambda: find_schema_problem(database), timeout_s)


@pytest.fixture
def pooler(database_url: str) -> Iterator[PgBouncer]:
    """One connection to the server, so that all clients share it."""
    with run_pgbouncer(database_url, pool_size=1) as running:
        yield running


@contextmanager
def open_pooled(pooler: PgBouncer, **options: float) -> Iterator[Database]:
    timeouts = {"transaction_timeout_s": None, "row_lock_timeout_s": None} | options
    with Database(pooler.url_of(), pooler="transaction", **timeouts) as opened:  # type: ignore[arg-type]
        yield opened


def read_settings(database: Database, kind: str = "transaction") -> dict[str, str]:
    with getattr(database, kind)() as connection:
        found = driver_of(connection).execute(
            "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", (list(LEFT_BEHIND),)
        )
        return dict(found.fetchall())


def leave_behind(pooler: PgBouncer) -> None:
    """Change the shared session as an ill-mannered client does."""
    with psycopg.connect(pooler.url_of(), autocommit=True, prepare_threshold=None) as other:
        for name, value in LEFT_BEHIND.items():
            other.execute(f"SET {name} = '{value}'".encode())


def read_as_other_client(pooler: PgBouncer) -> dict[str, str]:
    with psycopg.connect(pooler.url_of(), autocommit=True, prepare_threshold=None) as other:
        return {name: str(other.execute(f"SHOW {name}".encode()).fetchall()[0][0]) for name in LEFT_BEHIND}


@pytest.mark.parametrize("kind", KINDS)
def test_every_transaction_has_our_settings_whatever_others_left_in_the_session(
    pooler: PgBouncer, database: Database, kind: str
) -> None:
    untouched = read_settings(database)
    leave_behind(pooler)
    with open_pooled(pooler, transaction_timeout_s=2, row_lock_timeout_s=1) as pooled:
        assert read_settings(pooled, kind) == untouched | {
            "synchronous_commit": "on",
            "transaction_timeout": "2s",
            "lock_timeout": "1s",
            "timezone": "UTC",
            "client_min_messages": "warning",
        }


def test_without_limits_of_ours_those_of_the_role_hold_not_those_that_others_left(pooler: PgBouncer) -> None:
    leave_behind(pooler)
    with open_pooled(pooler) as pooled:
        found = read_settings(pooled)
    assert (found["transaction_timeout"], found["lock_timeout"], found["statement_timeout"]) == ("0", "0", "0")


@pytest.mark.parametrize("kind", KINDS)
def test_our_settings_do_not_reach_the_next_client(pooler: PgBouncer, kind: str) -> None:
    before = read_as_other_client(pooler)
    with open_pooled(pooler, transaction_timeout_s=2, row_lock_timeout_s=1) as pooled:
        assert read_settings(pooled, kind) != before
        assert read_as_other_client(pooler) == before
        with pytest.raises(DATABASE_ERRORS), getattr(pooled, kind)() as connection:
            driver_of(connection).execute("SELECT 1 / 0")
    assert read_as_other_client(pooler) == before


@pytest.mark.parametrize("is_disturbed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stalled_transaction_is_ended_and_its_rows_are_freed(
    pooler: PgBouncer, database: Database, kind: str, is_disturbed: bool
) -> None:
    with database.transaction() as connection:
        connection.execute(sa.text("CREATE TABLE numbers (number integer)"))
        connection.execute(sa.text("INSERT INTO numbers VALUES (1)"))
    if is_disturbed:
        leave_behind(pooler)
    is_locked = threading.Event()
    raised: list[Exception] = []

    def stall() -> None:
        try:
            with open_pooled(pooler, transaction_timeout_s=TIMEOUT_S) as stalled, getattr(stalled, kind)() as work:
                if kind == "snapshot":
                    driver_of(work).execute("SELECT number FROM numbers").fetchall()
                else:
                    driver_of(work).execute("UPDATE public.numbers SET number = 2").rowcount  # noqa: B018
                    driver_of(work).execute("SELECT 1").fetchall()
                is_locked.set()
                time.sleep(4 * TIMEOUT_S)
                driver_of(work).execute("SELECT 1").fetchall()
        except DATABASE_ERRORS as error:
            raised.append(error)

    thread = threading.Thread(target=stall)
    thread.start()
    assert is_locked.wait(10)
    with database.transaction() as connection:  # it waits until the row is free
        assert connection.execute(sa.text("SELECT number FROM numbers FOR UPDATE")).scalar_one() == 1
        assert not raised, "the row was free although the other still worked"
    thread.join()
    assert len(raised) == 1
    assert is_connection_error(raised[0])


@pytest.mark.parametrize("kind", ["transaction", "pipeline"])
def test_a_wait_for_a_row_ends_and_is_no_lost_connection(pooler: PgBouncer, database: Database, kind: str) -> None:
    account = open_account(database)
    lock = sa.text("SELECT id FROM businesses WHERE id = :id FOR UPDATE")
    leave_behind(pooler)
    with database.transaction() as holder, open_pooled(pooler, row_lock_timeout_s=0.2) as pooled:
        holder.execute(lock, {"id": account.business.id})
        with pytest.raises(DATABASE_ERRORS) as caught, getattr(pooled, kind)() as connection:
            connection.execute(lock, {"id": account.business.id})
    assert "55P03" in describe_error(caught.value)
    assert not is_connection_error(caught.value)


def test_nothing_is_prepared(pooler: PgBouncer) -> None:
    with open_pooled(pooler) as pooled:
        for _ in range(20):
            with pooled.transaction() as connection:
                assert connection.execute(sa.text("SELECT :number"), {"number": "1"}).scalar_one() == "1"
        with pooled.transaction() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0


def test_clients_that_share_connections_pay_and_resolve_exactly(database_url: str, database: Database) -> None:
    payers = [open_account(database, funds_cents=10_000) for _ in range(4)]
    with run_pgbouncer(database_url, pool_size=2) as pooler, open_pooled(pooler, transaction_timeout_s=5) as pooled:

        def pay(number: int) -> None:
            payer = payers[number % len(payers)]
            for amount in range(1, 21):
                allocation = allocation_of(payer, f"user{number}@example.com", amount)
                allocate(pooled, allocation)
                assert resolve(pooled, allocation).committed.keys() == {allocation.id}

        threads = [threading.Thread(target=pay, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {read_payout_balance(database, payer.business.id) for payer in payers} == {10_000 - 210}
    assert verify_books(database).balanced


@pytest.mark.parametrize("kind", ["transaction", "pipeline"])
def test_the_poolers_connection_is_free_for_others_behind_every_transaction(
    database_url: str, database: Database, kind: str
) -> None:
    payer = open_account(database)
    with (
        run_pgbouncer(database_url, pool_size=1, extra_settings="query_wait_timeout = 1\n") as pooler,
        open_pooled(pooler) as pooled,
        psycopg.connect(pooler.url_of(), autocommit=True, prepare_threshold=None) as other,
    ):
        for _ in range(500):  # one in 200 once kept it
            with getattr(pooled, kind)() as connection:
                statements.allocate(connection, HASH_SECRET.encode(), [allocation_of(payer, "user@example.com", 1)])
            other.execute("SELECT 1")


def test_two_migrations_at_once_both_succeed(servers: Servers) -> None:
    with run_pgbouncer(servers.create(f"empty_{uuid4().hex}"), pool_size=5) as pooler, open_pooled(pooler) as pooled:
        raised: list[Exception] = []

        def bring_up() -> None:
            try:
                migrate(pooled)
            except Exception as error:  # noqa: BLE001 (looked at below)
                raised.append(error)

        threads = [threading.Thread(target=bring_up) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert raised == []
        wait_for_schema(pooled, 1)


@pytest.mark.parametrize("extra_settings", ["", "ignore_startup_parameters = options,extra_float_digits\n"])
def test_without_the_setting_a_start_ends_at_once_with_one_line_that_names_it(
    database_url: str, extra_settings: str
) -> None:
    with run_pgbouncer(database_url, extra_settings=extra_settings) as pooler:
        with Database(pooler.url_of(), transaction_timeout_s=1) as direct, pytest.raises(PoolerError) as caught:
            wait_for_schema(direct, 30)
        assert str(caught.value).endswith("set PAYOUTS_DATABASE_POOLER=transaction")
        assert describe_error(caught.value) == str(caught.value)
        environment = {
            "PAYOUTS_DATABASE_URL": pooler.url_of(),
            "PAYOUTS_REDIS_URL": "redis://127.0.0.1:1",
            "PAYOUTS_HASH_SECRET": HASH_SECRET,
        }
        celery = ["celery", "--quiet", "--app", "workers.main", "worker", "--pool", "solo"]
        for command in (
            ["payouts", "migrate"],
            ["uvicorn", "--factory", "api.app:create_app_from_environment"],
            celery,
        ):
            program = f"{sys.prefix}/bin/{command[0]}"
            ended = subprocess.run(
                [program, *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
            )
            assert ended.returncode == 2, (command, ended)
            assert ended.stderr.removeprefix("Error: ") == f"{caught.value}\n", command


def test_options_of_the_url_hold_and_ours_come_before_them(pooler: PgBouncer) -> None:
    options = r"?options=-c search_path=%22a\ b%22,public -csynchronous_commit=off --statement-timeout=7s"
    with Database(pooler.url_of() + options, transaction_timeout_s=None, pooler="transaction") as pooled:
        found = read_settings(pooled)
    assert (found["search_path"], found["statement_timeout"]) == ('"a b",public', "7s")
    assert found["synchronous_commit"] == "on"


@pytest.mark.parametrize("command", [["payouts", "verify"], ["celery", "--app", "workers.main", "worker"]])
def test_options_that_are_no_settings_are_refused_in_one_line(pooler: PgBouncer, command: list[str]) -> None:
    url = pooler.url_of() + "?options=-e"
    with pytest.raises(DatabaseUrlError) as caught:
        Database(url, transaction_timeout_s=None, pooler="transaction")
    environment = {
        "PAYOUTS_DATABASE_URL": url,
        "PAYOUTS_DATABASE_POOLER": "transaction",
        "PAYOUTS_REDIS_URL": "redis://127.0.0.1:1",
        "PAYOUTS_HASH_SECRET": HASH_SECRET,
    }
    program = f"{sys.prefix}/bin/{command[0]}"
    ended = subprocess.run(
        [program, *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2, ended
    assert ended.stderr.removeprefix("Error: ") == f"{caught.value}\n"
    assert str(caught.value).startswith("PAYOUTS_DATABASE_URL: ")


def test_options_of_the_environment_are_not_sent(pooler: PgBouncer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=1MB")
    with open_pooled(pooler) as pooled:
        assert read_settings(pooled)["synchronous_commit"] == "on"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pooler_that_is_killed_is_a_lost_connection_and_the_next_one_serves(pooler: PgBouncer, kind: str) -> None:
    with open_pooled(pooler) as pooled:
        read_settings(pooled, kind)
        pooler.kill()
        for _ in range(2):  # a broken connection, then none
            with pytest.raises(DATABASE_ERRORS) as caught:
                read_settings(pooled, kind)
            assert is_connection_error(caught.value)
        pooler.start()
        assert read_settings(pooled, kind)["synchronous_commit"] == "on"


def test_waiting_too_long_for_a_connection_of_the_pooler_is_a_lost_connection(database_url: str) -> None:
    with (
        run_pgbouncer(database_url, pool_size=1, extra_settings="query_wait_timeout = 1\n") as pooler,
        open_pooled(pooler) as pooled,
        open_pooled(pooler) as other,
        other.transaction() as holder,
    ):
        holder.execute(sa.text("SELECT 1"))
        with pytest.raises(DATABASE_ERRORS) as caught:
            read_settings(pooled)
        assert is_connection_error(caught.value)
        assert "query_wait_timeout" in pooler.log


def test_a_pooler_that_takes_no_more_clients_is_a_lost_connection(database_url: str) -> None:
    with (
        run_pgbouncer(database_url, extra_settings="max_client_conn = 1\n") as pooler,
        open_pooled(pooler) as pooled,
        open_pooled(pooler) as other,
        other.transaction() as holder,
    ):
        holder.execute(sa.text("SELECT 1"))
        with pytest.raises(DATABASE_ERRORS) as caught:
            read_settings(pooled)
        assert is_connection_error(caught.value)
        assert "no more connections allowed" in pooler.log


def test_a_server_out_of_reach_of_the_pooler_is_a_lost_connection(database_url: str) -> None:
    unreachable = sa.make_url(database_url).update_query_dict({"host": "/nonexistent"})
    with (
        run_pgbouncer(unreachable.render_as_string(hide_password=False)) as pooler,
        open_pooled(pooler) as pooled,
        pytest.raises(DATABASE_ERRORS) as caught,
    ):
        read_settings(pooled)
    assert is_connection_error(caught.value)
