"""Real servers and processes for the tests, started from the wheels and from the Procfile's own lines."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import sqlalchemy as sa

from api.local.ports import find_free_port
from api.local.postgres import EmbeddedPostgres
from api.local.procfile import parse_procfile
from api.local.valkey import EmbeddedValkey
from core.credentials import KeyKind
from core.database.connection import Database
from core.database.schema import migrate
from core.ledger.verification import Verification, verify
from core.parties import api_keys, businesses
from core.parties.businesses import Business
from tests.pgbouncer import run_pgbouncer
from tests.polling import wait_until

ROOT = Path(__file__).resolve().parent.parent
HASH_SECRET = "a hash secret for tests, long enough"  # noqa: S105
TEMPLATE = "payouts_template"


_MEMORY = Path("/dev/shm")  # noqa: S108
_MEMORY_FREE_BYTES = 4 << 30


def make_directory(name: str, *, on_disk: bool = False) -> Path:
    """Make a directory for a server's files: in memory where that has plenty of room, unless the disk is asked for.

    What tests kill are processes, never the machine; and a disk that takes seconds to write is a fault of its own,
    which would hide the one that a test is about. What measures wants the disk.
    """
    in_memory = not on_disk and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _MEMORY_FREE_BYTES
    return Path(tempfile.mkdtemp(prefix=f"payouts-{name}-", dir=_MEMORY if in_memory else None))


@dataclass
class Servers:
    """PostgreSQL with a migrated template database, and Valkey."""

    postgres_url: str
    redis_url: str

    def url_of(self, database_name: str) -> str:
        return sa.make_url(self.postgres_url).set(database=database_name).render_as_string(hide_password=False)

    @contextmanager
    def clone(self) -> Iterator[str]:
        """Give the URL of a fresh, migrated database."""
        name = f"test_{uuid4().hex}"
        self.administer(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        try:
            yield self.url_of(name)
        finally:
            self.administer(f"DROP DATABASE {name} WITH (FORCE)")

    def create(self, name: str) -> str:
        self.administer(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def rename(self, name: str, new_name: str) -> None:
        """Give a database another name, whoever is connected to it."""
        self.administer(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity "
            f"WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        )
        self.administer(f"ALTER DATABASE {name} RENAME TO {new_name}")

    def administer(self, statement: str) -> None:
        with Database(self.postgres_url, transaction_timeout_s=None) as database:
            connection = database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            with connection:
                connection.execute(sa.text(statement))


@contextmanager
def run_servers(*, on_disk: bool = False) -> Iterator[Servers]:
    directory = make_directory("test", on_disk=on_disk)
    postgres = EmbeddedPostgres(directory / "postgres")
    try:
        with run_valkey() as valkey:
            servers = Servers(postgres.start(), valkey.url)
            with Database(servers.create(TEMPLATE), transaction_timeout_s=None) as template:
                migrate(template)
            yield servers
    finally:
        postgres.stop()
        shutil.rmtree(directory)


@contextmanager
def run_valkey() -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@dataclass
class Account:
    """A business with its secret key, and a client that authenticates with it."""

    business: Business
    api_key_id: UUID
    secret_key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret_key}"}


def open_account(
    database: Database, *, funds_cents: int = 1_000_000, payouts_enabled: bool = True, name: str = "ACME"
) -> Account:
    with database.transaction() as connection:
        business = businesses.create_business(connection, name, payouts_enabled=payouts_enabled)
        if funds_cents:
            business = businesses.fund_business(connection, business.id, funds_cents)
        key, secret_key = api_keys.create_api_key(connection, business.id, KeyKind.SECRET)
    return Account(business, key.id, secret_key)


def verify_books(database: Database) -> Verification:
    with database.snapshot() as connection:
        return verify(connection)


@dataclass
class System:
    """The Procfile's processes on a database of their own."""

    base_url: str
    environment: dict[str, str]
    database: Database
    log_dir: Path

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for those who speak HTTP by hand."""
        host, _, port = self.base_url.removeprefix("http://").partition(":")
        return host, int(port)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.base_url, timeout=30, **options)

    def pay(self, client: httpx.Client, account: Account, email: str, amount: int) -> httpx.Response:
        return client.post("/payout/create", json={"email": email, "amount": amount}, headers=account.headers)

    def read_paid(self, account: Account) -> tuple[int, int]:
        """Return how many allocations a business has, and their sum in cents."""
        query = sa.text(
            "SELECT count(*), COALESCE(sum(amount), 0) FROM payout_transactions "
            "WHERE business_id = :id AND type = 'allocation'"
        )
        with self.database.transaction() as connection:
            count, total = connection.execute(query, {"id": account.business.id}).one()
            return count, int(total)

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.log_dir.glob("*.log")))


@dataclass(frozen=True)
class Parts:
    """Which of the Procfile's processes run, and what is special about them."""

    without: Sequence[str] = ()
    variables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Environment variables that one of them has of its own, by its name."""
    is_waited_for: bool = True


@contextmanager
def run_system(servers: Servers, parts: Parts | None = None, /, **settings: str) -> Iterator[System]:
    """Run the Procfile's processes, or some; further settings as keyword arguments (`group_max="5"`).

    `flower` runs where its password is set; with `database_pooler`, a PgBouncer stands before the database.
    """
    parts = parts or Parts()
    port = find_free_port()
    running: list[subprocess.Popen[bytes]] = []
    log_dir = Path(tempfile.mkdtemp(prefix="payouts-logs-"))
    with (
        servers.clone() as database_url,
        Database(database_url, transaction_timeout_s=None) as database,
        ExitStack() as stack,
    ):
        url = (
            stack.enter_context(run_pgbouncer(database_url)).url_of() if "database_pooler" in settings else database_url
        )
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "PORT": str(port),
            "PAYOUTS_DATABASE_URL": url,
            "PAYOUTS_REDIS_URL": servers.redis_url,
            "PAYOUTS_HASH_SECRET": HASH_SECRET,
            "PAYOUTS_STATE_DIR": str(log_dir / "state"),
            **{f"PAYOUTS_{name.upper()}": value for name, value in settings.items()},
        }
        system = System(f"http://127.0.0.1:{port}", environment, database, log_dir)
        try:
            for name, command in parse_procfile((ROOT / "Procfile").read_text()).items():
                if name in parts.without:
                    continue
                if name == "flower" and "flower_password" not in settings:
                    continue  # it takes a second of a processor to start
                with (log_dir / f"{name}.log").open("wb") as log:
                    running.append(
                        subprocess.Popen(
                            command,
                            shell=True,
                            env=environment | dict(parts.variables.get(name, {})),
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
            if parts.is_waited_for:
                # Without a worker the API never is ready; it answers all the same.
                wait_until_ready(system.base_url, path="/health/live" if "worker" in parts.without else "/health/ready")
            yield system
        except TimeoutError as error:
            raise TimeoutError(system.logs()) from error
        finally:
            for process in running:
                process.terminate()
            for process in running:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            shutil.rmtree(log_dir)


def wait_until_ready(base_url: str, timeout_s: float = 30, path: str = "/health/ready") -> None:
    url = f"{base_url}{path}"
    wait_until(lambda: httpx.get(url).is_success, url, timeout_s, passing=(httpx.TransportError,), pause_s=0.05)
