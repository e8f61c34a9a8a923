"""Two roles: one owns the tables, and nobody logs in as it; the other one runs the product, and rewrites no history.

An owner can give itself every privilege back. So the processes' role owns nothing, and `payouts migrate`, which changes
the tables, logs in as a third role that only an administrator has.
"""

from dataclasses import dataclass

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy import Connection

from core.database.connection import driver_of
from core.database.tables import metadata
from core.errors import UserError

OWNER = "payouts_owner"
APPEND_ONLY = ("payout_transactions", "main_transactions", "audit_log", "row_seals")
"""Of these, what is written stays as it is."""
_READ_ONLY = ("installation", "alembic_version")
_FUNCTIONS = ("number_payout_transaction", "refuse_to_rewrite_history")


class RolesError(UserError):
    """The roles cannot be what they should be; the text says why."""


@dataclass(frozen=True, slots=True)
class RuntimeRole:
    """The role of the processes, as the URL of their database names it."""

    name: str
    password: str | None

    @classmethod
    def of(cls, database_url: str) -> "RuntimeRole":
        """Read it from a URL.

        Raises:
            RolesError: the URL names no role.

        """
        url = sa.make_url(database_url)
        password = url.password or url.query.get("password")
        if not url.username:
            text = "the URL of the database names no role: write postgresql://ROLE@host/name"
            raise RolesError(text)
        return cls(url.username, password if isinstance(password, str) else None)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the role of a connection is to the tables."""

    role: str
    owns_history: bool
    may_rewrite_history: bool


def read_standing(connection: Connection) -> Standing:
    """Tell whether the connection's role owns the history, or may rewrite it."""
    row = connection.execute(
        sa.text("""
            SELECT current_user AS role, pg_has_role(relowner, 'USAGE') AS owns_history,
                bool_or(has_table_privilege(name::regclass, 'UPDATE, DELETE, TRUNCATE')) AS may_rewrite_history
            FROM pg_class, unnest(CAST(:tables AS text[])) AS tables (name)
            WHERE pg_class.oid = 'payout_transactions'::regclass
            GROUP BY relowner
        """),
        {"tables": list(APPEND_ONLY)},
    ).one()
    return Standing(row.role, row.owns_history, row.may_rewrite_history)


def become_owner(connection: Connection, runtime: RuntimeRole) -> None:
    """Make the roles where they are missing, give the owner what there is, and act as the owner from now on.

    For the transaction of a migration, whose role may create roles.

    Raises:
        RolesError: the roles are not apart.

    """
    driver = driver_of(connection)
    try:
        _make_roles(connection, driver, runtime)
        _hand_over(connection, driver)
        driver.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(OWNER)))
    except psycopg.errors.InsufficientPrivilege:
        text = (
            "the role that migrates may not make the role of the owner, or not hand the tables over to it: "
            "let a superuser do it, or give it CREATEROLE and membership in the role that owns the tables now"
        )
        raise RolesError(text) from None


def grant(connection: Connection, runtime: RuntimeRole) -> None:
    """Give the role of the processes what they need of each table, and no more. The owner does it."""
    driver = driver_of(connection)
    role = sql.Identifier(runtime.name)
    for table in (*metadata.tables, "alembic_version"):
        privileges = "SELECT, INSERT, UPDATE, DELETE"
        if table in APPEND_ONLY:
            privileges = "SELECT, INSERT"
        if table in _READ_ONLY:
            privileges = "SELECT"
        name = sql.Identifier(table)
        driver.execute(sql.SQL("REVOKE ALL ON {} FROM PUBLIC, {}").format(name, role))
        driver.execute(sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(privileges), name, role))


def _make_roles(connection: Connection, driver: psycopg.Connection, runtime: RuntimeRole) -> None:
    me = str(connection.execute(sa.text("SELECT current_user")).scalar_one())
    if runtime.name in {me, OWNER}:
        text = f"the processes log in as {runtime.name}, which migrates: give them a role of their own"
        raise RolesError(text)
    owner, role = sql.Identifier(OWNER), sql.Identifier(runtime.name)
    if not _exists(connection, OWNER):
        driver.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(owner))
    if not _exists(connection, runtime.name):
        driver.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        if runtime.password is not None:
            driver.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(runtime.password)))
    if connection.execute(
        sa.text("SELECT rolsuper OR pg_has_role(oid, :owner, 'MEMBER') FROM pg_roles WHERE rolname = :name"),
        {"name": runtime.name, "owner": OWNER},
    ).scalar_one():
        text = f"the processes log in as {runtime.name}, which is a superuser or a member of {OWNER}"
        raise RolesError(text)
    if not connection.execute(sa.text("SELECT pg_has_role(:owner, 'SET')"), {"owner": OWNER}).scalar_one():
        driver.execute(sql.SQL("GRANT {} TO {}").format(owner, sql.Identifier(me)))
    schema = sql.Identifier(str(connection.execute(sa.text("SELECT current_schema()")).scalar_one()))
    driver.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA {} TO {}").format(schema, owner))
    driver.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, role))
    database = sql.Identifier(str(connection.execute(sa.text("SELECT current_database()")).scalar_one()))
    driver.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, role))

    _let_see_sessions(driver, role)


def _let_see_sessions(driver: psycopg.Connection, role: sql.Identifier) -> None:
    """Let `payouts doctor` count connections and see standbys, where the role that migrates may give that."""
    driver.execute("SAVEPOINT sessions")
    try:
        driver.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(role))
    except psycopg.errors.InsufficientPrivilege:
        driver.execute("ROLLBACK TO SAVEPOINT sessions")
    driver.execute("RELEASE SAVEPOINT sessions")


def _hand_over(connection: Connection, driver: psycopg.Connection) -> None:
    """Give the owner what an earlier version made as another role."""
    others = sa.text("""
        SELECT relname
        FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
            AND relowner <> CAST(:owner AS regrole) AND relname = ANY(CAST(:names AS text[]))
    """)
    tables = [*metadata.tables, "alembic_version"]
    for (table,) in connection.execute(others, {"owner": OWNER, "names": tables}).all():
        driver.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(table), sql.Identifier(OWNER)))
    functions = sa.text("""
        SELECT proname
        FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace AND proowner <> CAST(:owner AS regrole)
            AND proname = ANY(CAST(:names AS text[]))
    """)
    for (function,) in connection.execute(functions, {"owner": OWNER, "names": list(_FUNCTIONS)}).all():
        statement = sql.SQL("ALTER FUNCTION {}() OWNER TO {}")
        driver.execute(statement.format(sql.Identifier(function), sql.Identifier(OWNER)))


def _exists(connection: Connection, role: str) -> bool:
    query = sa.text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :name)")
    return bool(connection.execute(query, {"name": role}).scalar_one())
