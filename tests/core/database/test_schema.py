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


def test_references_of_batches_from_before_they_paid_once_are_kept(empty_database: Database) -> None:
    """What an earlier release paid under a reference is not paid again; what it cancelled can be."""
    config = Config()
    config.set_main_option("script_location", str(Path(core.database.schema.__file__).parent / "migrations"))
    with empty_database.transaction() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        for statement in _BATCHES_OF_REVISION_5.strip().split(";"):
            connection.exec_driver_sql(statement)
    migrate(empty_database)
    query = "SELECT reference, attempt, payment_id FROM payment_references ORDER BY 1, 2"
    paid = "SELECT id, reference FROM payout_transactions ORDER BY 1"
    with empty_database.transaction() as connection:
        named = [(reference, attempt, id_.int) for reference, attempt, id_ in connection.exec_driver_sql(query)]
        history = {id_.int: reference for id_, reference in connection.exec_driver_sql(paid)}
    assert named == [("once", 0, 11), ("open", 0, 31), ("twice", -1, 12), ("twice", 0, 21)]
    assert history == {11: "once", 12: "twice", 21: "twice", 13: None}


_BATCHES_OF_REVISION_5 = """
    INSERT INTO payout_batches (
        business_id, id, status, total, amount, processed, allocated_amount, request_digest, finished_at
    )
    SELECT lpad('1', 32, '0')::uuid, lpad(batch::text, 32, '0')::uuid, status, total, total, processed, processed, '',
        CASE WHEN status <> 'queued' THEN now() END
    FROM (VALUES (1, 'completed', 3, 3), (2, 'cancelled', 2, 1), (3, 'queued', 1, 0))
        AS made (batch, status, total, processed);
    INSERT INTO payout_batch_items (business_id, batch_id, position, id, email, hash_digest, amount, reference)
    SELECT lpad('1', 32, '0')::uuid, lpad(batch::text, 32, '0')::uuid, position, lpad(to_hex(id), 32, '0')::uuid,
        'a@example.com', '', 1, reference
    FROM (VALUES
        (1, 0, 11, ' once '), (1, 1, 12, 'twice'), (1, 2, 13, ' '), (2, 0, 21, 'twice'), (2, 1, 22, 'never'),
        (3, 0, 31, 'open')
    ) AS made (batch, position, id, reference);
    INSERT INTO payout_transactions (business_id, id, type, payout_user_id, amount, payout_balance_after, batch_id)
    SELECT business_id, id, 'allocation', id, amount, 0, batch_id
    FROM payout_batch_items
    WHERE id <> lpad(to_hex(22), 32, '0')::uuid AND id <> lpad(to_hex(31), 32, '0')::uuid
"""


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
