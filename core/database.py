"""PostgreSQL: the engine, and the one place that commits."""

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy import Connection

from core.settings import Settings

Found = TypeVar("Found")


DATABASE_ERRORS = (sa.exc.DBAPIError, psycopg.Error)
"""SQLAlchemy's, and the driver's own where it was asked directly (`driver_of`)."""


def is_connection_error(error: Exception) -> bool:
    """Tell whether the connection is what broke, so that the same work may well succeed on another one."""
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    cause = _cause(error)
    if not isinstance(cause, psycopg.Error):
        return False
    if cause.sqlstate is None:  # the error is the client's
        return isinstance(cause, psycopg.OperationalError) and not isinstance(cause, psycopg.errors.PipelineAborted)
    # Class 08: connection; 57P: the operator intervened; 25P04: `transaction_timeout`, which ends the session.
    return cause.sqlstate.startswith(("08", "57P", "25P04"))


def describe_error(error: BaseException) -> str:
    """Name an error for a log: its types and SQLSTATE, never its text, which may quote a row."""
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
    """A pool of connections. Nothing connects before the first transaction."""

    def __init__(
        self,
        url: str,
        *,
        transaction_timeout_s: float | None,
        row_lock_timeout_s: float | None = None,
        connect_timeout_s: int = 2,
        pool_size: int = 4,
    ) -> None:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
        # A 201 relies on a commit that is on disk.
        options = ["-c TimeZone=UTC", "-c client_min_messages=warning", "-c synchronous_commit=on"]
        if "options" in parsed.query:
            options.insert(0, str(parsed.query["options"]))
        if transaction_timeout_s is not None:
            options.append(f"-c transaction_timeout={round(transaction_timeout_s * 1000)}")
        if row_lock_timeout_s is not None:
            options.append(f"-c lock_timeout={round(row_lock_timeout_s * 1000)}")
        self.engine = sa.create_engine(
            parsed.difference_update_query(["options"]),
            # Each statement has a snapshot of its own, taken after the locks of the one before.
            isolation_level="READ COMMITTED",
            hide_parameters=True,  # parameters hold e-mails, and errors end up in logs
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=connect_timeout_s,
            connect_args={
                "connect_timeout": connect_timeout_s,
                "options": " ".join(options),
                # A cut network is noticed within seconds, not after the kernel's two hours.
                "keepalives_idle": 1,
                "keepalives_interval": 1,
                "keepalives_count": 3,
                "tcp_user_timeout": 3000,
            },
        )

    @classmethod
    def from_settings(
        cls, settings: Settings, *, transaction_timeout_s: float | None = None, pool_size: int | None = None
    ) -> Self:
        """Make the pool that a long-running process uses, or one for work that takes longer."""
        return cls(
            settings.database_url,
            transaction_timeout_s=transaction_timeout_s or settings.transaction_timeout_s,
            row_lock_timeout_s=settings.row_lock_timeout_s,
            connect_timeout_s=settings.database_connect_timeout_s,
            pool_size=pool_size or settings.database_pool_size,
        )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection, commit at the end, roll back if anything is raised. Nothing else commits."""
        with self._drop_broken_pool(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def pipeline(self) -> Iterator[Connection]:
        """Give a connection as `transaction` does; what the driver itself is asked to execute is only sent.

        Answers are waited for when one is read, and after the commit was sent: a batch waits four times in all.
        PostgreSQL carries out nothing behind an error, and the first error is raised, at the end at the latest.
        """
        with (
            self._drop_broken_pool(),
            self.engine.connect() as connection,
            driver_of(connection).pipeline(),
            connection.begin(),
        ):
            yield connection

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
        with self.engine.connect().execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        ) as connection:
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
