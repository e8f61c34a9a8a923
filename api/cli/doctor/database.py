"""Is PostgreSQL there, of the right version, migrated, durable, and with connections left?"""

import time
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy import Connection

from api.cli.doctor.findings import Finding, Status, host_of
from api.cli.doctor.standbys import find_lossy_failover, find_waiting_commits, read_standbys
from core.database.connection import DATABASE_ERRORS, Database, describe_error, read_clock_us
from core.database.revision import REQUIRED_REVISION, read_revision
from core.database.roles import Standing, read_standing
from core.settings.loader import Settings
from core.settings.variables import variable_name

_CLOCK_SKEW_MAX_S = 5.0
_POSTGRES_VERSION_MIN = 18
_PROCESS_CONNECTIONS = 16  # an API process: its pool, and those for payout batches and the dashboard


def check_database(database: Database, settings: Settings) -> list[Finding]:
    """Connect to PostgreSQL, and look at its version, schema, clock, settings and connections."""
    place = host_of(settings.database_url, 5432)
    try:
        begun = time.perf_counter()
        return database.read(lambda connection: _examine_database(connection, place, time.perf_counter() - begun))
    except DATABASE_ERRORS as error:
        text, fix = _explain_database_error(error, place)
        reason = "not known without the database"
        skipped = ("schema", "clocks", "durability", "connections", "roles")
        return [
            Finding("database", Status.PROBLEM, text, fix),
            *(Finding(name, Status.SKIPPED, reason) for name in skipped),
        ]


_DATABASE_ERRORS_BY_TEXT = {
    "password authentication failed": ("it refuses the user or the password", "correct them in {url}"),
    "no password supplied": ("it wants a password", "add it to {url}"),
    "does not exist": ("it has no such database or user", "create it, or correct its name in {url}"),
    "too many": ("all of its connections are in use", "raise max_connections, or run fewer processes"),
    "remaining connection slots": (
        "all of its connections are in use",
        "raise max_connections, or run fewer processes",
    ),
    "starting up": ("it is starting", "wait until it is up"),
}
_NO_CONNECTION_BY_TEXT = {
    "could not translate host": "its host is not known",
    "resolve host": "its host is not known",
    "connection refused": "connection refused",
    "no such file": "its socket is not there",
    "timeout": "it does not answer in time",
}


def _explain_database_error(error: Exception, place: str) -> tuple[str, str]:
    """Return what is wrong and what to do, from the error's text, which itself is never shown."""
    said = str(getattr(error, "orig", error)).lower()
    variable = variable_name("database_url")
    for words, (reason, fix) in _DATABASE_ERRORS_BY_TEXT.items():
        if words in said:
            return f"PostgreSQL at {place} answers, but {reason}", fix.format(url=variable)
    fix = f"start PostgreSQL, or correct {variable}; look for a firewall in between"
    reason = next((reason for words, reason in _NO_CONNECTION_BY_TEXT.items() if words in said), describe_error(error))
    return f"PostgreSQL at {place} cannot be reached: {reason}", fix


def _examine_database(connection: Connection, place: str, connect_s: float) -> list[Finding]:
    began, database_us, ended = time.time(), read_clock_us(connection), time.time()
    row = connection.execute(
        sa.text(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000,"
            " current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'),"
            " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
            " - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),"
            " pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on'"
        )
    ).one()
    version, major, synchronous_commit, fsync, full_page_writes, left, is_read_only = row
    text = f"PostgreSQL {version} at {place}, connected in {connect_s * 1000:.0f} ms"
    if major < _POSTGRES_VERSION_MIN:
        fix = f"upgrade to PostgreSQL {_POSTGRES_VERSION_MIN}"
        server = Finding("database", Status.PROBLEM, f"{text}, which is too old", fix)
    elif is_read_only:
        fix = f"name the primary server in {variable_name('database_url')}"
        server = Finding("database", Status.PROBLEM, f"{text}, which only reads", fix)
    else:
        server = Finding("database", Status.OK, text)
    standbys = read_standbys(connection)
    revision = read_revision(connection)
    return [
        server,
        _examine_schema(revision),
        _examine_clocks(database_us / 1_000_000 - (began + ended) / 2),
        find_waiting_commits(standbys)
        or _find_lost_commits(
            {"synchronous_commit": synchronous_commit, "fsync": fsync, "full_page_writes": full_page_writes}
        )
        or find_lossy_failover(standbys)
        or Finding("durability", Status.OK, "a commit is on disk before it is answered 201"),
        _examine_connections(left),
        _examine_roles(read_standing(connection) if revision >= REQUIRED_REVISION else None),
    ]


def _examine_schema(revision: str) -> Finding:
    if revision >= REQUIRED_REVISION:
        return Finding("schema", Status.OK, f"the database is at revision {revision}")
    text = f"the database is at revision {revision or 'none'}, and {REQUIRED_REVISION} is needed"
    return Finding("schema", Status.PROBLEM, text, "run: payouts migrate")


def _examine_clocks(skew_s: float) -> Finding:
    if abs(skew_s) <= _CLOCK_SKEW_MAX_S:
        return Finding("clocks", Status.OK, f"the database's clock and this machine's are {abs(skew_s):.2f} s apart")
    text = f"the database's clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's"
    return Finding("clocks", Status.WARNING, f"{text}; payouts go on, logs mislead", "run NTP on both machines")


def _find_lost_commits(values: Mapping[str, str]) -> Finding | None:
    off = [name for name, value in values.items() if value in {"off", "local"}]
    if not off:
        return None
    fix = "switch it on in postgresql.conf, and let no pooler in between drop what a connection asks for"
    return Finding("durability", Status.PROBLEM, f"a 201 may be lost in a crash: {', '.join(off)} is off", fix)


def _examine_roles(standing: Standing | None) -> Finding:
    if standing is None:
        return Finding("roles", Status.SKIPPED, "not known before the migration")
    if not standing.owns_history and not standing.may_rewrite_history:
        return Finding("roles", Status.OK, f"the role {standing.role} may write the history, and not rewrite it")
    what = "owns the tables" if standing.owns_history else "may change and delete what is written"
    fix = (
        f"give the processes a role of their own: set {variable_name('migration_database_url')} and run payouts migrate"
    )
    return Finding("roles", Status.WARNING, f"the role {standing.role} {what}: it can rewrite the history", fix)


def _examine_connections(left: int) -> Finding:
    text = f"PostgreSQL has {left} connections left"
    if left >= _PROCESS_CONNECTIONS:
        return Finding("connections", Status.OK, text)
    fix = f"raise max_connections, lower {variable_name('database_pool_size')}, or use a pooler"
    return Finding("connections", Status.WARNING if left > 0 else Status.PROBLEM, text, fix)
