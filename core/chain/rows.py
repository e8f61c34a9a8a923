"""Sealing rows of other tables: the audit log, main balances, keys, replays, payout batches and businesses.

Of each row the part that never changes is sealed, and its *state*: what the product itself changes, in one direction
alone. A row whose state has moved on is sealed again; a step back is left as it is, and `payouts verify` names the row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from core.chain.digests import NO_DIGEST, row_digest, tag_of
from core.database.tables import row_seals, seal_progress
from core.ids import IdKind

ROWS_AT_ONCE = 2_000
"""What one transaction seals of each kind."""
OVERLAP_S = 600
"""So much younger than the last sealing a row's time may be that was not to be seen then: it commits late."""

_TIME = "CAST(extract(epoch FROM %s) * 1000000 AS bigint)::text"


def _is_earlier_or_new(before: str, after: str) -> bool:
    """A key may be revoked, and then earlier, but never later or not at all."""
    return bool(after) and (not before or int(after) < int(before))


def _is_later_or_new(before: str, after: str) -> bool:
    """A replay may be withdrawn, and again, but never not at all."""
    return bool(after) and (not before or int(after) > int(before))


def _is_new(before: str, after: str) -> bool:
    """A payout batch ends once."""
    return bool(after) and not before


def _never(before: str, after: str) -> bool:  # noqa: ARG001 (the others look)
    return False


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of rows: what is sealed of them, in SQL, and which changes are the product's own."""

    name: str
    table: str
    id_kind: IdKind | None
    """How its ids are shown; None for those that have no form outside."""
    text: str
    state: str
    may_follow: Callable[[str, str], bool]
    times: tuple[str, ...]
    """When a row was written, and when its state changed; without any, all rows are looked at."""
    business_id: str = "business_id"


def _columns(*names: str) -> str:
    pairs = ", ".join(f"'{name}', {name}" for name in names)
    return f"jsonb_strip_nulls(jsonb_build_object({pairs}))::text"


def _all(table: str) -> str:
    return f"jsonb_strip_nulls(to_jsonb({table}))::text"


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("audit", "audit_log", None, _all("audit_log"), "''", _never, ("created_at",)),
        Kind("main", "main_transactions", IdKind.TRANSACTION, _all("main_transactions"), "''", _never, ("created_at",)),
        Kind(
            "key",
            "api_keys",
            IdKind.API_KEY,
            _columns("business_id", "id", "kind", "digest", "last4", "name", "created_at"),
            _TIME % "revoked_at",
            _is_earlier_or_new,
            (),
        ),
        Kind(
            "claim",
            "claims",
            IdKind.TRANSACTION,
            _columns("business_id", "id", "transaction_id", "created_at"),
            _TIME % "withdrawn_at",
            _is_later_or_new,
            ("created_at", "withdrawn_at"),
        ),
        Kind(
            "batch",
            "payout_batches",
            IdKind.BATCH,
            _columns(
                *("business_id", "id", "total", "amount", "already_paid", "api_key_id"),
                *("idempotency_key", "request_digest", "created_at"),
            ),
            "CASE WHEN finished_at IS NOT NULL THEN "
            f"concat_ws(' ', status, processed, allocated_amount, {_TIME % 'finished_at'}) END",
            _is_new,
            ("created_at", "finished_at"),
        ),
        Kind(
            "business",
            "businesses",
            IdKind.BUSINESS,
            _columns("id", "name", "mode", "twin_id", "created_at"),
            "''",
            _never,
            (),
            business_id="id",
        ),
    )
}


def select_rows(kind: Kind) -> str:
    """Return the query for business id, id, text and state of all rows of a kind, and when each was written."""
    return (
        f"SELECT {kind.business_id} AS business_id, id AS row_id, {kind.text} AS text, "  # noqa: S608 (all ours)
        f"COALESCE({kind.state}, '') AS state, created_at FROM {kind.table}"
    )


def seal_rows(connection: Connection, key: bytes, kind: Kind, rows_max: int = ROWS_AT_ONCE) -> bool:
    """Seal rows of a kind that are new or whose state has moved on; return whether there may be more.

    The transaction must have its turn (`core.chain.history.take_turn`).
    """
    now: datetime = connection.execute(sa.text("SELECT now()")).scalar_one()
    query = sa.select(seal_progress.c.sealed_until).where(seal_progress.c.kind == kind.name)
    sealed_until: datetime | None = connection.execute(query).scalar_one_or_none()
    rows = connection.execute(
        sa.text(_find_statement(kind, is_first=sealed_until is None)),
        {"kind": kind.name, "since": sealed_until, "overlap_s": OVERLAP_S, "rows_max": rows_max},
    ).all()
    legitimate = [row for row in rows if _may_be_sealed(key, kind, row)]
    if legitimate:
        _write(connection, key, kind, legitimate)
    is_more = len(rows) == rows_max and len(legitimate) > 0
    if not is_more:
        go_on_from(connection, kind.name, now)
    return is_more


def tag_row(key: bytes, kind: Kind, text: str, state: str) -> bytes:
    """Return the tag of a row in a state."""
    return tag_of(key, kind.name.encode(), text.encode(), state.encode())


def seal_content(kind: str, row_id: UUID, state: str, tag: bytes) -> bytes:
    """Return what the digest of the chain covers of a seal."""
    return b"\0".join([kind.encode(), row_id.bytes, state.encode(), tag])


def _find_statement(kind: Kind, *, is_first: bool) -> str:
    recent = ""
    if kind.times and not is_first:
        since = "CAST(:since AS timestamptz) - make_interval(secs => :overlap_s)"
        recent = " WHERE " + " OR ".join(f"{time} >= {since}" for time in kind.times)
    return f"""
        SELECT rows.*, seal.state AS sealed_state, seal.tag AS sealed_tag
        FROM ({select_rows(kind)}{recent}) AS rows
        LEFT JOIN LATERAL (
            SELECT state, tag
            FROM row_seals
            WHERE row_seals.business_id = rows.business_id AND kind = :kind AND row_seals.row_id = rows.row_id
            ORDER BY number DESC
            LIMIT 1
        ) AS seal ON true
        WHERE seal.tag IS NULL OR seal.state <> rows.state
        ORDER BY rows.created_at
        LIMIT :rows_max
    """  # noqa: S608 (nothing of it comes from outside)


def _may_be_sealed(key: bytes, kind: Kind, row: Any) -> bool:
    if row.sealed_tag is None:
        return True
    is_same = tag_row(key, kind, row.text, row.sealed_state) == row.sealed_tag
    return is_same and kind.may_follow(row.sealed_state, row.state)


def _write(connection: Connection, key: bytes, kind: Kind, rows: list[Any]) -> None:
    last = _read_last(connection, {row.business_id for row in rows})
    values = []
    for row in rows:
        number, previous = last.get(row.business_id, (0, NO_DIGEST))
        number += 1
        tag = tag_row(key, kind, row.text, row.state)
        digest = row_digest(key, row.business_id, number, previous, seal_content(kind.name, row.row_id, row.state, tag))
        last[row.business_id] = (number, digest)
        values.append(
            {
                "business_id": row.business_id,
                "number": number,
                "kind": kind.name,
                "row_id": row.row_id,
                "state": row.state,
                "tag": tag,
                "digest": digest,
            }
        )
    connection.execute(row_seals.insert(), values)


def _read_last(connection: Connection, business_ids: set[UUID]) -> dict[UUID, tuple[int, bytes]]:
    statement = sa.text("""
        SELECT wanted.business_id, number, digest
        FROM unnest(CAST(:business_ids AS uuid[])) AS wanted (business_id)
        CROSS JOIN LATERAL (
            SELECT number, digest FROM row_seals
            WHERE row_seals.business_id = wanted.business_id
            ORDER BY number DESC
            LIMIT 1
        ) AS last
    """)
    rows = connection.execute(statement, {"business_ids": list(business_ids)})
    return {row.business_id: (row.number, bytes(row.digest)) for row in rows}


def go_on_from(connection: Connection, kind: str, now: datetime) -> None:
    """Note that all rows of a kind are sealed that could be seen at a time."""
    statement = insert(seal_progress).values(kind=kind, sealed_until=now)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["kind"], set_={"sealed_until": statement.excluded.sealed_until})
    )
