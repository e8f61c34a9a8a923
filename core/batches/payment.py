"""Paying an accepted payout batch, a chunk at a time, or giving the rest of its reservation back.

Rows are paid in their order, so that `processed` alone tells which were: a chunk that is tried again, by any worker,
goes on where the last commit ended. Each function runs inside the caller's transaction.
"""

from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.batches.payout_batch import BatchStatus, PayoutBatch, PayoutBatchError
from core.batches.reading import find_batch
from core.database.connection import driver_of
from core.database.tables import businesses, payout_batches
from core.database.waits import limited_wait
from core.parties.businesses import lock_business


class Chunk(NamedTuple):
    """What one transaction paid of a batch: how many rows, and where to go on; None where nothing is to be done."""

    rows: int
    next_first: int | None


# The row's lock keeps two workers from paying the same chunk; the business's comes first, as everywhere.
_LOCK_BATCH = """
    SELECT status, total, processed, released_at IS NOT NULL FROM payout_batches
    WHERE business_id = %(business_id)s AND id = %(batch_id)s
    FOR UPDATE
"""

# Credits, history and the reservation's use are made of the same rows, so that none can be written without the others.
_PAY = """
    WITH item AS MATERIALIZED (
        SELECT id, email, hash_digest, amount, reference,
            %(last_sequence)s::bigint + row_number() OVER (ORDER BY position) AS sequence,
            sum(amount) OVER (PARTITION BY email ORDER BY position DESC) - amount AS later_credits
        FROM payout_batch_items
        WHERE business_id = %(business_id)s AND batch_id = %(batch_id)s
            AND position >= %(first)s AND position < %(end)s
    ), credited AS (
        INSERT INTO payout_users AS existing (business_id, id, email, hash_digest, balance)
        SELECT %(business_id)s, uuidv7(), email, hash_digest, sum(amount)
        FROM item
        GROUP BY email, hash_digest
        ON CONFLICT (business_id, email) DO UPDATE
            SET balance = existing.balance + excluded.balance, updated_at = now()
        RETURNING email, id, balance
    ), written AS (
        INSERT INTO payout_transactions (
            business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, batch_id, sequence,
            reference
        )
        SELECT %(business_id)s, item.id, 'allocation', credited.id, amount, %(payout_balance)s,
            balance - later_credits, %(batch_id)s, sequence, reference
        FROM item
        JOIN credited USING (email)
        RETURNING amount
    ), debit AS (
        SELECT count(*) AS rows, sum(amount) AS amount FROM written
    ), business AS (
        UPDATE businesses
        SET reserved_balance = reserved_balance - debit.amount, last_sequence = last_sequence + debit.rows
        FROM debit
        WHERE businesses.id = %(business_id)s
    )
    UPDATE payout_batches
    SET processed = processed + debit.rows, allocated_amount = allocated_amount + debit.amount, updated_at = now(),
        status = CASE WHEN processed + debit.rows = total THEN 'completed' ELSE 'processing' END,
        finished_at = CASE WHEN processed + debit.rows = total THEN now() END
    FROM debit
    WHERE business_id = %(business_id)s AND payout_batches.id = %(batch_id)s
"""


def pay_chunk(
    connection: Connection, business_id: UUID, batch_id: UUID, first: int, rows_max: int, *, wait_s: float | None = None
) -> Chunk:
    """Pay the next rows of a batch, from row `first` on; return how many, and where to go on.

    Nothing is done where another worker has been here, the batch is finished or was not released yet, or payouts are
    disabled: then the rest waits until they are enabled. With `wait_s`, rows that another transaction holds are waited
    for that long.
    """
    driver = driver_of(connection)
    key = {"business_id": business_id, "batch_id": batch_id}
    with limited_wait(driver, wait_s):
        locked = driver.execute(
            "SELECT payout_balance, payouts_enabled, last_sequence FROM businesses WHERE id = %(business_id)s "
            "FOR NO KEY UPDATE",
            key,
        )
    found = driver.execute(_LOCK_BATCH, key)
    business, batch = locked.fetchone(), found.fetchone()
    if business is None or batch is None:
        return Chunk(0, None)
    payout_balance, payouts_enabled, last_sequence = business
    status, total, processed, is_released = batch
    is_open = is_released and status in {BatchStatus.QUEUED, BatchStatus.PROCESSING}
    if not payouts_enabled or processed != first or not is_open:
        return Chunk(0, None)
    end = min(first + rows_max, total)
    # The planner takes freshly loaded rows for one, and would compare each row with each user.
    driver.execute("SET LOCAL enable_nestloop = off")
    chunk = {"first": first, "end": end, "payout_balance": payout_balance, "last_sequence": last_sequence}
    driver.execute(_PAY, key | chunk)
    return Chunk(end - first, end if end < total else None)


def cancel(connection: Connection, business_id: UUID, batch_id: UUID) -> PayoutBatch:
    """Give the reservation of the rows that are not paid yet back to the payout balance.

    Raises:
        PayoutBatchError: there is no such batch, or it is finished.

    """
    lock_business(connection, business_id)
    batch = find_batch(connection, business_id, batch_id)
    if batch is None:
        text = "There is no such payout batch."
        raise PayoutBatchError(text)
    if batch.finished_at is not None:
        text = f"The payout batch is {batch.status} already."
        raise PayoutBatchError(text)
    rest = batch.amount - batch.allocated_amount
    connection.execute(
        businesses.update()
        .where(businesses.c.id == business_id)
        .values(
            payout_balance=businesses.c.payout_balance + rest, reserved_balance=businesses.c.reserved_balance - rest
        )
    )
    connection.execute(
        payout_batches.update()
        .where(payout_batches.c.business_id == business_id, payout_batches.c.id == batch_id)
        .values(status=BatchStatus.CANCELLED, updated_at=sa.func.now(), finished_at=sa.func.now())
    )
    cancelled = find_batch(connection, business_id, batch_id)
    return cancelled or batch
