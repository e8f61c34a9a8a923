"""The database itself refuses to change what was written: for whoever owns the tables too."""

import pytest
import sqlalchemy as sa

from core.database.connection import Database
from tests.core.chain.conftest import World

TABLES = ["payout_transactions", "main_transactions", "audit_log", "row_seals"]


def execute(database: Database, *statements: str) -> None:
    with database.transaction() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET business_id = business_id",
        "UPDATE {} SET business_id = business_id WHERE false",
        "DELETE FROM {}",
        "DELETE FROM {} WHERE false",
        "TRUNCATE {}",
        "MERGE INTO {} AS kept USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
    ],
)
def test_what_was_written_cannot_be_changed(world: World, table: str, statement: str) -> None:
    with pytest.raises(sa.exc.ProgrammingError, match=f"{table} is append-only"):
        execute(world.database, statement.format(table))


@pytest.mark.parametrize("table", TABLES)
def test_a_session_that_fires_no_ordinary_triggers_is_refused_too(world: World, table: str) -> None:
    with pytest.raises(sa.exc.ProgrammingError, match="append-only"):
        execute(world.database, "SET LOCAL session_replication_role = replica", f"DELETE FROM {table}")


def test_a_migration_that_says_so_may(world: World) -> None:
    execute(
        world.database, "SET LOCAL payouts.rewrite_history = 'on'", "UPDATE audit_log SET business_id = business_id"
    )
    with pytest.raises(sa.exc.ProgrammingError, match="append-only"):
        execute(world.database, "DELETE FROM audit_log")
