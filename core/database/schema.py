"""Bringing the database to the schema of this version."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from core.database.connection import Database
from core.database.revision import read_revision
from core.database.roles import RuntimeRole, become_owner, grant

LOCK_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 600
_ADVISORY_LOCK_ID = 7_294_683_901  # any number that nobody else uses: two migrations wait for each other


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def migrate(database: Database, runtime_url: str | None = None) -> str:
    """Run all missing migrations in one transaction; return the revision afterwards.

    With the URL by which the processes reach the database, the tables belong to a role that nobody logs in as, and the
    processes' role gets what it needs of them.

    The database must be opened without a transaction timeout. Two at once wait for each other; a table that
    is in use makes it fail after `LOCK_TIMEOUT_S` and not hold up everyone behind it.
    """
    config = _config()
    with database.transaction() as connection:
        connection.execute(sa.text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s'"))
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:id)"), {"id": _ADVISORY_LOCK_ID})
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
        runtime = None if runtime_url is None else RuntimeRole.of(runtime_url)
        if runtime is not None:
            become_owner(connection, runtime)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if runtime is not None:
            grant(connection, runtime)
        return read_revision(connection)
