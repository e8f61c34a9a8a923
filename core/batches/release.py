"""Releasing an accepted payout batch to the workers, or cancelling it before that.

Workers pay released batches alone. The process that takes a batch in releases it once it has seen its own commit.
Nothing but an answer of 202 releases a batch, so one whose caller was answered 500 is never paid. Each function runs
inside the caller's transaction.
"""

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.batches.payment import cancel
from core.batches.payout_batch import PayoutBatch
from core.batches.reading import BATCH_COLUMNS, find_batch, make_batch
from core.database.tables import payout_batches
from core.parties.businesses import lock_business


def release(connection: Connection, business_id: UUID, batch_id: UUID) -> PayoutBatch | None:
    """Let workers pay a batch; return it, or None where it was cancelled before or does not exist."""
    lock_business(connection, business_id)
    is_it = sa.and_(payout_batches.c.business_id == business_id, payout_batches.c.id == batch_id)
    connection.execute(
        payout_batches.update()
        .where(is_it, payout_batches.c.released_at.is_(None), payout_batches.c.finished_at.is_(None))
        .values(released_at=sa.func.now())
    )
    is_released = connection.execute(sa.select(payout_batches.c.released_at).where(is_it)).scalar_one_or_none()
    return find_batch(connection, business_id, batch_id) if is_released else None


def cancel_unreleased(connection: Connection, business_id: UUID, batch_id: UUID) -> PayoutBatch | None:
    """Cancel a batch that was never released, and free its idempotency key; return it, or None where nothing is done.

    Behind the business's lock, a transaction that was accepting it has ended: where there is none, there never will be.
    """
    lock_business(connection, business_id)
    batch = find_batch(connection, business_id, batch_id)
    if batch is None or batch.finished_at is not None or batch.released_at is not None:
        return None
    cancelled = cancel(connection, business_id, batch_id)
    connection.execute(
        payout_batches.update()
        .where(payout_batches.c.business_id == business_id, payout_batches.c.id == batch_id)
        .values(idempotency_key=None)
    )
    return cancelled


def list_unreleased(connection: Connection, age_s: float) -> list[PayoutBatch]:
    """Return the batches that are neither released nor finished some time after they were accepted."""
    query = sa.select(*BATCH_COLUMNS).where(
        payout_batches.c.finished_at.is_(None),
        payout_batches.c.released_at.is_(None),
        payout_batches.c.created_at
        < sa.func.now() - sa.cast(sa.func.make_interval(0, 0, 0, 0, 0, 0, age_s), sa.Interval),
    )
    return [make_batch(row) for row in connection.execute(query)]
