"""Which schema this version needs; without Alembic, which takes long to import."""

from collections.abc import Callable

import psycopg
import sqlalchemy as sa
from sqlalchemy import Connection

from core.database.connection import Database, describe_error
from core.startup import wait_until_ready

REQUIRED_REVISION = "0009"
"""The newest migration. Later ones only add, so that processes of this version go on during an upgrade."""


_REASONS = (
    "Connection refused",
    "No such file or directory",
    "timeout expired",
    "could not translate host name",
    "failed to resolve host",
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not support SSL",
    "too many clients",
    "is starting up",
    "is shutting down",
)
"""What may be said of the driver's text, which may hold more than it should."""


def wait_until_reachable(database: Database, timeout_s: float, is_to_end: Callable[[], bool] = lambda: False) -> None:
    """Wait until the database can be reached, with any schema.

    Raises:
        ServerNotReadyError: not within `timeout_s`.
        WaitingEndedError: it is to end.

    """
    wait_until_ready(lambda: _read(database)[1], timeout_s, is_to_end)


def find_schema_problem(database: Database) -> str | None:
    """Say why the database cannot be used yet: out of reach, or without some of our migrations."""
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
        return "", explain(error, database)


def explain(error: sa.exc.SQLAlchemyError, database: Database) -> str:
    """Say why the database cannot be reached, without anything secret."""
    url = database.engine.url
    host = url.host or str(url.query.get("host", "its socket"))
    place = f"PostgreSQL at {host}{f':{url.port}' if url.port else ''}"
    if "does not exist" in str(error):
        return f"{place} answers, but has no such database or user"
    reason = next((reason for reason in _REASONS if reason in str(error)), describe_error(error))
    return f"{place} cannot be reached: {reason}"


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
