"""Accepting a payout batch: the transaction that loads its rows also moves its total from `payout_balance` to
`reserved_balance`.

Each function runs inside the caller's transaction.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
import psycopg
import sqlalchemy as sa
from sqlalchemy import Connection

from core.batches.payout_batch import BatchRow, BatchStatus, PayoutBatch
from core.batches.reading import BATCH_COLUMNS, find_batch, make_batch
from core.credentials import digest_of, payout_hash
from core.database.arrays import integer_array, text_array
from core.database.connection import driver_of
from core.database.tables import businesses, payout_batches
from core.ids import new_id
from core.ledger.references import read_uses_of_one_business
from core.messages import Outcome
from core.parties.api_keys import find_standing
from core.parties.businesses import lock_business

_row_encoder = msgspec.msgpack.Encoder()


def digest_rows(rows: Sequence[BatchRow]) -> bytes:
    """Return the digest of a batch's rows, in whatever format they came."""
    digest = hashlib.sha256()
    for row in rows:  # all at once would take as much memory again
        digest.update(_row_encoder.encode(row))
    return digest.digest()


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
        return cls(business_id, api_key_id, rows, idempotency_key, digest_rows(rows))


@dataclass(frozen=True, slots=True)
class Sorting:
    """Which rows of a submission are paid already, and what the others come to."""

    amount_cents: int
    already_paid: Mapping[int, UUID] = field(default_factory=dict)
    """By row the payment with the same reference, e-mail and amount."""
    attempts: Mapping[str, int] = field(default_factory=dict)
    """By reference, of those that were used before and are free again, which attempt the next payment is."""


@dataclass(frozen=True, slots=True)
class ReferencesReused:
    """Rows whose references were used for another e-mail or amount; nothing is accepted."""

    rows: list[int]


class ReferencesUndecidedError(Exception):
    """A row has the reference of a batch whose caller was not answered yet: it may still be cancelled."""


class ReferencesTakenError(Exception):
    """A reference was used since the submission was sorted; it has to be sorted again, behind the business's lock."""


Answer = Accepted | Outcome | ReferencesReused
"""What a submission comes to."""

_COPY_ROWS = """
    COPY payout_batch_items (business_id, batch_id, position, id, email, hash_digest, amount, reference) FROM STDIN
"""
_ROW_TYPES = ["uuid", "uuid", "int4", "uuid", "text", "bytea", "int8", "text"]

_COPY_ALREADY_PAID = """
    COPY payout_batch_already_paid (business_id, batch_id, row, payment_id, email, amount, reference) FROM STDIN
"""
_ALREADY_PAID_TYPES = ["uuid", "uuid", "int4", "uuid", "text", "int8", "text"]

# In the order of the index, which is written faster so. The unique key refuses what was used since the look.
_RESERVE_REFERENCES = """
    INSERT INTO payment_references (business_id, reference, attempt, payment_id, email, amount, batch_id)
    SELECT business_id, reference, COALESCE(again.attempt, 0), id, email, amount, batch_id
    FROM payout_batch_items
    LEFT JOIN unnest(%(references)s::text[], %(attempts)s::smallint[]) AS again (reference, attempt) USING (reference)
    WHERE business_id = %(business_id)s AND batch_id = %(batch_id)s AND reference IS NOT NULL
    ORDER BY reference
"""

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


def sort_rows(connection: Connection, submission: Submission, *, is_money_looked_at: bool = True) -> Answer | Sorting:
    """Look references up, and tell without locks what would keep a submission from being accepted.

    So no rows are loaded in vain. Where the caller holds the business's lock, what is found stays true.

    Raises:
        ReferencesUndecidedError: it cannot be told yet.

    """
    # Before the look for a replay: what the same submission, sent twice at once, took meanwhile, it was accepted with.
    query = sa.select(businesses.c.payout_balance).where(businesses.c.id == submission.business_id)
    payout_balance = connection.execute(query).scalar_one_or_none() or 0
    standing = _find_standing(connection, submission)
    if standing is Outcome.UNAUTHORIZED:
        return standing
    replay = _find_replay(connection, submission)
    if replay is not None:
        return replay
    if standing is not None:
        return standing
    sorting = sort_references(connection, submission)
    if isinstance(sorting, ReferencesReused) or not is_money_looked_at:
        return sorting
    if payout_balance >= sorting.amount_cents:
        return sorting
    return Outcome.INSUFFICIENT_BALANCE


def sort_references(connection: Connection, submission: Submission) -> ReferencesReused | Sorting:
    """Find the rows whose references were used before."""
    rows = submission.rows
    row_by_reference = {row.reference: number for number, row in enumerate(rows) if row.reference is not None}
    amount_cents = sum(row.amount_cents for row in rows)
    if not row_by_reference:
        return Sorting(amount_cents)
    already_paid: dict[int, UUID] = {}
    attempts: dict[str, int] = {}
    reused: list[int] = []
    for reference, use in read_uses_of_one_business(connection, submission.business_id, list(row_by_reference)):
        number = row_by_reference[reference]
        row = rows[number]
        if use.is_reversed:
            attempts[reference] = use.attempt + 1
        elif use.is_undecided:
            raise ReferencesUndecidedError
        elif (use.email, use.amount_cents) == (row.email, row.amount_cents):
            already_paid[number] = use.allocation_id
            amount_cents -= row.amount_cents
        else:
            reused.append(number)
    return ReferencesReused(sorted(reused)) if reused else Sorting(amount_cents, already_paid, attempts)


def load_rows(
    connection: Connection, hash_secret: bytes, submission: Submission, batch_id: UUID, sorting: Sorting
) -> None:
    """Write the rows of a batch that is not accepted yet: nobody waits, whatever time it takes.

    Rows that are to be paid are numbered from 0, without those that are already paid.
    """
    driver = driver_of(connection)
    already_paid = sorting.already_paid
    if already_paid:
        with driver.cursor() as cursor, cursor.copy(_COPY_ALREADY_PAID) as copy:
            copy.set_types(_ALREADY_PAID_TYPES)
            for number, payment_id in sorted(already_paid.items()):
                row = submission.rows[number]
                copy.write_row(
                    (submission.business_id, batch_id, number, payment_id, row.email, row.amount_cents, row.reference)
                )
    hashes: dict[str, bytes] = {}
    position = -1
    with driver.cursor() as cursor, cursor.copy(_COPY_ROWS) as copy:
        copy.set_types(_ROW_TYPES)
        for number, row in enumerate(submission.rows):
            if number in already_paid:
                continue
            position += 1
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


def accept(connection: Connection, submission: Submission, batch_id: UUID, sorting: Sorting) -> Accepted | Outcome:
    """Reserve money and references for a batch whose rows were loaded in the same transaction; it is not released yet.

    Anything but a new batch is for the caller to roll back, rows and all.

    Raises:
        ReferencesTakenError: a reference was used since the rows were sorted.

    """
    business = lock_business(connection, submission.business_id)
    standing = _find_standing(connection, submission)
    if standing is Outcome.UNAUTHORIZED:
        return standing
    replay = _find_replay(connection, submission)
    if replay is not None or standing is not None:
        return replay or standing or Outcome.UNAUTHORIZED
    amount = sorting.amount_cents
    if business.payout_balance < amount:
        return Outcome.INSUFFICIENT_BALANCE
    connection.execute(
        businesses.update()
        .where(businesses.c.id == submission.business_id)
        .values(
            payout_balance=businesses.c.payout_balance - amount, reserved_balance=businesses.c.reserved_balance + amount
        )
    )
    _reserve_references(connection, submission, batch_id, sorting)
    total = len(submission.rows) - len(sorting.already_paid)
    connection.execute(
        payout_batches.insert().values(
            business_id=submission.business_id,
            id=batch_id,
            # Where all rows are paid already, there is nothing to do.
            status=BatchStatus.QUEUED if total else BatchStatus.COMPLETED,
            finished_at=None if total else sa.func.now(),
            total=total,
            already_paid=len(sorting.already_paid),
            api_key_id=submission.api_key_id,
            amount=amount,
            idempotency_key=submission.idempotency_key,
            request_digest=submission.digest,
            released_at=None,
        )
    )
    created = find_batch(connection, submission.business_id, batch_id)
    assert created is not None  # noqa: S101 (it was inserted just now)
    return Accepted(created, is_replay=False)


def _reserve_references(connection: Connection, submission: Submission, batch_id: UUID, sorting: Sorting) -> None:
    if all(row.reference is None for row in submission.rows):
        return
    try:
        driver_of(connection).execute(
            _RESERVE_REFERENCES,
            {
                "business_id": submission.business_id,
                "batch_id": batch_id,
                "references": text_array(sorting.attempts),
                "attempts": integer_array(sorting.attempts.values()),
            },
        )
    except psycopg.errors.UniqueViolation:
        raise ReferencesTakenError from None


def _find_standing(connection: Connection, submission: Submission) -> Outcome | None:
    if submission.api_key_id is not None:
        has_key = submission.idempotency_key is not None
        return find_standing(connection, submission.business_id, submission.api_key_id, has_name=has_key)
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
