"""The history summed by day: kept up to a moment of each business's, and read together with what came later.

The hot path writes nothing for it. A periodic task moves each business's `summed_until` forward in bounded steps; the
sums and the moment are written in one transaction, so that no row is counted twice or left out.
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
WRITE_MAX_S = 60.0
"""Longer than any transaction of ours that writes to the history, unless the settings allow more."""
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
class Due:
    """Businesses with rows to be summed: those with few, those with many, and the id to go on after."""

    few: list[UUID]
    many: list[UUID]
    last: UUID | None


# A row's time is its transaction's beginning, so rows older than any open transaction are complete. Transactions that
# have written nothing for so long are only readers: those of ours that write are ended before. Sessions that we may
# not look at might be such writers. Two seconds are for one that has taken its time and does not show yet.
_CLOSED_UNTIL = sa.text("""
    SELECT LEAST(
        clock_timestamp() - CASE
            WHEN bool_or(state IS NULL OR state = 'disabled') THEN make_interval(secs => :write_max_s)
            ELSE interval '2 seconds'
        END,
        min(xact_start) FILTER (
            WHERE backend_xid IS NOT NULL OR xact_start > clock_timestamp() - make_interval(secs => :write_max_s)
        )
    )
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
""")

# Each look-up is one of the index; the oldest rows come first.
_DUE = sa.text("""
    SELECT businesses.id, NOT EXISTS (
        SELECT FROM payout_transactions
        WHERE payout_transactions.business_id = businesses.id AND amount > 0
            AND created_at >= COALESCE(summed_until, '-infinity') AND created_at < :until
        ORDER BY created_at
        OFFSET :few_rows
    ) AS has_few
    FROM (
        SELECT id FROM businesses WHERE id > :after ORDER BY id LIMIT :businesses_max
    ) AS businesses
    LEFT JOIN payout_day_sums_progress AS progress ON progress.business_id = businesses.id
    WHERE EXISTS (
        SELECT FROM payout_transactions
        WHERE payout_transactions.business_id = businesses.id AND amount > 0
            AND created_at >= COALESCE(summed_until, '-infinity') AND created_at < :until
        OFFSET 0
    )
    ORDER BY businesses.id
""")

_LAST_OF_GROUP = sa.text("""
    SELECT id FROM (SELECT id FROM businesses WHERE id > :after ORDER BY id LIMIT :businesses_max) AS businesses
    ORDER BY id DESC
    LIMIT 1
""")

_BEGIN = sa.text("""
    INSERT INTO payout_day_sums_progress (business_id, summed_until) VALUES (:business_id, 'epoch')
    ON CONFLICT DO NOTHING
""")

_LOCK = sa.text("""
    SELECT summed_until FROM payout_day_sums_progress WHERE business_id = :business_id FOR UPDATE SKIP LOCKED
""")

_BEGIN_TOGETHER = sa.text("""
    INSERT INTO payout_day_sums_progress (business_id, summed_until)
    SELECT business_id, 'epoch' FROM unnest(CAST(:business_ids AS uuid[])) AS wanted (business_id) ORDER BY 1
    ON CONFLICT DO NOTHING
""")

_LOCK_TOGETHER = sa.text("""
    SELECT business_id, summed_until
    FROM payout_day_sums_progress
    WHERE business_id = ANY(CAST(:business_ids AS uuid[])) AND summed_until < :until
    ORDER BY business_id
    FOR UPDATE SKIP LOCKED
""")

_ADD_TOGETHER = sa.text("""
    INSERT INTO payout_day_sums AS kept (business_id, day, type, count, amount)
    SELECT locked.business_id, day, type, count(*), sum(amount)
    FROM payout_day_sums_progress AS locked
    CROSS JOIN LATERAL (
        SELECT (created_at AT TIME ZONE 'UTC')::date AS day, type, amount
        FROM payout_transactions
        WHERE payout_transactions.business_id = locked.business_id AND amount > 0
            AND created_at >= summed_until AND created_at < :until
        OFFSET 0
    ) AS rows
    WHERE locked.business_id = ANY(CAST(:business_ids AS uuid[]))
    GROUP BY 1, 2, 3
    ON CONFLICT (business_id, day, type) DO UPDATE
        SET count = kept.count + excluded.count, amount = kept.amount + excluded.amount
""")

# The first time that is beyond so many rows; rows of one time, which may be more than that, stay together.
_STEP_END = sa.text("""
    SELECT created_at
    FROM payout_transactions
    WHERE business_id = :business_id AND amount > 0 AND created_at > (
        SELECT created_at
        FROM payout_transactions
        WHERE business_id = :business_id AND amount > 0 AND created_at >= :since AND created_at < :until
        ORDER BY created_at
        OFFSET :rows_max LIMIT 1
    ) AND created_at < :until
    ORDER BY created_at
    LIMIT 1
""")

_ADD = sa.text("""
    INSERT INTO payout_day_sums AS kept (business_id, day, type, count, amount)
    SELECT business_id, (created_at AT TIME ZONE 'UTC')::date, type, count(*), sum(amount)
    FROM payout_transactions
    WHERE business_id = :business_id AND amount > 0 AND created_at >= :since AND created_at < :until
    GROUP BY 1, 2, 3
    ON CONFLICT (business_id, day, type) DO UPDATE
        SET count = kept.count + excluded.count, amount = kept.amount + excluded.amount
""")

_OPEN_SINCE = """GREATEST(
        CAST(:since AS timestamptz),
        (SELECT summed_until FROM payout_day_sums_progress WHERE business_id = :business_id)
    )"""
_READ_PROGRESS = sa.text(f"SELECT {_OPEN_SINCE}")

# The statement tells what it goes on from: its parts see the same moment, and belong together where that is what the
# rest was read from.
_READ_FROM = f"""
    SELECT day, type, CAST(sum(count) AS bigint) AS rows, sum(amount) AS amount, {_OPEN_SINCE} AS open_since
    FROM (
        SELECT day, type, count, amount
        FROM payout_day_sums
        WHERE business_id = :business_id AND day >= CAST(:since AS timestamptz) AT TIME ZONE 'UTC'
        UNION ALL
        SELECT (created_at AT TIME ZONE 'UTC')::date, type, count(*), sum(amount)
        FROM payout_transactions
        WHERE business_id = :business_id AND amount > 0 AND created_at >= %s
        GROUP BY 1, 2
    ) AS parts
    GROUP BY day, type
    ORDER BY day, type
"""  # noqa: S608 (nothing of it comes from outside)

# As a value, the planner sees how few rows are behind it; but the workers may move on before it is used.
_READ = sa.text(_READ_FROM % "CAST(:open_since AS timestamptz)")
_READ_AT_ONCE = sa.text(_READ_FROM % f"(SELECT {_OPEN_SINCE})")


def read_day_sums(connection: Connection, business_id: UUID, since: date) -> list[DaySum]:
    """Return the sums of each day from `since` on that has rows: exactly what the history says now."""
    parameters = {"business_id": business_id, "since": datetime.combine(since, time(), UTC)}
    open_since = connection.execute(_READ_PROGRESS, parameters).scalar_one()
    rows = connection.execute(_READ, parameters | {"open_since": open_since}).all()
    if any(row.open_since != open_since for row in rows):
        rows = connection.execute(_READ_AT_ONCE, parameters).all()
    return [DaySum(row.day, TransactionType(row.type), row.rows, int(row.amount)) for row in rows]


def read_closed_until(connection: Connection, write_max_s: float = WRITE_MAX_S) -> datetime:
    """Return a time before which no transaction began that may still write.

    A transaction that writes to the history does so, or is ended, within `write_max_s`.
    """
    closed_until: datetime = connection.execute(_CLOSED_UNTIL, {"write_max_s": write_max_s}).scalar_one()
    return closed_until


def list_due(connection: Connection, until: datetime, after: UUID) -> Due:
    """Return those of the next businesses in id order that have rows to be summed."""
    group = {"after": after, "businesses_max": BUSINESSES_AT_ONCE}
    last: UUID | None = connection.execute(_LAST_OF_GROUP, group).scalar_one_or_none()
    rows = connection.execute(_DUE, group | {"until": until, "few_rows": FEW_ROWS}).all()
    return Due([row.id for row in rows if row.has_few], [row.id for row in rows if not row.has_few], last)


def sum_together(connection: Connection, business_ids: Sequence[UUID], until: datetime) -> None:
    """Sum all rows of businesses that have few, in as many statements for any number of them.

    Those at which another worker is are left to it.
    """
    connection.execute(_BEGIN_TOGETHER, {"business_ids": list(business_ids)})
    wanted = {"business_ids": list(business_ids), "until": until}
    locked = [row.business_id for row in connection.execute(_LOCK_TOGETHER, wanted)]
    connection.execute(_ADD_TOGETHER, {"business_ids": locked, "until": until})
    connection.execute(
        payout_day_sums_progress.update()
        .where(payout_day_sums_progress.c.business_id.in_(locked))
        .values(summed_until=until)
    )


def sum_next(connection: Connection, business_id: UUID, until: datetime, rows_max: int = ROWS_AT_ONCE) -> bool:
    """Sum a business's next rows, about `rows_max`; return whether there are more before `until`.

    Where another worker is at this business, there is nothing to do.
    """
    key = {"business_id": business_id}
    connection.execute(_BEGIN, key)
    locked = connection.execute(_LOCK, key).one_or_none()
    if locked is None:
        return False
    span = {"business_id": business_id, "since": locked.summed_until, "until": until}
    if until <= locked.summed_until:  # the clock was put back
        return False
    step_end = connection.execute(_STEP_END, span | {"rows_max": rows_max}).scalar_one_or_none()
    end = step_end or until
    connection.execute(_ADD, span | {"until": end})
    connection.execute(
        payout_day_sums_progress.update()
        .where(payout_day_sums_progress.c.business_id == business_id)
        .values(summed_until=end)
    )
    return step_end is not None


def forget_sums(connection: Connection, business_id: UUID) -> None:
    """Let the periodic task sum a business's history anew, from its beginning."""
    is_own = payout_day_sums_progress.c.business_id == business_id
    connection.execute(sa.select(payout_day_sums_progress).where(is_own).with_for_update())
    connection.execute(payout_day_sums.delete().where(payout_day_sums.c.business_id == business_id))
    connection.execute(payout_day_sums_progress.delete().where(is_own))
