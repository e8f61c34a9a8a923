"""Which schema this version needs; without Alembic, which takes long to import."""

import time
from collections.abc import Callable

import psycopg
import sqlalchemy as sa
from sqlalchemy import Connection

from core.database import Database, describe_error
from core.errors import UserError

REQUIRED_REVISION = "0005"
"""The newest migration. Later ones only add, so that processes of this version go on during an upgrade."""

_POLL_S = 0.1


class DatabaseNotReadyError(UserError):
    """PostgreSQL cannot be reached, or has not been migrated, within the time to wait."""


def wait_for_schema(database: Database, timeout_s: float) -> None:
    """Wait until the database can be reached and has all of our migrations.

    Raises:
        DatabaseNotReadyError: not within `timeout_s`.

    """
    _wait(lambda: _find_problem(database), timeout_s)


def wait_until_reachable(database: Database, timeout_s: float) -> None:
    """Wait until the database can be reached, with any schema.

    Raises:
        DatabaseNotReadyError: not within `timeout_s`.

    """
    _wait(lambda: _read(database)[1], timeout_s)


def _wait(find_problem: Callable[[], str | None], timeout_s: float) -> None:
    give_up_at = time.monotonic() + timeout_s
    while problem := find_problem():
        if time.monotonic() >= give_up_at:
            raise DatabaseNotReadyError(problem)
        time.sleep(_POLL_S)


def _find_problem(database: Database) -> str | None:
    revision, problem = _read(database)
    if problem:
        return problem
    if revision >= REQUIRED_REVISION:
        return None
    return f"the database is at revision {revision or 'none'}, and {REQUIRED_REVISION} is needed; run: payouts migrate"


def _read(database: Database) -> tuple[str, str | None]:
    try:
        with database.transaction() as connection:
            return read_revision(connection), None
    except sa.exc.SQLAlchemyError as error:
        return "", f"PostgreSQL cannot be reached: {describe_error(error)}"


def read_revision(connection: Connection) -> str:
    """Return the migration that the database is at; empty where there was none yet."""
    try:
        with connection.begin_nested():
            revision = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    except sa.exc.ProgrammingError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable):
            return ""
        raise
    return str(revision or "")
