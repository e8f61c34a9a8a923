"""One place commits; a pipeline is a transaction like any other, with fewer round trips."""

from contextlib import suppress

import pytest
import sqlalchemy as sa

from core.database.connection import DATABASE_ERRORS, Database, describe_error, driver_of, is_connection_error
from tests.chaos.proxy import proxied_postgres_url, proxy_postgres
from tests.servers import Servers


@pytest.fixture(autouse=True)
def _table(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(sa.text("CREATE TABLE numbers (number integer PRIMARY KEY CHECK (number > 0))"))


def url_of(database: Database) -> str:
    return database.engine.url.render_as_string(hide_password=False)


def run_in_pipeline(database: Database, *statements: str) -> None:
    with database.pipeline() as connection:
        for statement in statements:
            driver_of(connection).execute(statement)


def read_numbers(database: Database) -> list[int]:
    with database.transaction() as connection:
        return [number for (number,) in connection.execute(sa.text("SELECT number FROM numbers ORDER BY number"))]


def test_a_pipeline_commits_at_its_end(database: Database) -> None:
    with database.pipeline() as connection:
        driver_of(connection).execute("INSERT INTO numbers VALUES (1)")
        found = driver_of(connection).execute("SELECT number FROM numbers")
        driver_of(connection).execute("INSERT INTO numbers VALUES (2)")
        assert found.fetchall() == [(1,)]
        assert read_numbers(database) == []
    assert read_numbers(database) == [1, 2]


def test_what_postgresql_refuses_in_a_pipeline_is_raised_and_nothing_is_written(database: Database) -> None:
    with pytest.raises(DATABASE_ERRORS) as caught:
        run_in_pipeline(database, *[f"INSERT INTO numbers VALUES ({number})" for number in (1, -1, 2)])
    assert not is_connection_error(caught.value)
    assert describe_error(caught.value).endswith("CheckViolation (SQLSTATE 23514)")
    assert read_numbers(database) == []


def test_what_is_refused_at_the_commit_is_raised(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(sa.text("CREATE TABLE late (number integer UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    with pytest.raises(DATABASE_ERRORS):
        run_in_pipeline(database, "INSERT INTO late VALUES (1), (1)")
    with database.transaction() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM late")).scalar_one() == 0


def test_a_commit_that_rolls_back_is_no_success(database: Database) -> None:
    """PostgreSQL does so, without an error, where the caller goes on behind one."""

    def go_on_behind_an_error() -> None:
        with database.pipeline() as connection:
            driver_of(connection).execute("INSERT INTO numbers VALUES (1)")
            with suppress(*DATABASE_ERRORS), driver_of(connection).pipeline():
                driver_of(connection).execute("SELECT 1 / 0")

    with pytest.raises(DATABASE_ERRORS, match="ROLLBACK"):
        go_on_behind_an_error()
    assert read_numbers(database) == []


def test_what_the_caller_raises_rolls_a_pipeline_back(database: Database) -> None:
    class CallersError(Exception):
        pass

    def write_and_fail() -> None:
        with database.pipeline() as connection:
            driver_of(connection).execute("INSERT INTO numbers VALUES (1)")
            raise CallersError

    with pytest.raises(CallersError):
        write_and_fail()
    assert read_numbers(database) == []


def test_a_pipeline_after_a_refused_one_works(database: Database) -> None:
    with Database(url_of(database), transaction_timeout_s=5, pool_size=1) as one:
        for number in (-1, 0, 1):
            with suppress(*DATABASE_ERRORS):
                run_in_pipeline(one, f"INSERT INTO numbers VALUES ({number})")
        assert read_numbers(one) == [1]


@pytest.mark.parametrize("kind", ["pipeline", "transaction"])
def test_a_lost_connection_is_known_as_such_and_takes_the_whole_pool_with_it(database: Database, kind: str) -> None:
    with Database(url_of(database), transaction_timeout_s=5, pool_size=3) as pool:
        open_at_once = [pool.engine.connect() for _ in range(3)]
        for connection in open_at_once:
            connection.close()
        with database.transaction() as connection:
            connection.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        with pytest.raises(DATABASE_ERRORS) as caught, getattr(pool, kind)() as connection:
            driver_of(connection).execute("SELECT 1").fetchall()
        assert is_connection_error(caught.value)
        with getattr(pool, kind)() as connection:
            assert driver_of(connection).execute("SELECT 1").fetchall() == [(1,)]


def test_a_connection_is_the_same_after_a_pipeline(database: Database) -> None:
    with Database(url_of(database), transaction_timeout_s=5, pool_size=1) as one:
        run_in_pipeline(one, "INSERT INTO numbers VALUES (1)")
        with suppress(*DATABASE_ERRORS):
            run_in_pipeline(one, "INSERT INTO numbers VALUES (1)")
        with suppress(ZeroDivisionError), one.transaction() as connection:
            connection.execute(sa.text("INSERT INTO numbers VALUES (2)"))
            raise ZeroDivisionError
        with suppress(ZeroDivisionError), one.transaction() as connection:
            driver_of(connection).execute("INSERT INTO numbers VALUES (3)")
            raise ZeroDivisionError
        assert read_numbers(one) == [1]


def test_a_transaction_timeout_is_a_connection_error_so_it_is_tried_again(database: Database) -> None:
    with Database(url_of(database), transaction_timeout_s=0.1) as hasty:
        with pytest.raises(DATABASE_ERRORS) as caught:
            run_in_pipeline(hasty, "INSERT INTO numbers VALUES (1)", "SELECT pg_sleep(1)")
        assert is_connection_error(caught.value)
    assert read_numbers(database) == []


def test_tls_is_insisted_on_where_the_url_says_so(servers: Servers) -> None:
    """The wheel's PostgreSQL has no TLS, so nothing is sent to it."""
    with proxy_postgres(servers.postgres_url) as proxy:
        plain = proxied_postgres_url(servers.postgres_url, proxy)
        with Database(plain, transaction_timeout_s=5) as database, database.transaction() as connection:
            assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
        insisting = f"{plain}{'&' if '?' in plain else '?'}sslmode=verify-full&sslrootcert=system"
        with (
            Database(insisting, transaction_timeout_s=5) as database,
            pytest.raises(sa.exc.OperationalError, match="does not support SSL"),
            database.transaction(),
        ):
            pass
