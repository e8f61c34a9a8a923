"""For all tests of payout batches: threads get enough connections, and the books balance after each."""

from collections.abc import Iterator

import pytest

from core.database.connection import Database
from tests.core.batch_builders import (
    assert_books_balance,
)
from tests.servers import Servers


@pytest.fixture(scope="module")
def database(servers: Servers) -> Iterator[Database]:
    """One for all tests, each with a business of its own, and for eight threads at once."""
    with (
        servers.clone() as url,
        Database(url, transaction_timeout_s=None, connect_timeout_s=30, pool_size=10) as opened,
    ):
        yield opened


@pytest.fixture(autouse=True)
def _books_balance(database: Database) -> Iterator[None]:
    """Check the books behind every test, whatever else it looks at."""
    yield
    assert_books_balance(database)
