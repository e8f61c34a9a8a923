"""Runs transactions one statement at a time, in whatever order a test wants, over a real PostgreSQL."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Self, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy import Connection

from core.database.connection import Database

Result = TypeVar("Result")

_PATIENCE_S = 0.0005
"""How long a statement may take before PostgreSQL is asked whether it waits for a lock."""
_STATEMENT_S_MAX = 20

# A sequence is no subject to snapshots or transactions: every session sees a new time at once. The schema stands
# before pg_catalog in the search path, so this is the clock_timestamp() that all statements find.
_CLOCK = """
    CREATE SCHEMA schedule;
    CREATE SEQUENCE schedule.now_s;
    CREATE FUNCTION schedule.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
        AS 'SELECT to_timestamp(last_value) FROM schedule.now_s';
"""
# Only waiting for one of ours lasts: another one's next statement has to be let through first.
_BLOCKERS = """
    SELECT pg_blocking_pids(pid) FROM unnest(%(waiting)s::integer[]) AS pid
    WHERE pg_blocking_pids(pid) && %(ours)s::integer[]
"""

_threads = threading.local()


class ConnectionLostError(Exception):
    """The process ended, or lost its connection: what it had not committed is rolled back."""


class Actor:
    """A thread with a transaction that stops at a gate before each statement, its commit and what comes of it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._commands: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._arrivals: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._error: Exception | None = None
        self.is_busy = False
        self.is_at_gate = False
        self.is_transaction_over = False
        self.is_under_way = False
        self.is_pipelined = False
        self.gate = ""
        self.backend_pid = 0
        self.finish: Callable[[], None] = _do_nothing
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def start(
        self,
        job: Callable[[Connection], Result],
        then: Callable[[Result], None],
        lost: Callable[[], None],
        *,
        is_pipelined: bool,
    ) -> None:
        """Begin a transaction and go to its first gate."""
        self.is_busy, self.is_at_gate, self.is_transaction_over, self.is_under_way = True, False, False, False
        self.is_pipelined = is_pipelined
        self._error = None
        transaction = self._database.pipeline if is_pipelined else self._database.transaction
        self._jobs.put(partial(self._run, transaction, job, then, lost))

    def leave_gate(self, *, is_lost: bool) -> None:
        """Let it go to its next gate, or break its connection here."""
        self.is_at_gate = False
        self._commands.put(is_lost)

    def arrives(self, timeout_s: float) -> bool:
        """Wait until it stands at a gate or is at its end."""
        try:
            self.is_busy = self._arrivals.get(timeout=timeout_s)
        except queue.Empty:
            return False
        self.is_at_gate = self.is_busy
        return True

    def raise_error(self) -> None:
        """Raise what went wrong, other than by losing the connection."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def stop_before_statement(self, statement: str, backend_pid: int) -> None:
        """Arrive at a gate; but what a pipeline sends goes out together, and when is not ours to say."""
        if not (self.is_pipelined and self.is_under_way):
            self.is_under_way = True
            self.backend_pid = backend_pid
            self.stop_before(statement)

    def stop_before(self, what: str, *, may_be_lost: bool = True) -> None:
        """Arrive at a gate, in the actor's own thread."""
        self.gate = what
        self._arrivals.put(True)
        is_lost = self._commands.get()
        if is_lost and may_be_lost:
            raise ConnectionLostError

    def close(self) -> None:
        self._jobs.put(None)
        self._commands.put(True)  # where the test was interrupted, it may stand at a gate
        self._thread.join(_STATEMENT_S_MAX)

    def _work(self) -> None:
        _threads.actor = self
        while (job := self._jobs.get()) is not None:
            job()
            self.is_transaction_over = True
            self._arrivals.put(False)

    def _run(
        self,
        transaction: Callable[[], AbstractContextManager[Connection]],
        job: Callable[[Connection], Result],
        then: Callable[[Result], None],
        lost: Callable[[], None],
    ) -> None:
        try:
            with transaction() as connection:
                result = job(connection)
            self.is_transaction_over = True
            self.backend_pid = 0  # the connection may be another's now
            self.stop_before("its reply")
            self.finish = partial(then, result)
        except ConnectionLostError:
            self.finish = lost
        except Exception as error:  # noqa: BLE001 (raised again where the test is)
            self._error = error
            self.finish = _do_nothing


class Stage:
    """Actors of which one moves at a time, and the database's clock."""

    def __init__(self, database: Database, monitor: psycopg.Connection[Any], actors: int) -> None:
        self._monitor = monitor
        self.actors = [Actor(database) for _ in range(actors)]
        self.now_s = 0
        self._blockers: set[int] = set()

    @property
    def free(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.is_busy]

    @property
    def movable(self) -> list[Actor]:
        """Those that may move now. While one waits, that is only the one that it waits for.

        Of several that wait for one row PostgreSQL does not say who gets it, and a schedule has to be repeatable.
        Nothing is missed: who waits for a row with its first statement could as well have begun later.
        """
        at_gate = [actor for actor in self.actors if actor.is_at_gate]
        if self._running():
            return [actor for actor in at_gate if actor.backend_pid in self._blockers]
        return at_gate

    def set_clock(self, now_s: int) -> None:
        """Set the database's time for all sessions at once: seconds since 1970."""
        self.now_s = now_s
        self._monitor.execute("SELECT setval('schedule.now_s', %s)", [now_s])

    def look_up(self, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        """Read what is committed."""
        return self._monitor.execute(statement.encode(), parameters).fetchall()

    def write(self, statement: str, **parameters: object) -> None:
        self._monitor.execute(statement.encode(), parameters)

    def start(
        self,
        job: Callable[[Connection], Result],
        then: Callable[[Result], None],
        lost: Callable[[], None],
        *,
        is_pipelined: bool = False,
    ) -> Actor:
        """Give a transaction to a free actor; it stops before its first statement."""
        actor = self.free[0]
        actor.start(job, then, lost, is_pipelined=is_pipelined)
        self._wait(actor)
        return actor

    def advance(self, actor: Actor, *, is_lost: bool = False) -> None:
        """Let an actor at a gate carry one statement out, or lose its connection instead.

        Returns when it stands at the next gate, is at its end, or waits for another actor's lock.
        """
        actor.leave_gate(is_lost=is_lost)
        self._wait(actor)

    def clear(self) -> None:
        """Roll everything back."""
        while movable := self.movable:
            for actor in movable:
                actor.finish = _do_nothing
                actor.leave_gate(is_lost=True)
            self._wait_until_quiet()

    def close(self) -> None:
        self.clear()
        for actor in self.actors:
            actor.close()

    def _wait(self, actor: Actor) -> None:
        if not actor.arrives(_PATIENCE_S) or (actor.is_transaction_over and self._running()):
            self._wait_until_quiet()
        if not actor.is_busy:
            actor.raise_error()
            actor.finish()

    def _running(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.is_busy and not actor.is_at_gate]

    def _wait_until_quiet(self) -> None:
        """Wait until each actor is at a gate, at its end, or waits for one of the others."""
        give_up_at = time.monotonic() + _STATEMENT_S_MAX
        ours = [actor.backend_pid for actor in self.actors]
        while running := [actor for actor in self._running() if not actor.arrives(_PATIENCE_S)]:
            rows = self.look_up(_BLOCKERS, waiting=[actor.backend_pid for actor in running], ours=ours)
            if len(rows) == len(running):
                self._blockers = {pid for (pids,) in rows for pid in pids}
                return
            if time.monotonic() > give_up_at:
                raise TimeoutError


@contextmanager
def open_stage(url: str, *, actors: int) -> Iterator[Stage]:
    """Take a database over: its clock stands still, and its actors move when told."""
    plain_url = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with (
        psycopg.connect(plain_url, autocommit=True) as monitor,
        Database(url, transaction_timeout_s=None, pool_size=actors) as database,
    ):
        monitor.execute(_CLOCK)
        monitor.execute(f"ALTER DATABASE {monitor.info.dbname} SET search_path = schedule, public, pg_catalog")
        sa.event.listen(database.engine, "connect", _prepare)
        sa.event.listen(database.engine, "commit", _before_commit)
        sa.event.listen(database.engine, "rollback", _before_rollback)
        monitor.execute("SET synchronous_commit = off")
        stage = Stage(database, monitor, actors)
        try:
            yield stage
        finally:
            stage.close()


def _prepare(driver: psycopg.Connection[Any], _: object) -> None:
    # No server dies here, so no commit has to reach the disk.
    driver.execute("SET synchronous_commit = off")
    driver.commit()
    driver.cursor_factory = _GatedCursor


class _GatedCursor(psycopg.Cursor[Any]):
    """Every statement goes through here, SQLAlchemy's and those that are given to the driver."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Self:
        if (actor := _actor()) is not None:
            actor.stop_before_statement(str(query), self.connection.info.backend_pid)
        return super().execute(query, *args, **kwargs)


def _before_commit(_: object) -> None:
    if (actor := _actor()) is not None:
        actor.stop_before("COMMIT")


def _before_rollback(_: object) -> None:
    if (actor := _actor()) is not None:
        actor.stop_before("ROLLBACK", may_be_lost=False)


def _actor() -> Actor | None:
    return getattr(_threads, "actor", None)


def _do_nothing() -> None:
    pass
