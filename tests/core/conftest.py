"""For all tests of `core`: property tests assert no timings, and threads get enough connections."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from core.database.connection import Database
from tests.servers import Account, open_account

settings.register_profile("core", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("core")


@pytest.fixture
def shared_database(database_url: str) -> Iterator[Database]:
    """A database for eight threads at once, where no transaction is ended for taking long."""
    with Database(database_url, transaction_timeout_s=None, connect_timeout_s=30, pool_size=10) as opened:
        yield opened


@pytest.fixture
def payer(database: Database) -> Account:
    """A business with 1,000,000 cents."""
    return open_account(database)
