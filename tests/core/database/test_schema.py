"""The migrations make what the tables say, any number of times."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import core.database.schema
from core.database.connection import Database
from core.database.revision import REQUIRED_REVISION, find_schema_problem, read_revision, wait_until_reachable
from core.database.schema import migrate
from core.database.tables import metadata
from core.startup import ServerNotReadyError, wait_until_ready
from tests.core.builders import run_sql
from tests.servers import Servers, verify_books


def wait_for_schema(database: Database, timeout_s: float) -> None:
    wait_until_ready(lambda: find_schema_problem(database), timeout_s)


@pytest.fixture
def empty_database(servers: Servers) -> Iterator[Database]:
    with Database(servers.create(f"empty_{uuid4().hex}"), transaction_timeout_s=None, connect_timeout_s=30) as opened:
        yield opened


def definitions_in(database: Database) -> set[tuple[str, str]]:
    """Return all columns, constraints and indexes, as PostgreSQL writes them."""
    query = sa.text("""
        SELECT conname, format('%s: %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
        UNION ALL
        SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL
        SELECT format('%s.%s', table_name, column_name),
            format('%s %s %s %s', data_type, is_nullable,
                trim('''' FROM split_part(column_default, '::', 1)), collation_name)
        FROM information_schema.columns WHERE table_schema = 'public'
    """)
    with database.transaction() as connection:
        return {(name, text) for name, text in connection.execute(query) if "alembic_version" not in name + text}


def test_alembic_finds_no_difference_between_migrations_and_tables(database: Database) -> None:
    with database.transaction() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_migrations_make_every_column_check_and_index_of_the_tables(
    database: Database, empty_database: Database
) -> None:
    with empty_database.transaction() as connection:
        metadata.create_all(connection)
    assert definitions_in(database) == definitions_in(empty_database)


def test_migrating_twice_is_harmless(empty_database: Database) -> None:
    assert migrate(empty_database) == REQUIRED_REVISION
    before = definitions_in(empty_database)
    assert migrate(empty_database) == REQUIRED_REVISION
    assert definitions_in(empty_database) == before


def test_two_migrations_at_once_both_succeed(empty_database: Database) -> None:
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(migrate, [empty_database] * 2)) == [REQUIRED_REVISION] * 2
    wait_for_schema(empty_database, 0)


def test_a_migration_that_fails_leaves_nothing_behind(empty_database: Database) -> None:
    run_sql(empty_database, "CREATE TABLE payout_transactions ()")
    with pytest.raises(sa.exc.ProgrammingError):
        migrate(empty_database)
    with empty_database.transaction() as connection:
        assert sa.inspect(connection).get_table_names() == ["payout_transactions"]


def test_main_balances_from_before_their_history_become_deposits(empty_database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(core.database.schema.__file__).parent / "migrations"))
    with empty_database.transaction() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        for id_, balance in ((uuid4(), 500), (uuid4(), 0)):
            connection.execute(
                sa.text(
                    "INSERT INTO businesses (id, name, mode, twin_id, balance) VALUES (:id, 'A', 'live', :id, :sum)"
                ),
                {"id": id_, "sum": balance},
            )
    migrate(empty_database)
    assert verify_books(empty_database).discrepancies == []
    with empty_database.transaction() as connection:
        rows = connection.execute(sa.text("SELECT type, amount, balance_after FROM main_transactions")).all()
    assert [tuple(row) for row in rows] == [("deposit", 500, 500)]


def test_the_required_revision_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(core.database.schema.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [REQUIRED_REVISION]


def test_a_migrated_database_is_ready(database: Database) -> None:
    wait_for_schema(database, 0)
    with database.transaction() as connection:
        assert read_revision(connection) == REQUIRED_REVISION


def test_an_empty_database_is_reachable_but_not_ready(empty_database: Database) -> None:
    wait_until_reachable(empty_database, 0)
    with pytest.raises(ServerNotReadyError, match=r"revision none, and .* is needed; run: payouts migrate"):
        wait_for_schema(empty_database, 0)


def test_a_database_that_was_emptied_is_not_ready(empty_database: Database) -> None:
    run_sql(empty_database, "CREATE TABLE alembic_version (version_num varchar(32) NOT NULL)")
    with pytest.raises(ServerNotReadyError, match="revision none"):
        wait_for_schema(empty_database, 0)


def test_a_newer_schema_is_good_enough(database: Database) -> None:
    run_sql(database, "UPDATE alembic_version SET version_num = '9999'")
    wait_for_schema(database, 0)


def test_a_starting_process_waits_for_the_migration(empty_database: Database) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait_for_schema, empty_database, 60)
        migrate(empty_database)
        waiting.result()


def test_without_postgresql_the_text_says_so_and_keeps_the_password() -> None:
    with Database("postgresql://user:hidden-word@127.0.0.1:1/none", transaction_timeout_s=1) as unreachable:
        for wait in (wait_for_schema, wait_until_reachable):
            with pytest.raises(ServerNotReadyError, match=r"PostgreSQL at .* cannot be reached") as caught:
                wait(unreachable, 0)
            assert "hidden-word" not in str(caught.value)
