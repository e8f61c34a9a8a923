"""Accepting a payout batch: the transaction that loads its rows also moves its total from `payout_balance` to
`reserved_balance`.

Each function runs inside the caller's transaction.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from core.batches.payout_batch import BatchRow, BatchStatus, PayoutBatch
from core.batches.reading import BATCH_COLUMNS, find_batch, make_batch
from core.credentials import digest_of, payout_hash
from core.database.connection import driver_of
from core.database.tables import businesses, payout_batches
from core.ids import new_id
from core.messages import Outcome
from core.parties.api_keys import find_standing
from core.parties.businesses import lock_business

_row_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Accepted:
    """A batch that is funded; `is_replay` where an earlier call with the same idempotency key did it."""

    batch: PayoutBatch
    is_replay: bool


@dataclass(frozen=True, slots=True)
class Submission:
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
    ) -> "Submission":
        """Make a submission; its digest tells whether another one with the same key is the same."""
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


def find_obstacle(connection: Connection, submission: Submission) -> Accepted | Outcome | None:
    """Tell without locks what would keep a submission from being accepted, so that no rows are loaded in vain."""
    # Before the look for a replay: what the same submission, sent twice at once, took meanwhile, it was accepted with.
    query = sa.select(businesses.c.payout_balance).where(businesses.c.id == submission.business_id)
    payout_balance = connection.execute(query).scalar_one_or_none() or 0
    standing = _find_standing(connection, submission)
    if standing is Outcome.UNAUTHORIZED:
        return standing
    replay = _find_replay(connection, submission)
    if replay is not None or standing is not None:
        return replay or standing
    return None if payout_balance >= submission.amount_cents else Outcome.INSUFFICIENT_BALANCE


def load_rows(connection: Connection, hash_secret: bytes, submission: Submission, batch_id: UUID) -> None:
    """Write the rows of a batch that is not accepted yet: nobody waits, whatever time it takes."""
    driver = driver_of(connection)
    hashes: dict[str, bytes] = {}
    with driver.cursor() as cursor, cursor.copy(_COPY_ROWS) as copy:
        copy.set_types(_ROW_TYPES)
        for position, row in enumerate(submission.rows):
            digest = hashes.get(row.email)
            if digest is None:
                digest = hashes[row.email] = digest_of(payout_hash(hash_secret, submission.business_id, row.email))
            copy.write_row(
                (
                    submission.business_id,
                    batch_id,
                    position,
                    new_id(),
                    row.email,
                    digest,
                    row.amount_cents,
                    row.reference,
                )
            )


def accept(connection: Connection, submission: Submission, batch_id: UUID) -> Accepted | Outcome:
    """Reserve the money for a batch whose rows were loaded in the same transaction; it is not released yet.

    Anything but a new batch is for the caller to roll back, rows and all.
    """
    business = lock_business(connection, submission.business_id)
    standing = _find_standing(connection, submission)
    if standing is Outcome.UNAUTHORIZED:
        return standing
    replay = _find_replay(connection, submission)
    if replay is not None or standing is not None:
        return replay or standing or Outcome.UNAUTHORIZED
    amount = submission.amount_cents
    if business.payout_balance < amount:
        return Outcome.INSUFFICIENT_BALANCE
    connection.execute(
        businesses.update()
        .where(businesses.c.id == submission.business_id)
        .values(
            payout_balance=businesses.c.payout_balance - amount, reserved_balance=businesses.c.reserved_balance + amount
        )
    )
    connection.execute(
        payout_batches.insert().values(
            business_id=submission.business_id,
            id=batch_id,
            status=BatchStatus.QUEUED,
            total=len(submission.rows),
            amount=amount,
            idempotency_key=submission.idempotency_key,
            request_digest=submission.digest,
            released_at=None,
        )
    )
    created = find_batch(connection, submission.business_id, batch_id)
    assert created is not None  # noqa: S101 (it was inserted just now)
    return Accepted(created, is_replay=False)


def _find_standing(connection: Connection, submission: Submission) -> Outcome | None:
    if submission.api_key_id is not None:
        return find_standing(connection, submission.business_id, submission.api_key_id)
    query = sa.select(businesses.c.payouts_enabled).where(businesses.c.id == submission.business_id)
    return None if connection.execute(query).scalar_one() else Outcome.PAYOUTS_DISABLED


def _find_replay(connection: Connection, submission: Submission) -> Accepted | Outcome | None:
    if submission.idempotency_key is None:
        return None
    key = {"business_id": submission.business_id, "idempotency_key": submission.idempotency_key}
    query = sa.select(*BATCH_COLUMNS, payout_batches.c.request_digest).where(
        payout_batches.c.business_id == submission.business_id,
        payout_batches.c.idempotency_key == submission.idempotency_key,
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return Outcome.IDEMPOTENCY_KEY_REUSED if connection.execute(_KEY_HAS_PAID, key).scalar_one() else None
    if bytes(row.request_digest) != submission.digest:
        return Outcome.IDEMPOTENCY_KEY_REUSED
    return Accepted(make_batch(row), is_replay=True)
