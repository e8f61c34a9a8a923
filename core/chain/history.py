"""Sealing a business's history: in the order of its numbers, in the background.

One transaction at a time seals, in the whole installation; another one finds nothing to do. A number that is missing,
or a seal that is not what it was, ends the sealing of that business: `payouts verify` says which.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from psycopg import sql
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from core.chain.digests import (
    HISTORY_TEXT,
    NO_DIGEST,
    ROWS,
    TAG_BYTES,
    stretch_digest,
    tag_of,
)
from core.database.connection import driver_of
from core.database.tables import history_seals

BUSINESSES_AT_ONCE = 200
ROWS_AT_ONCE = 20_000
"""What one transaction seals."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# A number that nothing else uses. Behind a pooler too, it ends with the transaction.
_LOCK = sa.text("SELECT pg_try_advisory_xact_lock(7294683902)")

# Few rows wait, so that a stretch that grows is not written again for each of them.
_DUE = sa.text("""
    SELECT id
    FROM (
        SELECT id, last_sequence FROM businesses WHERE id > :behind ORDER BY id LIMIT :businesses_max
    ) AS businesses
    LEFT JOIN LATERAL (
        SELECT last_sequence AS sealed, sealed_at
        FROM history_seals
        WHERE business_id = businesses.id
        ORDER BY first_sequence DESC
        LIMIT 1
    ) AS seal ON true
    WHERE last_sequence > COALESCE(sealed, 0)
        AND (last_sequence - COALESCE(sealed, 0) >= :rows_min
            OR COALESCE(sealed_at, '-infinity') <= now() - make_interval(secs => :wait_s))
    ORDER BY id
""")
_LAST_OF_PAGE = sa.text("""
    SELECT max(id::text)::uuid
    FROM (SELECT id FROM businesses WHERE id > :behind ORDER BY id LIMIT :businesses_max) AS businesses
""")

_READ_SEALED = sa.text("""
    SELECT id, businesses.last_sequence, seal.first_sequence, seal.last_sequence AS sealed, previous, tags, digest,
        earliest, latest
    FROM businesses
    LEFT JOIN LATERAL (
        SELECT * FROM history_seals WHERE business_id = businesses.id ORDER BY first_sequence DESC LIMIT 1
    ) AS seal ON true
    WHERE id = ANY(CAST(:business_ids AS uuid[]))
    ORDER BY id
""")

# Each user's digest stands for the e-mail. `OFFSET 0` keeps the look-ups those of indexes.
_COPY_ROWS = sql.SQL("""
    COPY (
        SELECT wanted.position, history.sequence, CAST(extract(epoch FROM history.created_at) * 1000000 AS bigint),
            COALESCE(encode(payout_users.hash_digest, 'hex'), ''), {text}
        FROM unnest({ids}::uuid[], {after}::bigint[], {until}::bigint[])
            WITH ORDINALITY AS wanted (business_id, after, until, position)
        CROSS JOIN LATERAL (
            SELECT * FROM payout_transactions
            WHERE payout_transactions.business_id = wanted.business_id AND amount > 0
                AND sequence > wanted.after AND sequence <= wanted.until
            ORDER BY sequence
            OFFSET 0
        ) AS history
        LEFT JOIN payout_users
            ON payout_users.business_id = history.business_id AND payout_users.id = history.payout_user_id
        ORDER BY wanted.position, history.sequence
    ) TO STDOUT
""")


@dataclass(slots=True)
class Stretch:
    """A stretch of a business's history while it grows; `end` is the number of its last row."""

    business_id: UUID
    first: int
    previous: bytes
    tags: bytearray = field(default_factory=bytearray)
    earliest_us: int = 2**62
    latest_us: int = -(2**62)

    @property
    def end(self) -> int:
        """The number of its last row."""
        return self.first - 1 + len(self.tags) // TAG_BYTES

    def is_full(self) -> bool:
        """Tell whether the next row belongs to the next stretch."""
        return len(self.tags) == ROWS * TAG_BYTES

    def add(self, tag: bytes, time_us: int) -> None:
        """Let it grow by one row."""
        self.tags += tag
        self.earliest_us = min(self.earliest_us, time_us)
        self.latest_us = max(self.latest_us, time_us)

    def digest(self, key: bytes) -> bytes:
        """Return the digest of the history up to its end."""
        return stretch_digest(key, self.business_id, self.first, self.previous, bytes(self.tags))

    def next(self, key: bytes) -> "Stretch":
        """Return the stretch behind this one, empty."""
        return Stretch(self.business_id, self.first + ROWS, self.digest(key))


def take_turn(connection: Connection) -> bool:
    """Tell whether this transaction may seal; no other one does until it ends."""
    return bool(connection.execute(_LOCK).scalar_one())


def list_due(
    connection: Connection, behind: UUID, *, rows_min: int = ROWS, wait_s: float = 20.0
) -> tuple[list[UUID], UUID | None]:
    """Return those of the next businesses in id order whose rows are to be sealed, and the id to go on behind.

    Fewer rows than `rows_min` wait until the last sealing is `wait_s` ago.
    """
    page = {"behind": behind, "businesses_max": BUSINESSES_AT_ONCE}
    last: UUID | None = connection.execute(_LAST_OF_PAGE, page).scalar_one()
    due = connection.execute(_DUE, page | {"rows_min": rows_min, "wait_s": wait_s}).scalars().all()
    return list(due), last


def seal(connection: Connection, key: bytes, business_ids: Sequence[UUID], rows_max: int = ROWS_AT_ONCE) -> list[UUID]:
    """Seal the next rows of businesses, at most `rows_max` in all; return those that have more.

    The transaction must have its turn.
    """
    growing: list[Stretch] = []
    ranges: list[tuple[UUID, int, int]] = []
    more: list[UUID] = []
    left = rows_max
    for row in connection.execute(_READ_SEALED, {"business_ids": list(business_ids)}):
        stretch = Stretch(row.id, 1, NO_DIGEST)
        if row.sealed is not None:
            stretch = Stretch(
                row.id, row.first_sequence, row.previous, bytearray(row.tags), _us(row.earliest), _us(row.latest)
            )
            if stretch.digest(key) != row.digest or stretch.end != row.sealed:
                continue
        until = min(row.last_sequence, stretch.end + left)
        if until > stretch.end:
            left -= until - stretch.end
            growing.append(stretch)
            ranges.append((row.id, stretch.end, until))
        if until < row.last_sequence:
            more.append(row.id)
    changed: dict[tuple[UUID, int], Stretch] = {}
    stopped: set[int] = set()
    for position, sequence, time_us, content in _read_rows(connection, ranges):
        stretch = growing[position]
        if position in stopped or sequence != stretch.end + 1:
            stopped.add(position)
            continue
        if stretch.is_full():
            stretch = growing[position] = stretch.next(key)
        stretch.add(tag_of(key, *content), time_us)
        changed[stretch.business_id, stretch.first] = stretch
    if changed:
        _write(connection, key, list(changed.values()))
    gaps = {ranges[position][0] for position in stopped}
    return [business_id for business_id in more if business_id not in gaps]


def _read_rows(
    connection: Connection, ranges: Sequence[tuple[UUID, int, int]]
) -> Iterator[tuple[int, int, int, list[bytes]]]:
    """Return (position in `ranges`, number, time, what is sealed) of rows, in the order of their numbers."""
    if not ranges:
        return
    ids, after, until = ([each[column] for each in ranges] for column in range(3))
    statement = _COPY_ROWS.format(
        text=sql.SQL(HISTORY_TEXT), ids=sql.Literal(ids), after=sql.Literal(after), until=sql.Literal(until)
    )
    with driver_of(connection).cursor() as cursor, cursor.copy(statement) as copy:
        for line in copy:
            position, sequence, time_us, *content = bytes(line).rstrip(b"\n").split(b"\t")
            yield int(position) - 1, int(sequence), int(time_us), content


def _write(connection: Connection, key: bytes, stretches: Sequence[Stretch]) -> None:
    values = [
        {
            "business_id": each.business_id,
            "first_sequence": each.first,
            "last_sequence": each.end,
            "previous": each.previous,
            "tags": bytes(each.tags),
            "digest": each.digest(key),
            "earliest": _EPOCH + timedelta(microseconds=each.earliest_us),
            "latest": _EPOCH + timedelta(microseconds=each.latest_us),
        }
        for each in stretches
    ]
    statement = insert(history_seals)
    grown = ("last_sequence", "tags", "digest", "earliest", "latest")
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["business_id", "first_sequence"],
            set_={name: statement.excluded[name] for name in grown} | {"sealed_at": sa.func.now()},
        ),
        values,
    )


def _us(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
