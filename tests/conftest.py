"""Fixtures: one PostgreSQL and one Valkey for all tests, a fresh database for each that asks."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from api.local.valkey import EmbeddedValkey
from core.database.connection import Database
from core.in_doubt.files import RecordFiles
from core.in_doubt.records import RecordCodec
from tests.servers import (
    HASH_SECRET,
    ROOT,
    Account,
    Servers,
    System,
    open_account,
    run_servers,
    run_system,
    run_valkey,
)
from workers.in_doubt import InDoubtRecords

RECORDS_DATABASE = 8

_QUICK_FOLDERS = ("tests/api", "tests/core", "tests/workers")
_SLOW_FIXTURES = {"system", "valkey"}
# These start processes of their own, wait for something, or hash passwords.
_SLOW_MODULES = (
    "tests/api/allocations/test_endpoint.py",
    "tests/api/cli/test_admin.py",
    "tests/api/cli/test_businesses.py",
    "tests/api/cli/test_doctor.py",
    "tests/api/cli/test_keys.py",
    "tests/api/cli/test_members.py",
    "tests/api/cli/test_users.py",
    "tests/api/local",
    "tests/api/resources/test_health.py",
    "tests/api/test_client.py",
    "tests/api/test_privacy.py",
    "tests/api/test_startup.py",
    "tests/api/web/test_protocol.py",
    "tests/api/web/test_rate_limit.py",
    "tests/api/web/test_request_log.py",
    "tests/api/web/test_tracing.py",
    "tests/core/batches/test_books.py",
    "tests/core/database/test_pooler.py",
    "tests/core/database/test_schema.py",
    "tests/core/ledger/test_day_sums.py",
    "tests/core/logging/test_setup.py",
    "tests/core/parties/test_invitations.py",
    "tests/core/parties/test_members.py",
    "tests/core/parties/test_passwords.py",
    "tests/workers/broker",
    "tests/workers/tasks",
    "tests/workers/test_flower.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `quick` each test that needs no process but PostgreSQL."""
    for item in items:
        path = item.path.relative_to(ROOT).as_posix()
        is_slow = path.startswith(_SLOW_MODULES) or _SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if path.startswith(_QUICK_FOLDERS) and not is_slow:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with run_servers() as running:
        yield running


@pytest.fixture
def database_url(servers: Servers) -> Iterator[str]:
    with servers.clone() as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(database_url, transaction_timeout_s=5) as opened:
        yield opened


@pytest.fixture
def records(servers: Servers, tmp_path: Path) -> Iterator[InDoubtRecords]:
    """Records in doubt, in a Redis database and a state folder of the test's own."""
    client = redis.Redis.from_url(servers.redis_url.removesuffix("/0") + f"/{RECORDS_DATABASE}", socket_timeout=5)
    client.flushdb()
    codec = RecordCodec(HASH_SECRET.encode())
    opened = InDoubtRecords(client, RecordFiles(tmp_path / "state", codec), codec)
    yield opened
    opened.close()


@pytest.fixture
def valkey() -> Iterator[EmbeddedValkey]:
    """A Valkey of the test's own, where nobody consumes and which it may break."""
    with run_valkey() as running:
        yield running


@pytest.fixture(scope="session")
def system(servers: Servers) -> Iterator[System]:
    """API and worker as the Procfile runs them; each test makes a business of its own.

    On a Valkey of their own: the workers of other systems would take their messages, and know none of their businesses.
    """
    with run_valkey() as valkey, run_system(Servers(servers.postgres_url, valkey.url)) as running:
        yield running


@pytest.fixture(scope="session")
def client(system: System) -> Iterator[httpx.Client]:
    with system.client() as opened:
        yield opened


@pytest.fixture
def account(system: System) -> Account:
    return open_account(system.database)
