"""What a submission would do, and what of it equals payments of before: rows without references have no other name.

Looked up are batches with exactly these rows; the newest payments to each person; and rows of batches that are accepted
and not paid yet. Nothing is changed, and nothing is promised of what is not looked up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.batches.acceptance import Accepted, ReferencesReused, Sorting, Submission, sort_rows
from core.batches.payout_batch import BatchRow
from core.database.arrays import integer_array, text_array
from core.database.connection import driver_of
from core.database.tables import api_keys, audit_log, payout_batches
from core.ids import IdKind, format_id
from core.messages import Outcome
from core.parties.audit import Action
from core.parties.businesses import get_business

PAYMENTS_LOOKED_AT_MAX = 20
"""Of each person, the newest."""
EQUALS_SHOWN_MAX = 10
DASHBOARD_KEY_PREFIX = "dashboard-"
PUSH_KEY_PREFIX = "push-"
"""What the idempotency keys of the product's own doors begin with."""


class Door(StrEnum):
    """How a payment came."""

    CALL = "POST /payout/create"
    BATCH = "POST /payout/batches"
    PUSH = "payouts push"
    DASHBOARD = "dashboard"


@dataclass(frozen=True, slots=True)
class Origin:
    """When, how and by whom something was paid. `by` is empty where it is not recorded."""

    at: datetime
    door: Door
    by: str
    batch_id: UUID | None


@dataclass(frozen=True, slots=True)
class EqualPayment:
    """A row without a reference, and the newest earlier payment to the same person of the same amount."""

    row: int
    origin: Origin
    payment_id: UUID | None
    """None where it is a row of a batch that is not paid yet."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a submission would do.

    `equal_rows` of its `unnamed_rows` (those without references) equal earlier payments, of which `equal_payments` are
    the first. `equal_batch` is the newest batch that had exactly these rows.
    """

    total: int
    already_paid: int
    amount: int
    payout_balance: int
    replayed_batch_id: UUID | None
    """The batch that the same idempotency key and rows were accepted as: nothing would be accepted again."""
    unnamed_rows: int
    equal_rows: int
    equal_batch: Origin | None
    equal_payments: list[EqualPayment]


_EQUAL_PAYMENTS = """
    WITH wanted AS MATERIALIZED (
        SELECT row - 1 AS row, email, amount
        FROM unnest(%(emails)s::text[], %(amounts)s::bigint[]) WITH ORDINALITY AS wanted (email, amount, row)
    ), people AS MATERIALIZED (
        SELECT DISTINCT email FROM wanted
    ), recent AS MATERIALIZED (
        SELECT people.email, payment.amount, payment.id, payment.created_at, payment.batch_id
        FROM people
        JOIN payout_users ON payout_users.business_id = %(business_id)s AND payout_users.email = people.email
        CROSS JOIN LATERAL (
            SELECT id, amount, created_at, batch_id
            FROM payout_transactions
            WHERE payout_user_id = payout_users.id AND business_id = %(business_id)s AND type = 'allocation'
            ORDER BY sequence DESC
            LIMIT %(looked_at)s
        ) AS payment
        WHERE NOT EXISTS (
            SELECT FROM payout_transactions AS reversal
            WHERE reversal.business_id = %(business_id)s AND reversal.reversed_id = payment.id
            OFFSET 0
        )
    ), waiting AS MATERIALIZED (
        SELECT item.email, item.amount, NULL::uuid AS id, batch.created_at, batch.id AS batch_id
        FROM payout_batches AS batch
        JOIN payout_batch_items AS item ON item.business_id = batch.business_id AND item.batch_id = batch.id
            AND item.position >= batch.processed
        WHERE batch.business_id = %(business_id)s AND batch.finished_at IS NULL
    ), earlier AS MATERIALIZED (
        SELECT DISTINCT ON (email, amount) email, amount, id, created_at, batch_id
        FROM (SELECT * FROM recent UNION ALL SELECT * FROM waiting) AS every
        ORDER BY email, amount, created_at DESC
    ), equal AS MATERIALIZED (
        SELECT row, id, created_at, batch_id FROM wanted JOIN earlier USING (email, amount)
    )
    SELECT (SELECT count(*) FROM equal), row, id, created_at, batch_id
    FROM equal
    ORDER BY row
    LIMIT %(shown)s
"""


def look_ahead(connection: Connection, submission: Submission) -> Preview | Outcome | ReferencesReused:
    """Tell what a submission would do, or why it would not be accepted.

    Too small a balance is no reason: the preview has both sums.
    """
    found = sort_rows(connection, submission, is_money_looked_at=False)
    payout_balance = get_business(connection, submission.business_id).payout_balance
    if isinstance(found, Accepted):
        return _replay(submission, found, payout_balance)
    if not isinstance(found, Sorting):
        return found
    unnamed = [(number, row) for number, row in enumerate(submission.rows) if row.reference is None]
    count, equals = _find_equal_payments(connection, submission.business_id, unnamed)
    return Preview(
        total=len(submission.rows),
        already_paid=len(found.already_paid),
        amount=found.amount_cents,
        payout_balance=payout_balance,
        replayed_batch_id=None,
        unnamed_rows=len(unnamed),
        equal_rows=count,
        equal_batch=_find_equal_batch(connection, submission),
        equal_payments=equals,
    )


def _replay(submission: Submission, found: Accepted, payout_balance: int) -> Preview:
    total = len(submission.rows)
    return Preview(total, total, 0, payout_balance, found.batch.id, 0, 0, None, [])


def _find_equal_payments(
    connection: Connection, business_id: UUID, rows: Sequence[tuple[int, BatchRow]]
) -> tuple[int, list[EqualPayment]]:
    if not rows:
        return 0, []
    found = driver_of(connection).execute(
        _EQUAL_PAYMENTS,
        {
            "business_id": business_id,
            "emails": text_array(row.email for _, row in rows),
            "amounts": integer_array(row.amount_cents for _, row in rows),
            "looked_at": PAYMENTS_LOOKED_AT_MAX,
            "shown": EQUALS_SHOWN_MAX,
        },
    )
    equals = found.fetchall()
    origins = _origins_of(connection, business_id, {batch_id for *_, batch_id in equals if batch_id is not None})
    return (equals[0][0] if equals else 0), [
        EqualPayment(rows[row][0], origins.get(batch_id) or Origin(created_at, Door.CALL, "", None), payment_id)
        for _, row, payment_id, created_at, batch_id in equals
    ]


def _find_equal_batch(connection: Connection, submission: Submission) -> Origin | None:
    """Return where the newest batch with exactly these rows came from, unless it was cancelled before it paid any."""
    batches = payout_batches.c
    query = (
        sa.select(batches.id)
        .where(
            batches.business_id == submission.business_id,
            batches.request_digest == submission.digest,
            (batches.status != "cancelled") | (batches.processed > 0),
            batches.total > 0,
        )
        .order_by(batches.id.desc())
        .limit(1)
    )
    batch_id = connection.execute(query).scalar_one_or_none()
    return None if batch_id is None else _origins_of(connection, submission.business_id, {batch_id})[batch_id]


def _origins_of(connection: Connection, business_id: UUID, batch_ids: set[UUID]) -> dict[UUID, Origin]:
    """Return when, how and by whom batches were handed in."""
    if not batch_ids:
        return {}
    batches, keys = payout_batches.c, api_keys.c
    query = (
        sa.select(batches.id, batches.created_at, batches.idempotency_key, keys.name, keys.last4)
        .join_from(
            payout_batches,
            api_keys,
            (keys.business_id == batches.business_id) & (keys.id == batches.api_key_id),
            isouter=True,
        )
        .where(batches.business_id == business_id, batches.id.in_(batch_ids))
    )
    rows = connection.execute(query).all()
    names = {format_id(IdKind.BATCH, row.id): row.id for row in rows}
    log = audit_log.c
    members = sa.select(log.subject, log.actor).where(
        log.business_id == business_id, log.action == Action.BATCH_ACCEPTED, log.subject.in_(names)
    )
    actors = {names[row.subject]: row.actor for row in connection.execute(members)}
    return {row.id: Origin(row.created_at, _door_of(row), actors.get(row.id) or _key_of(row), row.id) for row in rows}


def _door_of(row: Any) -> Door:
    key = row.idempotency_key or ""
    if key.startswith(DASHBOARD_KEY_PREFIX):
        return Door.DASHBOARD
    return Door.PUSH if key.startswith(PUSH_KEY_PREFIX) else Door.BATCH


def _key_of(row: Any) -> str:
    if row.last4 is None:
        return ""
    return f"key …{row.last4} ({row.name})" if row.name else f"key …{row.last4}"
