"""Verifying the books now and then: by one worker, when it is due, beside its other work."""

from collections.abc import Iterator

import fakeredis
import pytest
import redis
import sqlalchemy as sa

from core.database.connection import Database, read_clock_us
from core.ledger.verification import Verdict
from core.settings.loader import load_settings
from tests.servers import HASH_SECRET, open_account
from workers.app import VERDICT_KEY
from workers.tasks.verification import BooksVerifier


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    with fakeredis.FakeRedis() as opened:
        yield opened


@pytest.fixture
def verifier(database_url: str, client: redis.Redis) -> BooksVerifier:
    return make_verifier(database_url, client)


def make_verifier(database_url: str, client: redis.Redis, every_s: float = 3600) -> BooksVerifier:
    environment = {
        "PAYOUTS_DATABASE_URL": database_url,
        "PAYOUTS_REDIS_URL": "redis://nowhere",
        "PAYOUTS_HASH_SECRET": HASH_SECRET,
        "PAYOUTS_VERIFY_EVERY_S": str(every_s),
    }
    return BooksVerifier(load_settings(environment), client)


def verify(verifier: BooksVerifier) -> bool:
    """Tell whether it was done."""
    thread = verifier.begin_if_due()
    if thread is not None:
        thread.join(60)
    return thread is not None


def read_verdict(client: redis.Redis) -> Verdict | None:
    data = client.get(VERDICT_KEY)
    assert data is None or isinstance(data, bytes)
    return Verdict.open(data, HASH_SECRET.encode())


def test_verdict_is_left_for_all_to_see(database: Database, verifier: BooksVerifier, client: redis.Redis) -> None:
    open_account(database)
    before_us = database.read(read_clock_us)
    assert verify(verifier)
    verdict = read_verdict(client)
    assert verdict is not None
    assert verdict.discrepancies == 0
    assert before_us <= verdict.ended_at_us <= database.read(read_clock_us)
    assert 0 < verdict.took_s < 60


def test_discrepancies_are_counted_and_logged_without_rows(
    database: Database, verifier: BooksVerifier, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    account = open_account(database)
    with database.transaction() as connection:
        connection.execute(sa.text("UPDATE businesses SET payout_balance = payout_balance + 7"))
    assert verify(verifier)
    verdict = read_verdict(client)
    assert verdict is not None
    assert verdict.discrepancies == 2  # the business and its test twin
    assert "the books do not balance in 2 places" in caplog.text
    assert account.business.id.hex not in caplog.text.replace("-", "")


def test_it_is_done_again_only_when_due(
    database: Database, database_url: str, verifier: BooksVerifier, client: redis.Redis
) -> None:
    assert verify(verifier)
    assert not verify(verifier)
    client.delete("payouts:verification-begun")
    assert not verify(verifier)  # the verdict is young
    assert verify(make_verifier(database_url, client, every_s=0.001))


def test_two_workers_do_not_verify_at_the_same_time(
    database_url: str, verifier: BooksVerifier, client: redis.Redis
) -> None:
    first = verifier.begin_if_due()
    assert make_verifier(database_url, client).begin_if_due() is None
    assert first is not None
    first.join(60)


def test_failure_leaves_no_verdict_and_is_tried_again_later_not_at_once(
    database: Database, verifier: BooksVerifier, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with database.transaction() as connection:
        connection.execute(sa.text("ALTER TABLE payout_users RENAME TO elsewhere"))
    assert verify(verifier)
    assert read_verdict(client) is None
    assert "the books could not be verified" in caplog.text
    assert not verify(verifier)
    remaining_ms = client.pttl("payouts:verification-begun")
    assert isinstance(remaining_ms, int)
    assert 0 < remaining_ms <= 3_600_000


def test_database_out_of_reach_is_a_line_in_the_log(client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    assert not verify(make_verifier("postgresql://127.0.0.1:1/nothing", client))
    assert "the books are not verified now" in caplog.text
    assert client.get("payouts:verification-begun") is None
