"""`python -m tests.bench.sizing`: what an allocation takes on disk and in the log, and a process in memory.

docs/operations/scaling.md has what it prints. The rows are written by the ledger itself, in batches of 500.
"""

import argparse
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import msgspec
import psutil
import sqlalchemy as sa

from core.database.connection import Database
from core.ledger import statements
from tests.bench.accounts import Account, open_accounts
from tests.bench.load import Demand, LoadGenerator
from tests.bench.progress import report_progress
from tests.chaos.cluster import Cluster, run_cluster
from tests.servers import HASH_SECRET, TEMPLATE, run_servers

_BATCH = 500
_random = random.Random(1)  # noqa: S311 (no secret)
_WAL_BATCHES = (1, 25, 125, 500)
_WAL_ROWS = 5_000
_CONNECTIONS = 256
_STRIDE = 7919  # a prime: e-mails come in no order
_SIZES = sa.text("""
    SELECT COALESCE(pg_index.indrelid::regclass, pg_class.oid::regclass)::text, relname, pg_relation_size(pg_class.oid)
    FROM pg_class
    LEFT JOIN pg_index ON indexrelid = pg_class.oid
    WHERE relkind IN ('r', 'i') AND relname ~ 'payout_(users|transactions)'
    ORDER BY 1, 3 DESC
""")
_COUNT = sa.text("SELECT (SELECT count(*) FROM payout_users), (SELECT count(*) FROM payout_transactions)")
_LOG_BYTES = sa.text("SELECT pg_current_wal_insert_lsn() - CAST('0/0' AS pg_lsn)")
_SESSIONS = sa.text("""
    SELECT application_name, count(*) FROM pg_stat_activity WHERE application_name ~ '^[a-z]+-[0-9]$' GROUP BY 1
""")


class Writer:
    """Pays from one business as workers do, and reads what PostgreSQL wrote for it."""

    def __init__(self, database: Database, account: Account, users: int) -> None:
        self._database = database
        self._account = account
        self._users = users
        self._number = 0

    def write(self, rows: int, batch: int, key: Callable[[], str] | None = None) -> float:
        """Return the bytes of log for each row."""
        before = self._read(_LOG_BYTES)
        for _ in range(rows // batch):
            allocations = []
            for _ in range(batch):
                self._number += 1
                each = self._account.allocation(f"user{self._number * _STRIDE % self._users}@example.com", 1)
                allocations.append(each if key is None else msgspec.structs.replace(each, idempotency_key=key()))
            with self._database.pipeline() as connection:
                statements.allocate(connection, HASH_SECRET.encode(), allocations)
        return (self._read(_LOG_BYTES) - before) / rows

    def print_sizes(self) -> None:
        """Print the bytes of each table and index for each of the table's rows."""
        with self._database.transaction() as connection:
            users, rows = connection.execute(_COUNT).one()
            sizes = connection.execute(_SIZES).all()
        for table, count in (("payout_transactions", rows), ("payout_users", users)):
            own = [(name, size / count) for owner, name, size in sizes if owner == table]
            print(f"{table}: {count:,} rows, {sum(size for _, size in own):.0f} bytes each, with indexes")
            for name, size in own:
                print(f"  {name}: {size:.0f}")

    def _read(self, statement: sa.TextClause) -> int:
        with self._database.transaction() as connection:
            return int(connection.execute(statement).scalar_one())


def measure_disk(rows: int) -> None:
    with run_servers(on_disk=True) as servers:
        with Database(servers.url_of(TEMPLATE), transaction_timeout_s=None) as template:
            account = open_accounts(template).hot[0]
        for what, key in (("without idempotency keys", None), ("with idempotency keys of 36 characters", _random_key)):
            with servers.clone() as url, Database(url, transaction_timeout_s=None) as database:
                writer = Writer(database, account, rows // 2)
                report_progress(f"{rows:,} rows {what}")
                first = writer.write(rows // 2, _BATCH, key)
                second = writer.write(rows // 2, _BATCH, key)
                print(f"== {what}")
                writer.print_sizes()
                print(f"log: {first:.0f} bytes for a row with a new user, {second:.0f} with a known one")
                if key is None:
                    for batch in _WAL_BATCHES:
                        print(f"log, batches of {batch}: {writer.write(_WAL_ROWS, batch):.0f} bytes a row")


def _random_key() -> str:
    return str(UUID(bytes=_random.randbytes(16)))


def measure_processes(seconds: int) -> None:
    with (
        TemporaryDirectory() as directory,
        run_cluster(workers=1, batches=1, beats=1, directory=Path(directory)) as cluster,
    ):
        with cluster.redis() as client:
            idle = client.info("memory")["used_memory"]
        _print_memory(cluster, "idle")
        opened = cluster.open_account()
        account = Account(opened.business.id, opened.api_key_id, opened.secret_key)
        generator = LoadGenerator(Path(directory))
        base_url = f"http://127.0.0.1:{cluster.ports['web-1']}"
        load = generator.start(base_url, Demand([account], _CONNECTIONS, seconds)).wait()
        _print_memory(cluster, f"after {seconds} s at {load.per_second:,.0f}/s over {_CONNECTIONS} connections")
        with cluster.redis() as client:
            peak = client.info("memory")["used_memory_peak"]
            clients = client.info("clients")["connected_clients"]
        print(f"Valkey: {idle / 2**20:.1f} MiB idle, {peak / 2**20:.1f} MiB at its peak, {clients} connections")
        with cluster.server.transaction() as connection:
            sessions = {row[0]: row[1] for row in connection.execute(_SESSIONS)}
        print(f"connections to PostgreSQL: {sessions}")


def _print_memory(cluster: Cluster, when: str) -> None:
    for name, process in cluster.processes.items():
        memory = psutil.Process(process.pid).memory_full_info()
        print(f"{name}, {when}: {memory.pss / 2**20:.0f} MiB proportional, {memory.rss / 2**20:.0f} MiB resident")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sizing", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="history rows, half as many users; 0: leave out")
    parser.add_argument("--seconds", type=int, default=30, help="of load on the processes; 0: leave out")
    arguments = parser.parse_args()
    # Ends the servers too, which have sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if arguments.rows:
        measure_disk(arguments.rows)
    if arguments.seconds:
        measure_processes(arguments.seconds)


if __name__ == "__main__":
    main()
