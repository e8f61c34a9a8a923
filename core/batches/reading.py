"""Reading payout batches: one, a list, their rows, and what is not finished."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.batches.payout_batch import BatchStatus, PayoutBatch, RowOutcome
from core.database.tables import businesses, payout_batch_already_paid, payout_batch_items, payout_batches


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
    """A row of a batch, and what became of it; `transaction_id` is the history's, once it is allocated.

    `position` counts in the file. Of a row that was already paid, `transaction_id` is the earlier payment's.
    """

    business_id: UUID
    position: int
    transaction_id: UUID
    email: str
    amount: int
    reference: str | None
    outcome: RowOutcome


BATCH_COLUMNS = [column for column in payout_batches.c if column.name not in {"idempotency_key", "request_digest"}]


# The earlier payment may be a row of a batch that was not paid yet, and was cancelled later.
_ALREADY_PAID = sa.text("""
    SELECT row, payment_id, email, amount, reference,
        EXISTS (
            SELECT FROM payment_references AS named
            JOIN payout_batches AS batch ON batch.business_id = named.business_id AND batch.id = named.batch_id
            WHERE named.business_id = rows.business_id AND named.reference = rows.reference
                AND named.payment_id = rows.payment_id AND batch.status = 'cancelled'
            OFFSET 0
        ) AND NOT EXISTS (
            SELECT FROM payout_transactions AS paid
            WHERE paid.business_id = rows.business_id AND paid.id = rows.payment_id
            OFFSET 0
        )
    FROM payout_batch_already_paid AS rows
    WHERE business_id = :business_id AND batch_id = :batch_id AND row >= :first
    ORDER BY row
    LIMIT :limit
""")

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
    first = 0 if after is None else after + 1
    skipped = _list_already_paid(connection, batch, first, limit) if batch.already_paid else {}
    skipped_before = _count_already_paid(connection, batch, first) if batch.already_paid else 0
    rest = RowOutcome.CANCELLED if batch.status is BatchStatus.CANCELLED else RowOutcome.PENDING
    paid_positions = batch.processed - batch.already_paid
    items = payout_batch_items.c
    query = (
        sa.select(items.position, items.id, items.email, items.amount, items.reference)
        .where(
            items.business_id == batch.business_id,
            items.batch_id == batch.id,
            # Rows to be paid are numbered without those that were already paid.
            items.position >= first - skipped_before,
        )
        .order_by(items.position)
        .limit(limit)
    )
    others = connection.execute(query)
    results: list[BatchResult] = []
    while len(results) < limit:
        row = first + len(results)
        if row in skipped:
            results.append(skipped[row])
            continue
        item = others.fetchone()
        if item is None:
            break
        outcome = RowOutcome.ALLOCATED if item.position < paid_positions else rest
        results.append(BatchResult(batch.business_id, row, item.id, item.email, item.amount, item.reference, outcome))
    others.close()
    return results


def _count_already_paid(connection: Connection, batch: PayoutBatch, end: int) -> int:
    """Return how many of the rows before `end` were already paid."""
    rows = payout_batch_already_paid.c
    is_before = (rows.business_id == batch.business_id) & (rows.batch_id == batch.id) & (rows.row < end)
    return connection.execute(sa.select(sa.func.count()).where(is_before)).scalar_one()


def _list_already_paid(connection: Connection, batch: PayoutBatch, first: int, limit: int) -> dict[int, BatchResult]:
    """Return by row, from `first` on, those that were already paid."""
    key = {"business_id": batch.business_id, "batch_id": batch.id, "first": first, "limit": limit}
    return {
        row: BatchResult(
            batch.business_id,
            row,
            payment_id,
            email,
            amount,
            reference,
            RowOutcome.CANCELLED if was_cancelled else RowOutcome.ALREADY_PAID,
        )
        for row, payment_id, email, amount, reference, was_cancelled in connection.execute(_ALREADY_PAID, key)
    }


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
    # The tables count the rows that are to be paid; to people the others are rows too, and done from the start.
    values["total"] += values["already_paid"]
    values["processed"] += values["already_paid"]
    return PayoutBatch(**values | {"status": BatchStatus(values["status"])})
