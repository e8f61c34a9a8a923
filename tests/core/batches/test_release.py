"""Nothing but its release lets a payout batch be paid, and what is cancelled before that never is."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from core.batches import acceptance, release
from core.batches.acceptance import Accepted, ReferencesUndecidedError, Sorting
from core.batches.payout_batch import BatchRow, BatchStatus
from core.database.connection import Database
from core.ids import new_id
from core.messages import Outcome
from tests.core.batch_builders import (
    accept,
    accept_unreleased,
    cancel,
    cancel_unreleased,
    find_stalled,
    make_rows,
    pay_all,
    pay_chunk,
    read_balances,
    read_progress,
    release_batch,
    submission_of,
    try_to_accept,
)
from tests.core.builders import HASH_SECRET, allocate, allocation_of, run_sql, wait_until_blocked
from tests.servers import Account, open_account, verify_books


def test_batch_is_not_paid_before_it_is_released(database: Database, payer: Account) -> None:
    batch = accept_unreleased(database, payer, make_rows(1, 2, 4))
    assert pay_chunk(database, batch, 0) is None
    assert read_progress(database, batch) == (BatchStatus.QUEUED, 0, 0)
    assert find_stalled(database, payer) == []


def test_released_batch_is_paid(database: Database, payer: Account) -> None:
    batch = accept_unreleased(database, payer, make_rows(1, 2, 4))
    release_batch(database, batch)
    assert find_stalled(database, payer) == [(batch.id, 0)]
    pay_all(database, batch)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 3, 7)


def test_batch_is_released_once(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1))
    assert release_batch(database, batch) == batch


def test_what_was_never_released_is_cancelled_with_its_money_given_back(database: Database, payer: Account) -> None:
    before = read_balances(database, payer)
    batch = accept_unreleased(database, payer, make_rows(1, 2, 4))
    cancelled = cancel_unreleased(database, batch)
    assert cancelled is not None
    assert cancelled.status is BatchStatus.CANCELLED
    assert read_balances(database, payer) == before
    assert release_batch(database, batch) is None
    assert pay_chunk(database, batch, 0) is None
    assert verify_books(database).balanced


def test_released_batch_is_not_cancelled_for_want_of_a_release(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4))
    assert cancel_unreleased(database, batch) is None
    pay_all(database, batch)
    assert cancel_unreleased(database, batch) is None
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 3, 7)


def test_batch_that_was_cancelled_by_hand_before_its_release_is_not_released(
    database: Database, payer: Account
) -> None:
    batch = accept_unreleased(database, payer, make_rows(1, 2, 4))
    cancel(database, batch)
    assert release_batch(database, batch) is None


def test_cancelling_a_batch_that_does_not_exist_does_nothing(database: Database, payer: Account) -> None:
    with database.transaction() as connection:
        assert release.cancel_unreleased(connection, payer.business.id, new_id()) is None
        assert release.release(connection, payer.business.id, new_id()) is None


def test_key_of_a_batch_that_was_answered_500_is_free_again(database: Database, payer: Account) -> None:
    rows = make_rows(1, 2, 4)
    cancel_unreleased(database, accept_unreleased(database, payer, rows, "key"))
    again = try_to_accept(database, payer, rows, "key")
    assert isinstance(again, Accepted)
    assert not again.is_replay


def test_only_what_is_old_enough_counts_as_abandoned(database: Database, payer: Account) -> None:
    young, old = (accept_unreleased(database, payer, make_rows(1)) for _ in range(2))
    accept(database, payer, make_rows(1))
    cancel_unreleased(database, accept_unreleased(database, payer, make_rows(1)))
    run_sql(
        database,
        "UPDATE payout_batches SET created_at = now() - interval '1 hour' WHERE business_id = :owner AND id <> :id",
        owner=payer.business.id,
        id=young.id,
    )
    with database.transaction() as connection:
        abandoned = release.list_unreleased(connection, 300)
    assert [batch.id for batch in abandoned if batch.business_id == payer.business.id] == [old.id]


def test_batch_that_a_process_of_the_release_before_accepts_is_released(database: Database, payer: Account) -> None:
    """Its INSERT names no `released_at`."""
    insert = """
        INSERT INTO payout_batches (business_id, id, status, total, amount, request_digest)
        VALUES (:business_id, :id, 'queued', 1, 1, '')
        RETURNING released_at IS NOT NULL
    """
    with database.transaction() as connection:
        key = {"business_id": payer.business.id, "id": new_id()}
        assert connection.execute(sa.text(insert), key).scalar_one()
        connection.rollback()


def test_cancelling_waits_for_the_transaction_that_accepts(shared_database: Database) -> None:
    payer = open_account(shared_database)
    before = read_balances(shared_database, payer)
    submission, batch_id = submission_of(payer, make_rows(1, 2, 4)), new_id()

    def refuse() -> bool:
        with shared_database.transaction() as connection:
            return release.cancel_unreleased(connection, payer.business.id, batch_id) is not None

    with ThreadPoolExecutor() as threads:
        with shared_database.transaction() as connection:
            sorting = acceptance.sort_rows(connection, submission)
            assert isinstance(sorting, Sorting)
            acceptance.load_rows(connection, HASH_SECRET, submission, batch_id, sorting)
            assert not isinstance(acceptance.accept(connection, submission, batch_id, sorting), Outcome)
            refusing = threads.submit(refuse)
            wait_until_blocked(shared_database)
        assert refusing.result()
    assert read_balances(shared_database, payer) == before


def test_reference_of_a_batch_that_may_be_cancelled_is_answered_to_nobody(database: Database, payer: Account) -> None:
    rows = [BatchRow("ann@example.com", 100, "march")]
    batch = accept_unreleased(database, payer, rows)
    call = allocation_of(payer, "ann@example.com", 100, reference="march")
    assert allocate(database, call) == [Outcome.FAILED]
    with pytest.raises(ReferencesUndecidedError):
        try_to_accept(database, payer, rows)
    cancel_unreleased(database, batch)
    assert allocate(database, call) == [Outcome.ALLOCATED]


def test_reference_of_a_released_batch_replays(database: Database, payer: Account) -> None:
    accept(database, payer, [BatchRow("ann@example.com", 100, "march")])
    call = allocation_of(payer, "ann@example.com", 100, reference="march")
    assert allocate(database, call) == [Outcome.REPLAYED]
