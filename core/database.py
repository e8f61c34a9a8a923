"""PostgreSQL: the engine, and the one place that commits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy import Connection

from core.settings import Settings

Found = TypeVar("Found")


def is_connection_error(error: Exception) -> bool:
    """Tell whether the connection is what broke, so that the same work may well succeed on another one."""
    return isinstance(error, sa.exc.DBAPIError) and (
        error.connection_invalidated
        or (isinstance(error.orig, psycopg.OperationalError) and _is_server_gone(error.orig))
    )


def _is_server_gone(error: psycopg.OperationalError) -> bool:
    # No SQLSTATE: the error is the client's. Class 08: connection; 57P: the operator intervened.
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))


def describe_error(error: BaseException) -> str:
    """Name an error for a log: its types and SQLSTATE, never its text, which may quote a row."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else None
    name = type(error).__name__
    if isinstance(cause, psycopg.Error):
        return f"{name} ({type(cause).__name__}, SQLSTATE {cause.sqlstate or 'none'})"
    return name


_CLOCK = sa.text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)")


def read_clock_us(connection: Connection) -> int:
    """Return the database's time now, not the transaction's start: microseconds since 1970."""
    return int(connection.execute(_CLOCK).scalar_one())


class Database:
    """A pool of connections. Nothing connects before the first transaction."""

    def __init__(
        self, url: str, *, transaction_timeout_s: float | None, connect_timeout_s: int = 2, pool_size: int = 4
    ) -> None:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
        # A 201 relies on a commit that is on disk.
        options = ["-c TimeZone=UTC", "-c client_min_messages=warning", "-c synchronous_commit=on"]
        if "options" in parsed.query:
            options.insert(0, str(parsed.query["options"]))
        if transaction_timeout_s is not None:
            options.append(f"-c transaction_timeout={round(transaction_timeout_s * 1000)}")
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
    def from_settings(cls, settings: Settings) -> Self:
        """Make the pool that a long-running process uses."""
        return cls(
            settings.database_url,
            transaction_timeout_s=settings.transaction_timeout_s,
            connect_timeout_s=settings.database_connect_timeout_s,
            pool_size=settings.database_pool_size,
        )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection, commit at the end, roll back if anything is raised. Nothing else commits."""
        with self.engine.begin() as connection:
            yield connection

    def read(self, look_up: Callable[[Connection], Found]) -> Found:
        """Return what a look-up finds, trying once more where a pooled connection turns out to be gone."""
        try:
            with self.transaction() as connection:
                return look_up(connection)
        except sa.exc.DBAPIError as error:
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

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
