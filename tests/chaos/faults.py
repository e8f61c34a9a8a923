"""The faults, one function each. They do to real processes and servers what accidents do."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from tests.chaos.cluster import Cluster, Process
from tests.polling import wait_until

_LOCK_ALL = sa.text("SELECT id FROM businesses ORDER BY id FOR UPDATE")
_WAITING_WORKERS = sa.text("""
    SELECT application_name FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'worker-%'
""")
_STALLED_TRANSACTIONS = sa.text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE application_name = :name AND backend_xid IS NOT NULL AND wait_event = 'ClientRead'
""")
"""Of transactions that hold a row lock: one that only reads has no `backend_xid`."""
_TERMINATE_SESSIONS = sa.text("""
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name LIKE 'worker-%' OR application_name LIKE 'web-%'
""")


@contextmanager
def rows_held(cluster: Cluster) -> Iterator[None]:
    """Hold the rows of all businesses, so that whoever allocates waits."""
    with cluster.database.transaction() as connection:
        connection.execute(_LOCK_ALL)
        yield


def stop_worker_that_holds_a_row(cluster: Cluster) -> Process:
    """Stop a worker (SIGSTOP) in the middle of its transaction, with the rows of its businesses locked.

    We hold the rows until one wants them, stop it while it waits, and let it have them.
    """
    name = ""

    def is_one_waiting() -> bool:
        nonlocal name
        with cluster.server.transaction() as other:
            name = other.execute(_WAITING_WORKERS).scalars().first() or ""
        return name != "" and cluster.processes[name].is_running()

    with rows_held(cluster):
        wait_until(is_one_waiting, "a worker waits for a row", 10)
        worker = cluster.processes[name]
        worker.stop()

    def holds_the_row() -> bool:
        with cluster.server.transaction() as other:
            return bool(other.execute(_STALLED_TRANSACTIONS, {"name": name}).scalar_one())

    wait_until(holds_the_row, "the stopped worker holds the row", 2)
    return worker


def kill_postgres(cluster: Cluster) -> None:
    """`kill -9` the server; its sessions break, and the next start is a crash recovery."""
    pid = int((cluster.postgres.data_dir / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    cluster.postgres.stop()  # buries the dead
    cluster.database.close()
    cluster.server.close()


def kill_valkey(cluster: Cluster) -> None:
    """`kill -9` the server; everything in it is lost."""
    os.kill(cluster.valkey.pid, signal.SIGKILL)
    wait_until(lambda: not cluster.valkey.is_running(), "Valkey is dead", 5)


@contextmanager
def locks_being_deleted(cluster: Cluster, every_s: float) -> Iterator[list[int]]:
    """Delete every Redis lock, again and again; gives how many there were each time."""
    deleted: list[int] = []
    stopping = threading.Event()

    def delete() -> None:
        with cluster.redis() as client:
            while not stopping.wait(every_s):
                names = list(client.scan_iter("payouts:lock:*", count=1000))
                deleted.append(client.delete(*names) if names else 0)

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        yield deleted
    finally:
        stopping.set()
        thread.join()


def terminate_sessions(cluster: Cluster) -> None:
    """End every session of API and workers, as an administrator may."""
    with cluster.server.transaction() as connection:
        connection.execute(_TERMINATE_SESSIONS)


@contextmanager
def read_only_database(cluster: Cluster) -> Iterator[None]:
    """Let nobody write, as a standby does that was not promoted, or a provider where the bill was not paid."""
    _alter(cluster, "ALTER DATABASE payouts SET default_transaction_read_only = on")
    try:
        yield
    finally:
        _alter(cluster, "ALTER DATABASE payouts RESET default_transaction_read_only")


def _alter(cluster: Cluster, statement: str) -> None:
    with cluster.server.transaction() as connection:
        connection.execute(sa.text(statement))
    terminate_sessions(cluster)
    cluster.database.close()


def sleep_until(moment: float) -> None:
    """Sleep until a moment of the monotonic clock."""
    time.sleep(max(0.0, moment - time.monotonic()))
