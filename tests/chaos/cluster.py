"""A system of its own for each test to break: PostgreSQL, Valkey, and the Procfile's processes."""

import atexit
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx
import redis
import sqlalchemy as sa

from api.local.ports import find_free_port
from api.local.postgres import EmbeddedPostgres
from api.local.procfile import parse_procfile
from api.local.valkey import EmbeddedValkey
from core.database.connection import Database
from core.database.schema import migrate
from core.settings.loader import Settings, load_settings
from tests.chaos.proxy import Proxy, proxied_postgres_url, proxied_valkey_url, proxy_postgres, proxy_valkey
from tests.pgbouncer import PgBouncer, run_pgbouncer
from tests.polling import wait_until
from tests.servers import HASH_SECRET, ROOT, Account, make_directory, open_account
from workers.app import QUEUE

PROCFILE: dict[str, str] = parse_procfile((ROOT / "Procfile").read_text())
FUNDS_CENTS = 100_000_000_000
_READY_WITHIN_S = 60.0
_STOP_WITHIN_S = 30.0
_POLL_S = 0.02
_building = threading.Lock()


class Process:
    """One of the Procfile's lines; it may be killed, stopped and started again."""

    def __init__(self, name: str, environment: Mapping[str, str], log: Path, namespace: str | None = None) -> None:
        self.name = name
        self.log = log
        self._environment = dict(environment)
        self._command = PROCFILE[name.partition("-")[0]]
        if namespace is not None:  # `ip` becomes the shell, and that the process
            self._command = f"exec ip netns exec {namespace} sh -c {shlex.quote(self._command)}"
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_offset = 0

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._log_offset = log.tell()
            self._popen = subprocess.Popen(
                self._command,
                shell=True,
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def log_since_start(self) -> str:
        return self.log.read_bytes()[self._log_offset :].decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As a crash of the machine would."""
        assert self._popen is not None
        self.signal(signal.SIGKILL)
        self._popen.wait()

    def stop(self) -> None:
        """Let it do nothing, with everything that it holds, and wait until all its threads stand."""
        self.signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.pid}/task")
        wait_until(
            lambda: all(
                (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T" for thread in threads.iterdir()
            ),
            f"{self.name} stands still",
            _READY_WITHIN_S,
        )

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def terminate(self) -> None:
        assert self._popen is not None
        self._popen.terminate()

    def wait(self) -> int:
        assert self._popen is not None
        return self._popen.wait(_STOP_WITHIN_S)

    def end(self) -> None:
        """Leave nothing of it behind."""
        if self._popen is not None:
            with ExitStack() as stack:
                stack.callback(self._popen.wait)
                if self.is_running():
                    os.killpg(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Links:
    """The network between API or worker and the servers."""

    api_postgres: Proxy
    worker_postgres: Proxy
    api_valkey: Proxy
    worker_valkey: Proxy


@dataclass
class Cluster:
    """Everything that one test may break."""

    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    directory: Path
    database: Database
    """The tests' own way to the database, past every proxy and limit."""
    server: Database
    """The database server's other database, for what is done to the server."""
    environment: dict[str, str]
    links: Links | None = None
    pooler: PgBouncer | None = None
    """Between the processes and PostgreSQL."""
    processes: dict[str, Process] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    """Where API processes listen, if not on 127.0.0.1."""

    @property
    def settings(self) -> Settings:
        return load_settings(self.environment)

    def named(self, kind: str) -> list[Process]:
        return [process for name, process in self.processes.items() if name.startswith(f"{kind}-")]

    @property
    def workers(self) -> list[Process]:
        return self.named("worker")

    def address(self, web: str) -> tuple[str, int]:
        """Return the host and port of an API process."""
        return self.hosts.get(web, "127.0.0.1"), self.ports[web]

    def start(self, name: str, *, namespace: str | None = None, **environment: str) -> Process:
        """Start `web-…`, `worker-…`, `batches-…` or `beat-…`; in a network namespace, where one is named."""
        own = self.environment | {"PGAPPNAME": name}  # by which the database's sessions tell who they belong to
        kind = name.partition("-")[0]
        if kind == "web":
            self.ports.setdefault(name, find_free_port())
            own["PORT"] = str(self.ports[name])
        if self.links is not None:
            is_web = kind == "web"
            to_postgres = self.links.api_postgres if is_web else self.links.worker_postgres
            to_valkey = self.links.api_valkey if is_web else self.links.worker_valkey
            own["PAYOUTS_DATABASE_URL"] = proxied_postgres_url(self.postgres.url, to_postgres)
            own["PAYOUTS_REDIS_URL"] = proxied_valkey_url(self.valkey.url, to_valkey)
        process = self.processes[name] = Process(name, own | environment, self.directory / f"{name}.log", namespace)
        process.start()
        return process

    def wait_until_ready(self, *processes: Process) -> None:
        """Wait until processes serve: all of them where none is named."""
        awaited = processes or tuple(self.processes.values())
        for process in awaited:
            wait_until(lambda process=process: self._is_ready(process), f"{process.name} serves", _READY_WITHIN_S)  # type: ignore[misc]

    def _is_ready(self, process: Process) -> bool:
        assert process.is_running(), f"{process.name} ended"
        kind = process.name.partition("-")[0]
        if kind == "beat":
            return True  # it says nothing, and nobody waits for it
        if kind in {"worker", "batches"}:
            return re.search(r"@\S+ ready\.", process.log_since_start()) is not None
        path = "ready" if any(worker.is_running() for worker in self.workers) else "live"
        try:
            host, port = self.address(process.name)
            url = f"http://{host}:{port}/health/{path}"
            return httpx.get(url, timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def open_account(self, name: str = "ACME", funds_cents: int = FUNDS_CENTS) -> Account:
        return open_account(self.database, name=name, funds_cents=funds_cents)

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.valkey.url, socket_timeout=5)

    def wait_until_queue_is_empty(self, timeout_s: float = 20) -> None:
        with self.redis() as client:
            wait_until(lambda: client.llen(QUEUE) == 0, "the queue is empty", timeout_s)

    def stop(self) -> None:
        """Stop API and workers as a deployment does: asked to, each ends by itself, with its work done."""
        running = [process for process in self.processes.values() if process.is_running()]
        for process in running:
            process.terminate()
        codes = {process.name: process.wait() for process in running}
        # After a warm shutdown uvicorn ends by the signal that it was sent.
        assert set(codes.values()) <= {0, -signal.SIGTERM}, codes

    def end(self) -> None:
        """Leave no process behind."""
        for process in self.processes.values():
            process.end()

    def logs(self) -> str:
        return "".join(
            f"== {process.name}\n{process.log.read_text(errors='replace')[-8000:]}"
            for process in self.processes.values()
        )


@cache
def _build_template() -> Path:
    """Make the files of a migrated database once; each test starts from a copy.

    Recovery would write each of 1,300 files to the disk by itself: 20 s where a write takes 15 ms.
    """
    directory = make_directory("chaos")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    postgres = EmbeddedPostgres(directory / "postgres")
    try:
        with Database(postgres.start(), transaction_timeout_s=None) as database:
            migrate(database)
    finally:
        postgres.stop()
    with (postgres.data_dir / "postgresql.conf").open("a") as settings:
        settings.write("recovery_init_sync_method = syncfs\n")
    return postgres.data_dir


def _template() -> Path:
    with _building:
        return _build_template()


@contextmanager
def run_cluster(
    *,
    webs: int = 1,
    workers: int = 2,
    batches: int = 0,
    beats: int = 0,
    proxied: bool = False,
    directory: Path | None = None,
    environments: Mapping[str, Mapping[str, str]] | None = None,
    **settings: str,
) -> Iterator[Cluster]:
    """Run a system; settings as keyword arguments, further environment variables by the process's name.

    With `database_pooler`, a PgBouncer stands before PostgreSQL.
    """
    with ExitStack() as stack:
        own = make_directory("chaos")
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        data_dir = (directory or own) / "postgres"
        subprocess.run(["cp", "-a", str(_template()), str(data_dir)], check=True)
        postgres = EmbeddedPostgres(data_dir)
        stack.callback(postgres.stop)
        url = postgres.start()
        valkey = EmbeddedValkey()
        stack.callback(valkey.stop)
        valkey.start()
        links = None
        if proxied:
            links = Links(
                api_postgres=stack.enter_context(proxy_postgres(url)),
                worker_postgres=stack.enter_context(proxy_postgres(url)),
                api_valkey=stack.enter_context(proxy_valkey(valkey.url)),
                worker_valkey=stack.enter_context(proxy_valkey(valkey.url)),
            )
        pooler = stack.enter_context(run_pgbouncer(url)) if "database_pooler" in settings else None
        database = stack.enter_context(Database(url, transaction_timeout_s=None))
        server_url = sa.make_url(url).set(database="postgres").render_as_string(hide_password=False)
        server = stack.enter_context(Database(server_url, transaction_timeout_s=None))
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "PAYOUTS_DATABASE_URL": pooler.url_of() if pooler else url,
            "PAYOUTS_REDIS_URL": valkey.url,
            "PAYOUTS_HASH_SECRET": HASH_SECRET,
            "PAYOUTS_STATE_DIR": str(own / "state"),
            **{f"PAYOUTS_{name.upper()}": value for name, value in settings.items()},
        }
        cluster = Cluster(postgres, valkey, own, database, server, environment, links, pooler)
        stack.callback(cluster.end)
        try:
            counts = {"web": webs, "worker": workers, "batches": batches, "beat": beats}
            for name in [f"{kind}-{n + 1}" for kind, count in counts.items() for n in range(count)]:
                cluster.start(name, **(environments or {}).get(name, {}))
            cluster.wait_until_ready()
            yield cluster
        except BaseException as error:
            error.add_note(cluster.logs())
            raise
