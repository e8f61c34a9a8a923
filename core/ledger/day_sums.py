"""The history summed by day: kept up to a number of each business's, and read together with what came later.

The hot path writes nothing for it. A periodic task moves each business's `last_sequence` forward in bounded steps; the
sums and the number are written in one transaction, so that no row is counted twice or left out. Rows are numbered in
the order of their commits: what has a number at or below one that can be seen, can be seen too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.database.tables import payout_day_sums, payout_day_sums_progress
from core.ledger.history import TransactionType

BUSINESSES_AT_ONCE = 1_000
ROWS_AT_ONCE = 50_000
"""What one transaction of the periodic task looks at."""
FEW_ROWS = 200
"""Businesses that have at most as many rows to be summed are summed together."""


@dataclass(frozen=True, slots=True)
class DaySum:
    """History rows of one type on one day (UTC); amount in cents."""

    day: date
    type: TransactionType
    count: int
    amount: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A kept sum that is not what the history says; amounts in cents."""

    day: date
    type: str
    kept_count: int
    kept_amount: int
    count: int
    amount: int


@dataclass(frozen=True, slots=True)
class Due:
    """Businesses with rows to be summed: those with few, those with many, and the id to go on after."""

    few: list[UUID]
    many: list[UUID]
    last: UUID | None


_DUE = sa.text("""
    SELECT id, rows > 0 AS is_due, rows <= :few_rows AS has_few
    FROM (
        SELECT id, businesses.last_sequence - COALESCE(progress.last_sequence, 0) AS rows
        FROM (
            SELECT id, last_sequence FROM businesses WHERE id > :after ORDER BY id LIMIT :businesses_max
        ) AS businesses
        LEFT JOIN payout_day_sums_progress AS progress ON progress.business_id = businesses.id
    ) AS businesses
    ORDER BY id
""")

_BEGIN = sa.text("""
    INSERT INTO payout_day_sums_progress (business_id)
    SELECT business_id FROM unnest(CAST(:business_ids AS uuid[])) AS wanted (business_id) ORDER BY 1
    ON CONFLICT DO NOTHING
""")

_LOCK = sa.text("""
    SELECT progress.last_sequence AS summed, businesses.last_sequence AS written
    FROM payout_day_sums_progress AS progress
    JOIN businesses ON businesses.id = progress.business_id
    WHERE progress.business_id = :business_id
    FOR UPDATE OF progress SKIP LOCKED
""")

_LOCK_TOGETHER = sa.text("""
    SELECT business_id, businesses.last_sequence AS written
    FROM payout_day_sums_progress AS progress
    JOIN businesses ON businesses.id = progress.business_id
    WHERE business_id = ANY(CAST(:business_ids AS uuid[])) AND businesses.last_sequence > progress.last_sequence
    ORDER BY business_id
    FOR UPDATE OF progress SKIP LOCKED
""")

_ADD_TOGETHER = sa.text("""
    INSERT INTO payout_day_sums AS kept (business_id, day, type, count, amount)
    SELECT locked.business_id, day, type, count(*), sum(amount)
    FROM unnest(CAST(:business_ids AS uuid[]), CAST(:sequences AS bigint[])) AS locked (business_id, written)
    JOIN payout_day_sums_progress AS progress USING (business_id)
    CROSS JOIN LATERAL (
        SELECT (created_at AT TIME ZONE 'UTC')::date AS day, type, amount
        FROM payout_transactions
        WHERE payout_transactions.business_id = locked.business_id AND amount > 0
            AND sequence > progress.last_sequence AND sequence <= locked.written
        OFFSET 0
    ) AS rows
    GROUP BY 1, 2, 3
    ON CONFLICT (business_id, day, type) DO UPDATE
        SET count = kept.count + excluded.count, amount = kept.amount + excluded.amount
""")

_GO_ON_TOGETHER = sa.text("""
    UPDATE payout_day_sums_progress AS progress SET last_sequence = written
    FROM unnest(CAST(:business_ids AS uuid[]), CAST(:sequences AS bigint[])) AS locked (business_id, written)
    WHERE progress.business_id = locked.business_id
""")

_ADD = sa.text("""
    INSERT INTO payout_day_sums AS kept (business_id, day, type, count, amount)
    SELECT business_id, (created_at AT TIME ZONE 'UTC')::date, type, count(*), sum(amount)
    FROM payout_transactions
    WHERE business_id = :business_id AND amount > 0 AND sequence > :summed AND sequence <= :end
    GROUP BY 1, 2, 3
    ON CONFLICT (business_id, day, type) DO UPDATE
        SET count = kept.count + excluded.count, amount = kept.amount + excluded.amount
""")

_SUMMED = "COALESCE((SELECT last_sequence FROM payout_day_sums_progress WHERE business_id = :business_id), 0)"
_READ_PROGRESS = sa.text(f"SELECT {_SUMMED}")

# The statement tells what it goes on from: its parts see the same moment, and belong together where that is what the
# rest was read from.
_READ_FROM = f"""
    SELECT day, type, CAST(sum(count) AS bigint) AS rows, sum(amount) AS amount, {_SUMMED} AS summed
    FROM (
        SELECT day, type, count, amount
        FROM payout_day_sums
        WHERE business_id = :business_id AND day >= :since
        UNION ALL
        SELECT (created_at AT TIME ZONE 'UTC')::date, type, count(*), sum(amount)
        FROM payout_transactions
        WHERE business_id = :business_id AND amount > 0 AND sequence > %s AND created_at >= :since_midnight
        GROUP BY 1, 2
    ) AS parts
    GROUP BY day, type
    ORDER BY day, type
"""  # noqa: S608 (nothing of it comes from outside)

# As a value, the planner sees how few rows are behind it; but the workers may move on before it is used.
_READ = sa.text(_READ_FROM % "CAST(:summed AS bigint)")
_READ_AT_ONCE = sa.text(_READ_FROM % f"(SELECT {_SUMMED})")


def read_day_sums(connection: Connection, business_id: UUID, since: date) -> list[DaySum]:
    """Return the sums of each day from `since` on that has rows: exactly what the history says now."""
    parameters = {"business_id": business_id, "since": since, "since_midnight": datetime.combine(since, time(), UTC)}
    summed = connection.execute(_READ_PROGRESS, parameters).scalar_one()
    rows = connection.execute(_READ, parameters | {"summed": summed}).all()
    if any(row.summed != summed for row in rows):
        rows = connection.execute(_READ_AT_ONCE, parameters).all()
    return [DaySum(row.day, TransactionType(row.type), row.rows, int(row.amount)) for row in rows]


def list_due(connection: Connection, after: UUID) -> Due:
    """Return those of the next businesses in id order that have rows to be summed."""
    page = {"after": after, "businesses_max": BUSINESSES_AT_ONCE, "few_rows": FEW_ROWS}
    rows = connection.execute(_DUE, page).all()
    due = [row for row in rows if row.is_due]
    few, many = [row.id for row in due if row.has_few], [row.id for row in due if not row.has_few]
    return Due(few, many, rows[-1].id if rows else None)


def sum_together(connection: Connection, business_ids: Sequence[UUID]) -> None:
    """Sum all rows of businesses that have few, in as many statements for any number of them.

    Those at which another worker is are left to it.
    """
    wanted = {"business_ids": list(business_ids)}
    connection.execute(_BEGIN, wanted)
    locked = connection.execute(_LOCK_TOGETHER, wanted).all()
    step = {"business_ids": [row.business_id for row in locked], "sequences": [row.written for row in locked]}
    connection.execute(_ADD_TOGETHER, step)
    connection.execute(_GO_ON_TOGETHER, step)


def sum_next(connection: Connection, business_id: UUID, rows_max: int = ROWS_AT_ONCE) -> bool:
    """Sum a business's next rows, at most `rows_max`; return whether there are more.

    Where another worker is at this business, there is nothing to do.
    """
    connection.execute(_BEGIN, {"business_ids": [business_id]})
    locked = connection.execute(_LOCK, {"business_id": business_id}).one_or_none()
    if locked is None or locked.summed >= locked.written:
        return False
    end = min(locked.summed + rows_max, locked.written)
    connection.execute(_ADD, {"business_id": business_id, "summed": locked.summed, "end": end})
    connection.execute(
        payout_day_sums_progress.update()
        .where(payout_day_sums_progress.c.business_id == business_id)
        .values(last_sequence=end)
    )
    return bool(end < locked.written)


_DIFFERENCES = sa.text("""
    SELECT day, type, COALESCE(kept.count, 0), COALESCE(kept.amount, 0), COALESCE(history.count, 0),
        COALESCE(history.amount, 0)
    FROM (SELECT * FROM payout_day_sums WHERE business_id = :business_id) AS kept
    FULL JOIN (
        SELECT (created_at AT TIME ZONE 'UTC')::date AS day, type, count(*) AS count, sum(amount) AS amount
        FROM payout_transactions
        WHERE business_id = :business_id AND amount > 0
            AND sequence <= (SELECT last_sequence FROM payout_day_sums_progress WHERE business_id = :business_id)
        GROUP BY 1, 2
    ) AS history USING (day, type)
    WHERE (kept.count, kept.amount) IS DISTINCT FROM (history.count, history.amount)
    ORDER BY day, type
    LIMIT 1000
""")


def forget_sums(connection: Connection, business_id: UUID) -> list[Difference]:
    """Let the periodic task sum a business's history anew, from its beginning; return which sums were wrong."""
    is_own = payout_day_sums_progress.c.business_id == business_id
    connection.execute(sa.select(payout_day_sums_progress).where(is_own).with_for_update())
    differences = [
        Difference(day, type_, kept_count, int(kept_amount), count, int(amount))
        for day, type_, kept_count, kept_amount, count, amount in connection.execute(
            _DIFFERENCES, {"business_id": business_id}
        )
    ]
    connection.execute(payout_day_sums.delete().where(payout_day_sums.c.business_id == business_id))
    connection.execute(payout_day_sums_progress.delete().where(is_own))
    return differences
