"""The history, as it is read back: newest first. Each function runs inside the caller's transaction."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.database.tables import payment_references, payout_transactions, payout_users


class TransactionType(StrEnum):
    """What moved the money: each type is a reason of its own."""

    FUNDING = "funding"
    ALLOCATION = "allocation"
    REVERSAL = "reversal"


@dataclass(frozen=True, slots=True)
class Transaction:
    """A row of the history; amounts in cents, always positive: the type tells the direction."""

    id: UUID
    type: TransactionType
    payout_user_id: UUID | None
    email: str | None
    amount: int
    payout_balance_after: int
    user_balance_after: int | None
    idempotency_key: str | None
    reversed_id: UUID | None
    batch_id: UUID | None
    created_at: datetime
    reference: str | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a business's history; `since` is included, `until` is not. Amounts in cents, both included."""

    type: TransactionType | None = None
    payout_user_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    reference: str | None = None
    idempotency_key: str | None = None
    min_amount: int | None = None
    max_amount: int | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the history: just after the row with this id. Cursors have its time too, for version 0.1."""

    created_at: datetime
    id: UUID


_COLUMNS = (
    payout_transactions.c.id,
    payout_transactions.c.type,
    payout_transactions.c.payout_user_id,
    # One look-up for each row: a join was planned over all users of the business.
    sa.select(payout_users.c.email)
    .where(
        payout_users.c.business_id == payout_transactions.c.business_id,
        payout_users.c.id == payout_transactions.c.payout_user_id,
    )
    .scalar_subquery()
    .label("email"),
    payout_transactions.c.amount,
    payout_transactions.c.payout_balance_after,
    payout_transactions.c.user_balance_after,
    payout_transactions.c.idempotency_key,
    payout_transactions.c.reversed_id,
    payout_transactions.c.batch_id,
    payout_transactions.c.created_at,
    payout_transactions.c.reference,
)
_SELECT = sa.select(*_COLUMNS)


def list_transactions(
    connection: Connection, business_id: UUID, selection: Selection, *, limit: int, after: Position | None = None
) -> list[Transaction]:
    """Return up to `limit` rows in the order of their commits, newest first, from the start or after a position.

    Who walks on sees every row that was there at the start once. What commits meanwhile lies before the start.
    """
    history = payout_transactions.c
    # Always true; the condition of the index.
    query = _SELECT.where(history.business_id == business_id, history.amount > sa.literal_column("0"))
    if selection.type is not None:
        # Written out, so that PostgreSQL sees which partial index fits.
        query = query.where(history.type == sa.literal_column(f"'{selection.type}'"))
    if selection.payout_user_id is not None:
        query = query.where(history.payout_user_id == selection.payout_user_id)
    if selection.since is not None or selection.until is not None:
        first, last = _read_bounds(connection, business_id, selection.since, selection.until)
        query = query.where(history.sequence >= first, history.sequence <= last)
    if selection.since is not None:
        query = query.where(history.created_at >= selection.since)
    if selection.until is not None:
        query = query.where(history.created_at < selection.until)
    if selection.reference is not None:
        query = query.where(history.id.in_(_payments_with(business_id, selection.reference)))
    if selection.idempotency_key is not None:
        query = query.where(history.idempotency_key == selection.idempotency_key)
    if selection.min_amount is not None:
        query = query.where(history.amount >= selection.min_amount)
    if selection.max_amount is not None:
        query = query.where(history.amount <= selection.max_amount)
    if after is not None:
        query = query.where(history.sequence < _sequence_of(business_id, after))
    query = query.order_by(history.sequence.desc()).limit(limit)
    return list(_transactions(connection, query))


# Each seal has the times of its rows, which may be in any order. Rows that are not sealed yet come last.
_BOUNDS = sa.text("""
    SELECT
        COALESCE((
            SELECT min(first_sequence) FROM history_seals WHERE business_id = :business_id AND latest >= :since
        ), sealed + 1),
        COALESCE((
            SELECT sequence
            FROM payout_transactions
            WHERE business_id = :business_id AND amount > 0 AND sequence > sealed AND created_at < :until
            ORDER BY sequence DESC
            LIMIT 1
        ), (
            SELECT max(last_sequence) FROM history_seals WHERE business_id = :business_id AND earliest < :until
        ), 0)
    FROM (
        SELECT COALESCE((
            SELECT last_sequence FROM history_seals
            WHERE business_id = :business_id
            ORDER BY first_sequence DESC
            LIMIT 1
        ), 0) AS sealed
    ) AS seals
""")


def _read_bounds(
    connection: Connection, business_id: UUID, since: datetime | None, until: datetime | None
) -> tuple[int, int]:
    """Return two numbers outside of which no row has a time between these.

    As values, they tell the planner how few rows there are; there is no index by time.
    """
    span = {"since": since or datetime.min.replace(tzinfo=UTC), "until": until or datetime.max.replace(tzinfo=UTC)}
    first, last = connection.execute(_BOUNDS, span | {"business_id": business_id}).one()
    return first, last


def _payments_with(business_id: UUID, reference: str) -> sa.Select[tuple[UUID]]:
    """Select the ids of all payments that had a reference; those that are not made yet are not in the history."""
    named = payment_references.c
    return sa.select(named.payment_id).where(named.business_id == business_id, named.reference == reference)


def _sequence_of(business_id: UUID, place: Position) -> sa.ScalarSelect[int]:
    row = payout_transactions.alias()
    return sa.select(row.c.sequence).where(row.c.business_id == business_id, row.c.id == place.id).scalar_subquery()


def has_reference(connection: Connection, business_id: UUID, reference: str) -> bool:
    """Tell whether a payment has, or had, this reference."""
    return connection.execute(_payments_with(business_id, reference).limit(1)).first() is not None


def has_idempotency_key(connection: Connection, business_id: UUID, idempotency_key: str) -> bool:
    """Tell whether a payment has this idempotency key."""
    history = payout_transactions.c
    query = sa.select(history.id).where(history.business_id == business_id, history.idempotency_key == idempotency_key)
    return connection.execute(query.limit(1)).first() is not None


def find_reversal(connection: Connection, business_id: UUID, transaction_id: UUID) -> Transaction | None:
    """Return the row that reversed a payment."""
    history = payout_transactions.c
    query = _SELECT.where(history.business_id == business_id, history.reversed_id == transaction_id)
    return next(_transactions(connection, query), None)


def find_transaction(connection: Connection, business_id: UUID, transaction_id: UUID) -> Transaction | None:
    """Return one row of a business's history."""
    query = _SELECT.where(payout_transactions.c.business_id == business_id, payout_transactions.c.id == transaction_id)
    return next(_transactions(connection, query), None)


def _transactions(connection: Connection, query: sa.Select[tuple[object, ...]]) -> Iterator[Transaction]:
    for row in connection.execute(query):
        values = row._asdict()
        yield Transaction(**values | {"type": TransactionType(values["type"])})
