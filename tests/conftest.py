"""Fixtures: one PostgreSQL and one Valkey for all tests, a fresh database for each that asks."""

from collections.abc import Iterator

import httpx
import pytest

from api.local.valkey import EmbeddedValkey
from core.database.connection import Database
from tests.servers import Account, Servers, System, open_account, run_servers, run_system, run_valkey


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
