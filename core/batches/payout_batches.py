"""Payout batches: a file's worth of allocations, funded when accepted, then worked off a chunk at a time.

`payout_balance` is moved to `reserved_balance` in the transaction that accepts the rows. Rows are paid in their order,
so that `processed` alone tells which were: a chunk that is tried again, by whomever, goes on where the last commit
ended. Each function runs inside the caller's transaction.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from core.credentials import digest_of, payout_hash
from core.database.connection import driver_of
from core.database.tables import businesses, payout_batch_items, payout_batches
from core.errors import UserError
from core.ids import new_id
from core.messages import Outcome
from core.parties.api_keys import find_standing
from core.parties.businesses import lock_business

ROWS_MAX = 100_000
BODY_MAX_BYTES = 32 * 2**20
"""What one payout batch's request may be."""


class PayoutBatchError(UserError):
    """Something asked of a payout batch cannot be done; the text says what, for people."""


class BatchStatus(StrEnum):
    """How far a payout batch is. While payouts are disabled it stays as it is."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class RowOutcome(StrEnum):
    """What became of a row."""

    PENDING = "pending"
    ALLOCATED = "allocated"
    CANCELLED = "cancelled"
    """The batch was cancelled before the row's turn; its money went back to the payout balance."""


class BatchRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row as it is accepted: normalised e-mail, amount in cents, and the business's own reference."""

    email: str
    amount_cents: int
    reference: str | None = None


_row_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class PayoutBatch:
    """A payout batch; amounts in cents. The first `processed` of its `total` rows are paid."""

    id: UUID
    business_id: UUID
    status: BatchStatus
    total: int
    amount: int
    processed: int
    allocated_amount: int
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None


class Chunk(NamedTuple):
    """What one transaction paid of a batch: how many rows, and where to go on; None where nothing is to be done."""

    rows: int
    next_first: int | None


@dataclass(frozen=True, slots=True)
class OpenBatches:
    """The payout batches that are not finished.

    `idle_s` is how long ago somebody worked on the one that waits longest, of those that may be paid.
    """

    count_by_status: dict[BatchStatus, int]
    rows: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """A batch that is funded; `is_replay` where an earlier call with the same idempotency key did it."""

    batch: PayoutBatch
    is_replay: bool


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


@dataclass(frozen=True, slots=True)
class Offer:
    """What a business hands in: rows that were checked, and the idempotency key that came with them.

    By a member, whose role the caller has checked, it comes without an API key.
    """

    business_id: UUID
    api_key_id: UUID | None
    rows: Sequence[BatchRow]
    idempotency_key: str | None
    digest: bytes

    @classmethod
    def of(
        cls, business_id: UUID, api_key_id: UUID | None, rows: Sequence[BatchRow], idempotency_key: str | None
    ) -> "Offer":
        """Make an offer; its digest tells whether another one with the same key is the same."""
        digest = hashlib.sha256()
        for row in rows:  # all at once would take as much memory again
            digest.update(_row_encoder.encode(row))
        return cls(business_id, api_key_id, rows, idempotency_key, digest.digest())

    @property
    def amount_cents(self) -> int:
        """All amounts together."""
        return sum(row.amount_cents for row in self.rows)


_COPY_ROWS = """
    COPY payout_batch_items (business_id, batch_id, position, id, email, hash_digest, amount, reference) FROM STDIN
"""
_ROW_TYPES = ["uuid", "uuid", "int4", "uuid", "text", "bytea", "int8", "text"]

_COLUMNS = [column for column in payout_batches.c if column.name not in {"idempotency_key", "request_digest"}]

# The row's lock keeps two workers from paying the same chunk; the business's comes first, as everywhere.
_LOCK_BATCH = """
    SELECT status, total, processed FROM payout_batches
    WHERE business_id = %(business_id)s AND id = %(batch_id)s
    FOR UPDATE
"""

# Credits, history and the reservation's use are made of the same rows, so that none can be written without the others.
_PAY = """
    WITH item AS MATERIALIZED (
        SELECT id, email, hash_digest, amount,
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
            business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, batch_id
        )
        SELECT %(business_id)s, item.id, 'allocation', credited.id, amount, %(payout_balance)s,
            balance - later_credits, %(batch_id)s
        FROM item
        JOIN credited USING (email)
        RETURNING amount
    ), debit AS (
        SELECT count(*) AS rows, sum(amount) AS amount FROM written
    ), business AS (
        UPDATE businesses SET reserved_balance = reserved_balance - debit.amount
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


_OPEN = sa.text("""
    SELECT status, count(*), sum(total - processed),
        COALESCE(max(extract(epoch FROM now() - payout_batches.updated_at)) FILTER (WHERE payouts_enabled), 0)
    FROM payout_batches
    JOIN businesses ON businesses.id = payout_batches.business_id
    WHERE finished_at IS NULL
    GROUP BY status
""")

# A key belongs to the business, whatever it was used for. A reversal frees it.
_KEY_HAS_PAID = sa.text("""
    SELECT EXISTS (
        SELECT FROM payout_transactions AS allocation
        WHERE business_id = :business_id AND idempotency_key = :idempotency_key
            AND NOT EXISTS (
                SELECT FROM payout_transactions AS reversal
                WHERE reversal.business_id = allocation.business_id AND reversal.reversed_id = allocation.id
            )
    )
""")


def find_obstacle(connection: Connection, offer: Offer) -> Accepted | Outcome | None:
    """Tell without locks what would keep an offer from being accepted, so that no rows are loaded in vain."""
    # Before the look for a replay: what the same offer, sent twice at once, took meanwhile, it was accepted with.
    query = sa.select(businesses.c.payout_balance).where(businesses.c.id == offer.business_id)
    payout_balance = connection.execute(query).scalar_one_or_none() or 0
    standing = _find_standing(connection, offer)
    if standing is Outcome.UNAUTHORIZED:
        return standing
    replay = _find_replay(connection, offer)
    if replay is not None or standing is not None:
        return replay or standing
    return None if payout_balance >= offer.amount_cents else Outcome.INSUFFICIENT_BALANCE


def load_rows(connection: Connection, hash_secret: bytes, offer: Offer, batch_id: UUID) -> None:
    """Write the rows of a batch that is not accepted yet: nobody waits, whatever time it takes."""
    driver = driver_of(connection)
    hashes: dict[str, bytes] = {}
    with driver.cursor() as cursor, cursor.copy(_COPY_ROWS) as copy:
        copy.set_types(_ROW_TYPES)
        for position, row in enumerate(offer.rows):
            digest = hashes.get(row.email)
            if digest is None:
                digest = hashes[row.email] = digest_of(payout_hash(hash_secret, offer.business_id, row.email))
            copy.write_row(
                (
                    offer.business_id,
                    batch_id,
                    position,
                    new_id(),
                    row.email,
                    digest,
                    row.amount_cents,
                    row.reference,
                )
            )


def accept(connection: Connection, offer: Offer, batch_id: UUID) -> Accepted | Outcome:
    """Reserve the money for a batch whose rows were loaded in the same transaction.

    Anything but a new batch is for the caller to roll back, rows and all.
    """
    business = lock_business(connection, offer.business_id)
    standing = _find_standing(connection, offer)
    if standing is Outcome.UNAUTHORIZED:
        return standing
    replay = _find_replay(connection, offer)
    if replay is not None or standing is not None:
        return replay or standing or Outcome.UNAUTHORIZED
    amount = offer.amount_cents
    if business.payout_balance < amount:
        return Outcome.INSUFFICIENT_BALANCE
    connection.execute(
        businesses.update()
        .where(businesses.c.id == offer.business_id)
        .values(
            payout_balance=businesses.c.payout_balance - amount, reserved_balance=businesses.c.reserved_balance + amount
        )
    )
    connection.execute(
        payout_batches.insert().values(
            business_id=offer.business_id,
            id=batch_id,
            status=BatchStatus.QUEUED,
            total=len(offer.rows),
            amount=amount,
            idempotency_key=offer.idempotency_key,
            request_digest=offer.digest,
        )
    )
    created = find_batch(connection, offer.business_id, batch_id)
    assert created is not None  # noqa: S101 (it was inserted just now)
    return Accepted(created, is_replay=False)


def pay_chunk(connection: Connection, business_id: UUID, batch_id: UUID, first: int, rows_max: int) -> Chunk:
    """Pay the next rows of a batch, from row `first` on; return how many, and where to go on.

    Nothing is done where another worker has been here, the batch is finished, or payouts are disabled: then the
    rest waits until they are enabled.
    """
    driver = driver_of(connection)
    key = {"business_id": business_id, "batch_id": batch_id}
    locked = driver.execute(
        "SELECT payout_balance, payouts_enabled FROM businesses WHERE id = %(business_id)s FOR NO KEY UPDATE", key
    )
    found = driver.execute(_LOCK_BATCH, key)
    business, batch = locked.fetchone(), found.fetchone()
    if business is None or batch is None:
        return Chunk(0, None)
    payout_balance, payouts_enabled = business
    status, total, processed = batch
    if not payouts_enabled or processed != first or status not in {BatchStatus.QUEUED, BatchStatus.PROCESSING}:
        return Chunk(0, None)
    end = min(first + rows_max, total)
    # The planner takes freshly loaded rows for one, and would compare each row with each user.
    driver.execute("SET LOCAL enable_nestloop = off")
    driver.execute(_PAY, key | {"first": first, "end": end, "payout_balance": payout_balance})
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


def find_batch(connection: Connection, business_id: UUID, batch_id: UUID) -> PayoutBatch | None:
    """Return one batch of a business."""
    query = sa.select(*_COLUMNS).where(payout_batches.c.business_id == business_id, payout_batches.c.id == batch_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else _batch(row)


def find_batch_anywhere(connection: Connection, batch_id: UUID) -> PayoutBatch | None:
    """Return a batch by its id alone, for administrators."""
    row = connection.execute(sa.select(*_COLUMNS).where(payout_batches.c.id == batch_id)).one_or_none()
    return None if row is None else _batch(row)


def list_batches(
    connection: Connection, business_id: UUID, *, limit: int, behind: UUID | None = None
) -> list[PayoutBatch]:
    """Return up to `limit` batches of a business, newest first, from the start or from behind a batch's id."""
    query = sa.select(*_COLUMNS).where(payout_batches.c.business_id == business_id)
    if behind is not None:
        query = query.where(payout_batches.c.id < behind)
    return [_batch(row) for row in connection.execute(query.order_by(payout_batches.c.id.desc()).limit(limit))]


def list_results(
    connection: Connection, batch: PayoutBatch, *, limit: int, behind: int | None = None
) -> list[BatchResult]:
    """Return up to `limit` rows of a batch in their order, from the first or from behind a position."""
    rest = RowOutcome.CANCELLED if batch.status is BatchStatus.CANCELLED else RowOutcome.PENDING
    first = 0 if behind is None else behind + 1
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


def _find_standing(connection: Connection, offer: Offer) -> Outcome | None:
    if offer.api_key_id is not None:
        return find_standing(connection, offer.business_id, offer.api_key_id)
    query = sa.select(businesses.c.payouts_enabled).where(businesses.c.id == offer.business_id)
    return None if connection.execute(query).scalar_one() else Outcome.PAYOUTS_DISABLED


def _find_replay(connection: Connection, offer: Offer) -> Accepted | Outcome | None:
    if offer.idempotency_key is None:
        return None
    key = {"business_id": offer.business_id, "idempotency_key": offer.idempotency_key}
    query = sa.select(*_COLUMNS, payout_batches.c.request_digest).where(
        payout_batches.c.business_id == offer.business_id, payout_batches.c.idempotency_key == offer.idempotency_key
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return Outcome.IDEMPOTENCY_KEY_REUSED if connection.execute(_KEY_HAS_PAID, key).scalar_one() else None
    if bytes(row.request_digest) != offer.digest:
        return Outcome.IDEMPOTENCY_KEY_REUSED
    return Accepted(_batch(row), is_replay=True)


def _batch(row: Any) -> PayoutBatch:
    values = row._asdict()
    values.pop("request_digest", None)
    return PayoutBatch(**values | {"status": BatchStatus(values["status"])})
