"""Taking payout batches in: an answer of 500 says that nothing was accepted, and nothing ever will be."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import sqlalchemy as sa

from api.batches.intake import BatchIntake
from api.batches.reader.files import FileFormat
from api.batches.releasing import BatchReleaser
from api.web.authentication import Identity
from api.web.errors import TooManyWaitingError
from core.database.connection import Database
from core.settings.loader import load_settings
from tests.core.builders import HASH_SECRET, run_sql
from tests.servers import Account, Servers, open_account, verify_books
from workers.app import create_celery
from workers.in_doubt import InDoubtRecords

BODY = b"email,amount\r\na@example.com,1\r\nb@example.com,2\r\n"


@pytest.fixture
def payer(database: Database) -> Account:
    return open_account(database)


@pytest.fixture
def environment(servers: Servers, database_url: str) -> dict[str, str]:
    return {
        "PAYOUTS_DATABASE_URL": database_url,
        "PAYOUTS_REDIS_URL": servers.redis_url.removesuffix("/0") + "/9",
        "PAYOUTS_HASH_SECRET": HASH_SECRET.decode(),
    }


def make_intake(
    database: Database, records: InDoubtRecords, environment: dict[str, str], timeout_s: float
) -> Iterator[BatchIntake]:
    celery = create_celery(load_settings(environment))
    opened = BatchIntake(database, BatchReleaser(database, celery, records), HASH_SECRET, timeout_s=timeout_s)
    yield opened
    opened.close()
    celery.close()


@pytest.fixture
def intake(database: Database, records: InDoubtRecords, environment: dict[str, str]) -> Iterator[BatchIntake]:
    yield from make_intake(database, records, environment, 30)


@pytest.fixture
def hasty_intake(database: Database, records: InDoubtRecords, environment: dict[str, str]) -> Iterator[BatchIntake]:
    yield from make_intake(database, records, environment, 0)


def accept(intake: BatchIntake, payer: Account) -> object:
    identity = Identity(payer.business.id, payer.api_key_id)
    return asyncio.run(intake.accept(identity, BODY, FileFormat.CSV, None))


def count_everything(database: Database) -> tuple[int, int, int]:
    query = sa.text("""
        SELECT (SELECT count(*) FROM payout_batches), (SELECT count(*) FROM payout_batch_items),
            (SELECT sum(reserved_balance) FROM businesses)
    """)
    with database.transaction() as connection:
        batches, items, reserved = connection.execute(query).one()
    return batches, items, int(reserved)


def test_batch_is_accepted_with_its_rows_and_its_money(database: Database, intake: BatchIntake, payer: Account) -> None:
    accept(intake, payer)
    assert count_everything(database) == (1, 2, 3)
    assert verify_books(database).balanced


def test_what_takes_too_long_is_never_accepted(database: Database, hasty_intake: BatchIntake, payer: Account) -> None:
    with pytest.raises(TimeoutError):
        accept(hasty_intake, payer)
    assert count_everything(database) == (0, 0, 0)


def test_what_breaks_while_it_is_accepted_leaves_no_trace(
    database: Database, intake: BatchIntake, payer: Account
) -> None:
    run_sql(database, "ALTER TABLE payout_batches ADD CONSTRAINT broken CHECK (total > 2)")
    with pytest.raises(sa.exc.IntegrityError):
        accept(intake, payer)
    assert count_everything(database) == (0, 0, 0)


def test_batch_whose_commit_broke_is_looked_up_before_the_answer(
    database: Database, intake: BatchIntake, payer: Account
) -> None:
    # The session ends itself when it commits: the commit is not carried out, and the client is told of a broken
    # connection, as after one that was.
    run_sql(
        database,
        """
        CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$
        """,
    )
    run_sql(
        database,
        """
        CREATE CONSTRAINT TRIGGER leave AFTER INSERT ON payout_batches DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION leave()
        """,
    )
    with pytest.raises(sa.exc.OperationalError):
        accept(intake, payer)
    assert count_everything(database) == (0, 0, 0)
    run_sql(database, "DROP TRIGGER leave ON payout_batches")
    accept(intake, payer)
    assert count_everything(database) == (1, 2, 3)


def test_uploads_at_once_are_bounded(intake: BatchIntake) -> None:
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(intake.enter())
        with pytest.raises(TooManyWaitingError), intake.enter():
            pass
    with intake.enter():
        pass
