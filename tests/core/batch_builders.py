"""What tests of payout batches share: ways to hand them in and work them off, and what must hold at any moment."""

import time
from contextlib import suppress
from uuid import UUID

import sqlalchemy as sa

from core.batches import acceptance, payment, reading, release
from core.batches.acceptance import Accepted, ReferencesUndecidedError, Sorting, Submission
from core.batches.payout_batch import BatchRow, BatchStatus, PayoutBatch
from core.database.connection import Database
from core.ids import new_id
from core.parties.businesses import Business, get_business, lock_business, set_payouts_enabled
from tests.core.builders import HASH_SECRET
from tests.servers import Account, verify_books


class NotAcceptedError(Exception):
    """Rolls back, as the API does."""


def submission_of(account: Account, rows: list[BatchRow], key: str | None = None) -> Submission:
    return Submission.of(account.business.id, account.api_key_id, rows, key)


def make_rows(*amounts: int, emails: int = 3) -> list[BatchRow]:
    return [BatchRow(f"{number % emails}@example.com", amount) for number, amount in enumerate(amounts)]


def try_to_accept(
    database: Database, account: Account, rows: list[BatchRow], key: str | None = None
) -> acceptance.Answer:
    """Offer a batch as the API does; but for a new one, all is rolled back."""
    submission = submission_of(account, rows, key)
    answer: list[acceptance.Answer] = []
    try:
        with database.transaction() as connection:
            batch_id = new_id()
            # As the API does where it could not tell without: references behind the lock, money in `accept`.
            lock_business(connection, account.business.id)
            sorting = acceptance.sort_references(connection, submission)
            if not isinstance(sorting, Sorting):
                found = acceptance.sort_rows(connection, submission)
                assert not isinstance(found, Sorting)
                answer.append(found)
                raise NotAcceptedError
            acceptance.load_rows(connection, HASH_SECRET, submission, batch_id, sorting)
            answer.append(acceptance.accept(connection, submission, batch_id, sorting))
            if not isinstance(answer[0], Accepted) or answer[0].is_replay:
                raise NotAcceptedError
    except NotAcceptedError:
        pass
    return answer[0]


def accept(database: Database, account: Account, rows: list[BatchRow], key: str | None = None) -> PayoutBatch:
    """Accept a batch and release it, as the API does before it answers 202; wait for others with its references."""
    while True:
        with suppress(ReferencesUndecidedError):
            batch = accept_unreleased(database, account, rows, key)
            break
        time.sleep(0.01)
    if batch.finished_at is not None:  # all was paid already
        return batch
    released = release_batch(database, batch)
    assert released is not None
    return released


def release_batch(database: Database, batch: PayoutBatch) -> PayoutBatch | None:
    with database.transaction() as connection:
        return release.release(connection, batch.business_id, batch.id)


def cancel_unreleased(database: Database, batch: PayoutBatch) -> PayoutBatch | None:
    with database.transaction() as connection:
        return release.cancel_unreleased(connection, batch.business_id, batch.id)


def accept_unreleased(
    database: Database, account: Account, rows: list[BatchRow], key: str | None = None
) -> PayoutBatch:
    accepted = try_to_accept(database, account, rows, key)
    assert isinstance(accepted, Accepted), accepted
    assert not accepted.is_replay
    return accepted.batch


def pay_chunk(database: Database, batch: PayoutBatch, first: int, rows_max: int = 500) -> int | None:
    """Pay a chunk in a transaction of its own, as a worker does."""
    with database.pipeline() as connection:
        return payment.pay_chunk(connection, batch.business_id, batch.id, first, rows_max).next_first


def pay_all(database: Database, batch: PayoutBatch, first: int = 0, rows_max: int = 500) -> None:
    position: int | None = first
    while position is not None:
        position = pay_chunk(database, batch, position, rows_max)


def cancel(database: Database, batch: PayoutBatch) -> PayoutBatch:
    with database.transaction() as connection:
        return payment.cancel(connection, batch.business_id, batch.id)


def read_batch(database: Database, batch: PayoutBatch) -> PayoutBatch:
    with database.transaction() as connection:
        found = reading.find_batch(connection, batch.business_id, batch.id)
    assert found is not None
    return found


def read_business(database: Database, account: Account) -> Business:
    with database.transaction() as connection:
        return get_business(connection, account.business.id)


def read_balances(database: Database, account: Account) -> tuple[int, int]:
    """Return what is free and what is reserved, in cents."""
    business = read_business(database, account)
    return business.payout_balance, business.reserved_balance


def read_progress(database: Database, batch: PayoutBatch) -> tuple[BatchStatus, int, int]:
    """Return status, rows paid, and cents paid."""
    found = read_batch(database, batch)
    assert (found.finished_at is not None) == (found.status in {BatchStatus.COMPLETED, BatchStatus.CANCELLED})
    return found.status, found.processed, found.allocated_amount


def find_stalled(database: Database, *accounts: Account, idle_s: float = 0) -> list[tuple[UUID, int]]:
    """Return (batch id, first row to pay) of stalled batches of these businesses."""
    business_ids = {account.business.id for account in accounts}
    with database.transaction() as connection:
        stalled = reading.find_stalled(connection, idle_s)
    return [(batch_id, first) for business_id, batch_id, first in stalled if business_id in business_ids]


def switch_payouts(database: Database, account: Account, *, enabled: bool) -> None:
    with database.transaction() as connection:
        set_payouts_enabled(connection, account.business.id, enabled=enabled)


def count_items(database: Database, account: Account) -> int:
    query = sa.text("SELECT count(*) FROM payout_batch_items WHERE business_id = :id")
    with database.transaction() as connection:
        return int(connection.execute(query, {"id": account.business.id}).scalar_one())


_RULES = {
    "what is reserved is what unfinished batches have not paid": """
        SELECT id FROM businesses WHERE reserved_balance <> (
            SELECT COALESCE(sum(amount - allocated_amount), 0) FROM payout_batches
            WHERE business_id = businesses.id AND finished_at IS NULL
        )
    """,
    "what a batch has paid is in the history": """
        SELECT id FROM payout_batches WHERE (processed, allocated_amount) <> (
            SELECT count(*), COALESCE(sum(amount), 0) FROM payout_transactions AS history
            WHERE history.business_id = payout_batches.business_id AND batch_id = payout_batches.id
                AND type = 'allocation'
        )
    """,
    "a batch is as long and as large as its rows": """
        SELECT id FROM payout_batches WHERE (total, amount) <> (
            SELECT count(*), COALESCE(sum(amount), 0) FROM payout_batch_items AS item
            WHERE item.business_id = payout_batches.business_id AND batch_id = payout_batches.id
        )
    """,
    "rows belong to a batch": """
        SELECT item.id FROM payout_batch_items AS item
        LEFT JOIN payout_batches AS batch ON batch.business_id = item.business_id AND batch.id = item.batch_id
        WHERE batch.id IS NULL
    """,
    "the first rows are paid, to whom and as much as they say, and no others": """
        SELECT item.id FROM payout_batch_items AS item
        JOIN payout_batches AS batch ON batch.business_id = item.business_id AND batch.id = item.batch_id
        LEFT JOIN payout_transactions AS history ON history.business_id = item.business_id AND history.id = item.id
        LEFT JOIN payout_users AS payee
            ON payee.business_id = item.business_id AND payee.id = history.payout_user_id
        WHERE (history.id IS NOT NULL) <> (position < processed)
            OR history.id IS NOT NULL AND (history.amount, payee.email, history.batch_id, history.type)
                IS DISTINCT FROM (item.amount, item.email, item.batch_id, 'allocation')
    """,
    "nothing that was reserved is nobody's": """
        SELECT businesses.id FROM businesses
        WHERE payout_balance + reserved_balance + (
            SELECT COALESCE(sum(balance), 0) FROM payout_users WHERE business_id = businesses.id
        ) <> (
            SELECT COALESCE(sum(amount), 0) FROM payout_transactions
            WHERE business_id = businesses.id AND type = 'funding'
        )
    """,
}


def assert_books_balance(database: Database) -> None:
    """Check all that must hold at any moment, wherever each batch is."""
    with database.snapshot() as connection:
        for rule, query in _RULES.items():
            assert connection.execute(sa.text(query)).all() == [], rule
    assert verify_books(database).balanced
