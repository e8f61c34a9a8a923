"""PostgreSQL: the engine, and the one place that commits."""

import re
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection

from core.errors import UserError
from core.settings.loader import POOLER_TRANSACTION, Settings
from core.settings.variables import variable_name

Found = TypeVar("Found")


DATABASE_ERRORS = (sa.exc.DBAPIError, psycopg.Error)
"""SQLAlchemy's, and the driver's own where it was asked directly (`driver_of`)."""

_UNSUPPORTED_PARAMETER = "unsupported startup parameter"
_OPTION = re.compile(r"(?:-c\s*|--)([a-zA-Z_][\w.-]*)=((?:\\.|[^\s\\])*)\s*")
_MARKER = "payouts.has_options"
"""A parameter of our own: where the server does not know it, it got none of our options."""


class PoolerError(UserError):
    """The database is behind a connection pooler that does not pass our settings on, and nobody told us."""

    exit_code = 2

    def __init__(self) -> None:
        super().__init__(
            f"{variable_name('database_url')} leads to a connection pooler that does not pass settings on to "
            f"PostgreSQL; set {variable_name('database_pooler')}={POOLER_TRANSACTION}"
        )


class DatabaseUrlError(UserError):
    """The database's URL asks for what cannot be had."""

    exit_code = 2


def is_connection_error(error: Exception) -> bool:
    """Tell whether the connection is what broke, so that the same work may well succeed on another one."""
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    cause = _cause(error)
    if not isinstance(cause, psycopg.Error):
        return False
    if cause.sqlstate is None:  # the error is the client's
        return isinstance(cause, psycopg.OperationalError) and not isinstance(cause, psycopg.errors.PipelineAborted)
    # Class 08: connection, and whatever PgBouncer has to say; 53300: no connection is left; 57P: the operator
    # intervened; 25P04: `transaction_timeout`, which ends the session.
    return cause.sqlstate.startswith(("08", "53300", "57P", "25P04"))


def is_rolled_back(error: Exception) -> bool:
    """Tell whether PostgreSQL refused a transaction, so that nothing of it is or ever will be committed.

    Where the connection broke, the commit may have gone through all the same; so it may where the server itself broke
    (severities FATAL and PANIC).
    """
    cause = _cause(error)
    is_refusal = isinstance(cause, psycopg.Error) and cause.diag.severity_nonlocalized == "ERROR"
    return is_refusal and not is_connection_error(error)


def is_lock_timeout(error: Exception) -> bool:
    """Tell whether a transaction gave up because another one holds a row that it needs."""
    return isinstance(_cause(error), psycopg.errors.LockNotAvailable | psycopg.errors.QueryCanceled)


def describe_error(error: BaseException) -> str:
    """Name an error for a log: its types and SQLSTATE, never its text, which may quote a row."""
    if isinstance(error, UserError):
        return str(error)
    cause = _cause(error)
    if not isinstance(cause, psycopg.Error):
        return type(error).__name__
    names = dict.fromkeys([type(error).__name__, type(cause).__name__])
    return f"{' of '.join(names)} (SQLSTATE {cause.sqlstate or 'none'})"


def _cause(error: BaseException) -> BaseException | None:
    """Return the driver's error, from which SQLAlchemy's may be made; in a pipeline, the first one."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    if isinstance(cause, psycopg.errors.PipelineAborted) and cause.__context__ is not None:
        return _cause(cause.__context__)
    return cause


_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_COMMIT = "COMMIT"

_CLOCK = sa.text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)")


def read_clock_us(connection: Connection) -> int:
    """Return the database's time now, not the transaction's start: microseconds since 1970."""
    return int(connection.execute(_CLOCK).scalar_one())


def driver_of(connection: Connection) -> psycopg.Connection:
    """Return psycopg's own connection, which is in the same transaction."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 (the dialect is psycopg's)
    return driver


def send_all(driver: psycopg.Connection) -> None:
    """Send what a pipeline has queued, until there is room for more.

    psycopg waits for answers even where a part of a statement that is larger than the socket's buffer is unsent
    (3.3.9): then PostgreSQL waits for the rest, for ever.
    """
    poll = select.poll()
    poll.register(driver.pgconn.socket, select.POLLIN | select.POLLOUT)
    is_unsent = True
    while is_unsent:
        is_unsent = driver.pgconn.flush() != 0
        for _, events in poll.poll():
            if events & ~select.POLLOUT:
                driver.pgconn.consume_input()
            is_unsent |= not events & select.POLLOUT


class Database:
    """A pool of connections. Nothing connects before the first transaction.

    The settings that we rely on are given when a connection begins. Behind a pooler that lends its connections for a
    transaction (`pooler`), they are given at the beginning of each transaction, for that transaction alone, in the
    round trip of its BEGIN.
    """

    def __init__(
        self,
        url: str,
        *,
        transaction_timeout_s: float | None,
        row_lock_timeout_s: float | None = None,
        connect_timeout_s: int = 2,
        pool_size: int = 4,
        pooler: str = "",
    ) -> None:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
        url_options = " ".join(_as_tuple(parsed.query.get("options", ())))
        # A 201 relies on a commit that is on disk.
        settings = {"TimeZone": "UTC", "client_min_messages": "warning", "synchronous_commit": "on"}
        if transaction_timeout_s is not None:
            settings["transaction_timeout"] = str(round(transaction_timeout_s * 1000))
        if row_lock_timeout_s is not None:
            settings["lock_timeout"] = str(round(row_lock_timeout_s * 1000))
        if pooler:
            # Empty, because libpq would take it from the environment. Statements are not prepared: the next
            # transaction may be on another of the pooler's connections.
            connect_args: dict[str, object] = {"options": "", "prepare_threshold": None}
        else:
            own = [f"-c {name}={value}" for name, value in (settings | {_MARKER: "on"}).items()]
            connect_args = {"options": " ".join([url_options, *own]).strip()}
        self.engine = sa.create_engine(
            parsed.difference_update_query(["options"]),
            # Each statement has a snapshot of its own, taken after the locks of the one before.
            isolation_level="READ COMMITTED",
            hide_parameters=True,  # parameters hold e-mails, and errors end up in logs
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=connect_timeout_s,
            connect_args=connect_args
            | {
                "connect_timeout": connect_timeout_s,
                # A cut network is noticed within seconds, not after the kernel's two hours.
                "keepalives_idle": 1,
                "keepalives_interval": 1,
                "keepalives_count": 3,
                "tcp_user_timeout": 3000,
            },
        )
        self._set_for_transaction: bytes | None = None
        if pooler:
            self._set_for_transaction = _make_local_settings(_parse_options(url_options), settings)
            sa.event.listen(self.engine, "begin", self._give_settings)
        else:
            sa.event.listen(self.engine, "connect", _check_options)
            sa.event.listen(self.engine, "handle_error", _explain_refused_options)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        transaction_timeout_s: float | None = None,
        row_lock_timeout_s: float | None = None,
        pool_size: int | None = None,
    ) -> Self:
        """Make the pool that a long-running process uses, or one for work that takes longer."""
        return cls(
            settings.database_url,
            transaction_timeout_s=transaction_timeout_s or settings.transaction_timeout_s,
            row_lock_timeout_s=row_lock_timeout_s or settings.row_lock_timeout_s,
            connect_timeout_s=settings.database_connect_timeout_s,
            pool_size=pool_size or settings.database_pool_size,
            pooler=settings.database_pooler,
        )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection, commit at the end, roll back if anything is raised. Nothing else commits."""
        with self._drop_broken_pool(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def pipeline(self) -> Iterator[Connection]:
        """Give a connection as `transaction` does; what the driver itself is asked to execute is only sent.

        Answers are waited for when one is read, and at the end: a batch waits twice in all. PostgreSQL carries out
        nothing behind an error, the commit neither, and the first error is raised, at the end at the latest.
        Behind a pooler it waits four times.
        """
        if self._set_for_transaction is not None:
            # PgBouncer 1.18 does not always take its connection back where the commit comes in a pipeline.
            with self.transaction() as connection, driver_of(connection).pipeline():
                yield connection
            return
        with self._drop_broken_pool(), self.engine.connect() as connection:
            driver = driver_of(connection)
            try:
                # Begins and commits of the driver's own are waited for, one by one.
                driver.autocommit = True
                with driver.pipeline():
                    driver.execute(_BEGIN, prepare=False)
                    yield connection
                    committed = driver.execute(_COMMIT, prepare=False)
                if committed.statusmessage != _COMMIT:
                    text = f"a commit was answered with {committed.statusmessage}"
                    raise psycopg.InternalError(text)
                driver.autocommit = False
            except BaseException:
                # Statements that the driver thinks prepared may not be: it forgets them when it rolls back.
                if driver.pgconn.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
                    with suppress(psycopg.Error):
                        driver.rollback()
                        driver.autocommit = False
                if driver.autocommit:
                    connection.invalidate()
                raise

    def _give_settings(self, connection: Connection) -> None:
        """Begin the transaction with its settings."""
        driver = driver_of(connection)
        assert self._set_for_transaction is not None  # noqa: S101 (else nobody listens)
        try:
            with driver.pipeline():
                driver.execute(self._set_for_transaction)
        except psycopg.Error as error:
            is_lost = is_connection_error(error)
            if is_lost:
                connection.invalidate(error)
                self.engine.dispose()
            raise sa.exc.OperationalError(None, None, error, connection_invalidated=is_lost) from error

    @contextmanager
    def _drop_broken_pool(self) -> Iterator[None]:
        """Do for errors of the driver what SQLAlchemy does for its own: where one is gone, the others are too."""
        try:
            yield
        except psycopg.Error as error:
            if is_connection_error(error):
                self.engine.dispose()
            raise

    def read(self, look_up: Callable[[Connection], Found]) -> Found:
        """Return what a look-up finds, trying once more where a pooled connection turns out to be gone."""
        try:
            with self.transaction() as connection:
                return look_up(connection)
        except DATABASE_ERRORS as error:
            if not is_connection_error(error):
                raise
        with self.transaction() as connection:
            return look_up(connection)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Give a read-only connection that sees one moment of the whole database."""
        with (
            self.engine.connect().execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            ) as connection,
            connection.begin(),
        ):
            yield connection

    def count_connections(self) -> tuple[int, int]:
        """Return how many connections are in use, and how many there may be."""
        pool = self.engine.pool
        return (pool.checkedout(), pool.size()) if isinstance(pool, sa.QueuePool) else (0, 0)

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_local_settings(url_settings: dict[str, str], settings: dict[str, str]) -> bytes:
    """Return the statement that gives settings for a transaction, whatever others left behind in the session."""
    # None stands for the role's or the database's own.
    own = dict.fromkeys(["search_path", "statement_timeout", "lock_timeout", "transaction_timeout"])
    # A transaction timeout that runs already begins anew only after 0.
    values = [("transaction_timeout", "0"), *(own | url_settings | settings).items()]
    calls = [sql.SQL("set_config({}, {}, true)").format(name, value) for name, value in values]
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls)).as_bytes()


def _parse_options(options: str) -> dict[str, str]:
    """Return the settings in a URL's `options`, which are written as for PostgreSQL's command line."""
    settings: dict[str, str] = {}
    position = 0
    text = options.strip()
    while position < len(text):
        found = _OPTION.match(text, position)
        if found is None:
            message = (
                f"{variable_name('database_url')}: behind a connection pooler, its options can only be written as "
                "-c name=value"
            )
            raise DatabaseUrlError(message)
        settings[found[1].replace("-", "_").lower()] = re.sub(r"\\(.)", r"\1", found[2])
        position = found.end()
    return settings


def _as_tuple(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _check_options(driver: psycopg.Connection, _: object) -> None:
    """Make sure that a new connection has our settings: a pooler may have been told to ignore them.

    Raises:
        PoolerError: it has not.

    """
    was_autocommit = driver.autocommit
    driver.autocommit = True
    found = driver.execute(f"SELECT current_setting('{_MARKER}', true)").fetchone()
    driver.autocommit = was_autocommit
    if found != ("on",):
        driver.close()
        raise PoolerError


def _explain_refused_options(context: sa.engine.ExceptionContext) -> None:
    """Say what to do where a pooler refuses our settings."""
    if _UNSUPPORTED_PARAMETER in str(context.original_exception):
        raise PoolerError from None
