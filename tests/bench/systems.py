"""The three HTTP services, each on a copy of the database of its own, started for its turn and ended after it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from api.local.ports import find_free_port
from core.database.connection import Database
from tests.servers import HASH_SECRET, ROOT, Servers, run_system, wait_until_ready

OURS = "ours"
DIRECT_1 = "direct, 1 process"
DIRECT_2 = "direct, 2 processes"
TEXTBOOK = "textbook Celery"

_STOP_WITHIN_S = 15


@dataclass
class Service:
    """A running system under test."""

    name: str
    base_url: str
    database: Database
    read_logs: Callable[[], str]

    def find_complaints(self) -> list[str]:
        """Return what the processes logged that they should not have."""
        marks = ("Traceback", "ERROR", "CRITICAL", '"level":"error"', '"level":"critical"')
        return [line for line in self.read_logs().splitlines() if any(mark in line for mark in marks)][:3]


def run_service(servers: Servers, name: str, **settings: str) -> AbstractContextManager[Service]:
    """Run one of the systems; settings are for ours."""
    if name == OURS:
        return _run_ours(servers, **settings)
    if name == TEXTBOOK:
        return _run_competitor(servers, name, [_uvicorn("tests.bench.textbook:create_app", 1), _celery()])
    return _run_competitor(servers, name, [_uvicorn("tests.bench.direct:create_app", 1 if name == DIRECT_1 else 2)])


@contextmanager
def _run_ours(servers: Servers, **settings: str) -> Iterator[Service]:
    with run_system(servers, **settings) as system:
        _begin_afresh(system.database)
        yield Service(OURS, system.base_url, system.database, system.logs)


def _uvicorn(factory: str, processes: int) -> list[str]:
    quiet = ["--no-access-log", "--no-server-header", "--log-level", "warning"]
    return ["uvicorn", "--factory", factory, "--host", "127.0.0.1", "--workers", str(processes), *quiet, "--port"]


def _celery() -> list[str]:
    """Celery's own defaults (prefork, acknowledgement when a task begins), with four children."""
    concurrency = os.environ.get("BENCH_CONCURRENCY", "4")
    return ["celery", "--quiet", "--app", "tests.bench.textbook", "worker", "--concurrency", concurrency]


@contextmanager
def _run_competitor(servers: Servers, name: str, commands: Sequence[list[str]]) -> Iterator[Service]:
    port = find_free_port()
    programs = Path(sys.executable).parent
    processes: list[subprocess.Popen[bytes]] = []
    with (
        servers.clone() as url,
        Database(url, transaction_timeout_s=None) as database,
        tempfile.TemporaryFile("w+b") as log,
    ):

        def read_logs() -> str:
            log.seek(0)
            return log.read().decode(errors="replace")

        environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PAYOUTS_DATABASE_URL": url,
            "PAYOUTS_REDIS_URL": servers.redis_url,
            "PAYOUTS_HASH_SECRET": HASH_SECRET,
        }
        base_url = f"http://127.0.0.1:{port}"
        try:
            for command in commands:
                program, *arguments = [*command, str(port)] if command[-1] == "--port" else command
                processes.append(
                    subprocess.Popen(
                        [programs / program, *arguments],
                        env=environment,
                        cwd=ROOT,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            wait_until_ready(base_url)
            _begin_afresh(database)
            yield Service(name, base_url, database, read_logs)
        except TimeoutError as error:
            raise TimeoutError(read_logs()) from error
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(_STOP_WITHIN_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _begin_afresh(database: Database) -> None:
    """Let every turn begin at the same distance from a checkpoint."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("CHECKPOINT"))
