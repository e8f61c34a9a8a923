"""Reading payout batches: one, a list, their rows, and what is not finished."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.batches.payout_batch import BatchStatus, PayoutBatch, RowOutcome
from core.database.tables import businesses, payout_batch_items, payout_batches


@dataclass(frozen=True, slots=True)
class OpenBatches:
    """The payout batches that are not finished.

    `idle_s` is how long ago somebody worked on the one that waits longest, of those that may be paid.
    """

    count_by_status: dict[BatchStatus, int]
    rows: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A row of a batch, and what became of it; `transaction_id` is the history's, once it is allocated."""

    business_id: UUID
    position: int
    transaction_id: UUID
    email: str
    amount: int
    reference: str | None
    outcome: RowOutcome


BATCH_COLUMNS = [column for column in payout_batches.c if column.name not in {"idempotency_key", "request_digest"}]


_OPEN = sa.text("""
    SELECT status, count(*), sum(total - processed),
        COALESCE(max(extract(epoch FROM now() - payout_batches.updated_at)) FILTER (WHERE payouts_enabled), 0)
    FROM payout_batches
    JOIN businesses ON businesses.id = payout_batches.business_id
    WHERE finished_at IS NULL
    GROUP BY status
""")


def find_batch(connection: Connection, business_id: UUID, batch_id: UUID) -> PayoutBatch | None:
    """Return one batch of a business."""
    query = sa.select(*BATCH_COLUMNS).where(
        payout_batches.c.business_id == business_id, payout_batches.c.id == batch_id
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else make_batch(row)


def find_batch_anywhere(connection: Connection, batch_id: UUID) -> PayoutBatch | None:
    """Return a batch by its id alone, for administrators."""
    row = connection.execute(sa.select(*BATCH_COLUMNS).where(payout_batches.c.id == batch_id)).one_or_none()
    return None if row is None else make_batch(row)


def list_batches(
    connection: Connection, business_id: UUID, *, limit: int, after: UUID | None = None
) -> list[PayoutBatch]:
    """Return up to `limit` batches of a business, newest first, from the start or after a batch's id."""
    query = sa.select(*BATCH_COLUMNS).where(payout_batches.c.business_id == business_id)
    if after is not None:
        query = query.where(payout_batches.c.id < after)
    return [make_batch(row) for row in connection.execute(query.order_by(payout_batches.c.id.desc()).limit(limit))]


def list_results(
    connection: Connection, batch: PayoutBatch, *, limit: int, after: int | None = None
) -> list[BatchResult]:
    """Return up to `limit` rows of a batch in their order, from the first or after a position."""
    rest = RowOutcome.CANCELLED if batch.status is BatchStatus.CANCELLED else RowOutcome.PENDING
    first = 0 if after is None else after + 1
    items = payout_batch_items.c
    query = (
        sa.select(items.business_id, items.position, items.id, items.email, items.amount, items.reference)
        .where(items.business_id == batch.business_id, items.batch_id == batch.id, items.position >= first)
        .order_by(items.position)
        .limit(limit)
    )
    return [
        BatchResult(*row, outcome=RowOutcome.ALLOCATED if row.position < batch.processed else rest)
        for row in connection.execute(query)
    ]


def find_stalled(connection: Connection, idle_s: float) -> list[tuple[UUID, UUID, int]]:
    """Return (business id, batch id, first row to pay) of batches on which nobody has worked for a while."""
    query = (
        sa.select(payout_batches.c.business_id, payout_batches.c.id, payout_batches.c.processed)
        .join(businesses, businesses.c.id == payout_batches.c.business_id)
        .where(
            payout_batches.c.finished_at.is_(None),
            payout_batches.c.released_at.is_not(None),
            payout_batches.c.updated_at
            < sa.func.now() - sa.cast(sa.func.make_interval(0, 0, 0, 0, 0, 0, idle_s), sa.Interval),
            businesses.c.payouts_enabled,
        )
    )
    return [(row.business_id, row.id, row.processed) for row in connection.execute(query)]


def find_open(connection: Connection) -> OpenBatches:
    """Count what is not finished; an index has just that."""
    count_by_status = dict.fromkeys((BatchStatus.QUEUED, BatchStatus.PROCESSING), 0)
    rows, idle_s = 0, 0.0
    for status, count, status_rows, status_idle_s in connection.execute(_OPEN):
        count_by_status[BatchStatus(status)] = count
        rows += status_rows
        idle_s = max(idle_s, float(status_idle_s))
    return OpenBatches(count_by_status, rows, idle_s)


def make_batch(row: Any) -> PayoutBatch:
    """Make a batch of a row of its columns."""
    values = row._asdict()
    values.pop("request_digest", None)
    return PayoutBatch(**values | {"status": BatchStatus(values["status"])})
