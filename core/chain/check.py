"""Comparing rows with their seals: what differs is named, with the time since when it may have been changed.

Everything is read as a stream, in the order of its keys, and little of it is kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from psycopg import sql
from sqlalchemy import Connection

from core.batches.acceptance import digest_rows
from core.batches.payout_batch import BatchRow
from core.chain.digests import HISTORY_TEXT, NO_DIGEST, TAG_BYTES, row_digest, tag_of
from core.chain.head import BusinessHead, Head, read_installation
from core.chain.history import Stretch
from core.chain.rows import KINDS, OVERLAP_S, Kind, seal_content, select_rows, tag_row
from core.credentials import digest_of, payout_hash, seal_key
from core.database.connection import driver_of
from core.ids import IdKind, format_id

ALTERATIONS_MAX = 1_000
"""So many are named; the rest is counted."""
_ROWS_AT_ONCE = 20_000
_NO_ID = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Alteration:
    """A row that is not what it was, is gone, or was not written by the product; the text says what and since when."""

    id: str
    text: str


Tell = Callable[[str, int], None]
"""Is told how far the comparison is: what is looked at, and how many rows of it."""


class Alterations:
    """What was found, up to a number; the rest is counted."""

    def __init__(self) -> None:
        self.found: list[Alteration] = []
        self.count = 0

    def add(self, id_: str, text: str) -> None:
        """Note another one."""
        self.count += 1
        if len(self.found) < ALTERATIONS_MAX:
            self.found.append(Alteration(id_, text))


def check(
    connection: Connection, hash_secret: bytes, head: Head | None = None, tell: Tell = lambda _name, _rows: None
) -> Alterations:
    """Compare all rows with their seals, e-mails with hashes and batches with what was handed in.

    The connection should see one moment of the database (`Database.snapshot`). What a head knows must be there.
    """
    found = Alterations()
    if read_installation(connection) is None:
        found.add("installation", "the row that says which installation this is, is gone: were tables emptied?")
    key = seal_key(hash_secret)
    _HistoryCheck(connection, key, head, found, tell).run()
    for kind in KINDS.values():
        _check_rows(connection, key, kind, found, tell)
    _check_row_chains(connection, key, head, found, tell)
    _check_users(connection, hash_secret, found, tell)
    _check_user_balances(connection, found)
    _check_batches(connection, found, tell)
    return found


# The history


_PAGE = sql.SQL("""
    COPY (
        SELECT history.business_id, history.sequence, history.id,
            CAST(extract(epoch FROM history.created_at) * 1000000 AS bigint),
            COALESCE(encode(payout_users.hash_digest, 'hex'), ''), {text}
        FROM (
            SELECT * FROM payout_transactions
            WHERE amount > 0 AND sequence > 0 AND (business_id, sequence) > ({business_id}::uuid, {sequence}::bigint)
            ORDER BY business_id, sequence
            LIMIT {rows}
        ) AS history
        LEFT JOIN payout_users
            ON payout_users.business_id = history.business_id AND payout_users.id = history.payout_user_id
        ORDER BY history.business_id, history.sequence
    ) TO STDOUT
""")
_BUSINESSES = sa.text("""
    SELECT id, last_sequence
    FROM businesses
    UNION ALL
    SELECT DISTINCT history_seals.business_id, -1
    FROM history_seals
    WHERE first_sequence = 1 AND NOT EXISTS (SELECT FROM businesses WHERE id = history_seals.business_id)
    ORDER BY 1
""")
_SEALS = sa.text("""
    SELECT first_sequence, last_sequence, previous, tags, digest, sealed_at
    FROM history_seals
    WHERE business_id = :business_id AND first_sequence >= :first
    ORDER BY first_sequence
    LIMIT :seals_max
""")
_UNNUMBERED = sa.text("""
    SELECT id FROM payout_transactions WHERE sequence IS NULL OR sequence < 1 OR amount <= 0 ORDER BY id LIMIT 1000
""")
_SEALS_AT_ONCE = 100


@dataclass(slots=True)
class _Row:
    sequence: int
    id: UUID
    time_us: int
    content: list[bytes]


class _HistoryCheck:
    """Walks through all histories, and through their seals beside them."""

    def __init__(self, connection: Connection, key: bytes, head: Head | None, found: Alterations, tell: Tell) -> None:
        self._connection = connection
        self._key = key
        self._head = head
        self._found = found
        self._tell = tell
        self._rows_seen = 0
        self._complete_until = _read_sealed_until(connection, "history")

    def run(self) -> None:
        """Look at each business."""
        for (id_,) in self._connection.execute(_UNNUMBERED):
            self._found.add(format_id(IdKind.TRANSACTION, id_), "a row that the chain does not know: it has no number")
        last_numbers: dict[UUID, int] = {row.id: row.last_sequence for row in self._connection.execute(_BUSINESSES)}
        known = set(self._head.businesses) if self._head else set()
        histories = self._read_histories()
        history = next(histories, None)
        for business_id in sorted(last_numbers.keys() | known):
            while history is not None and history[0] < business_id:
                self._note_ownerless(*history)
                history = next(histories, None)
            rows: Iterator[_Row] = iter(())
            is_its = history is not None and history[0] == business_id
            if is_its and history is not None:
                rows = history[1]
            self._check_business(business_id, last_numbers.get(business_id), rows)
            if is_its:
                history = next(histories, None)
        while history is not None:
            self._note_ownerless(*history)
            history = next(histories, None)

    def _note_ownerless(self, business_id: UUID, rows: Iterator[_Row]) -> None:
        count = sum(1 for _ in rows)
        self._found.add(format_id(IdKind.BUSINESS, business_id), f"{count} history rows, but no business and no seals")

    def _read_histories(self) -> Iterator[tuple[UUID, Iterator[_Row]]]:
        for business_id, pairs in groupby(self._read_rows(), key=lambda pair: pair[0]):
            yield business_id, (row for _, row in pairs)

    def _read_rows(self) -> Iterator[tuple[UUID, _Row]]:
        place: tuple[UUID, int] = (_NO_ID, 0)
        is_more = True
        while is_more:
            page = self._read_page(place)
            is_more = len(page) == _ROWS_AT_ONCE
            self._rows_seen += len(page)
            self._tell("history rows", self._rows_seen)
            yield from page
            if page:
                place = (page[-1][0], page[-1][1].sequence)

    def _read_page(self, place: tuple[UUID, int]) -> list[tuple[UUID, _Row]]:
        statement = _PAGE.format(
            text=sql.SQL(HISTORY_TEXT),
            business_id=sql.Literal(place[0]),
            sequence=sql.Literal(place[1]),
            rows=sql.Literal(_ROWS_AT_ONCE),
        )
        page: list[tuple[UUID, _Row]] = []
        ids: dict[bytes, UUID] = {}
        with driver_of(self._connection).cursor() as cursor, cursor.copy(statement) as copy:
            for line in copy:
                business, sequence, id_, time_us, *content = bytes(line).rstrip(b"\n").split(b"\t")
                business_id = ids.get(business)
                if business_id is None:
                    business_id = ids[business] = UUID(business.decode())
                page.append((business_id, _Row(int(sequence), UUID(id_.decode()), int(time_us), content)))
        return page

    def _check_business(self, business_id: UUID, last_number: int | None, rows: Iterator[_Row]) -> None:
        name = format_id(IdKind.BUSINESS, business_id)
        known = self._head.businesses.get(business_id) if self._head else None
        known_rows = known.history_rows if known else 0
        stretch = Stretch(business_id, 1, NO_DIGEST)
        seals = _Seals(self._connection, self._key, business_id, self._found)
        expected = 1
        is_broken = False
        for row in rows:
            if row.sequence != expected:
                self._note_gap(name, expected, row.sequence)
                is_broken = True
            expected = row.sequence + 1
            tag = tag_of(self._key, *row.content)
            if not is_broken:
                stretch = stretch.next(self._key) if stretch.is_full() else stretch
                stretch.add(tag, row.time_us)
            self._check_row(name, row, tag, seals)
            is_known_end = known is not None and row.sequence == known_rows
            if known and is_known_end and (is_broken or stretch.digest(self._key) != known.history_digest):
                text = f"its first {known_rows} history rows are not those of the head of {self._made_at}"
                self._found.add(name, text)
        rows_there = expected - 1
        rows_wanted = max(last_number or 0, seals.read_end())
        if rows_there < rows_wanted:
            self._note_gap(name, expected, rows_wanted + 1)
        if rows_there < known_rows:
            text = f"history rows {expected} to {known_rows} are missing, which the head of {self._made_at} has"
            self._found.add(name, text)
        if last_number is None or last_number < 0:
            self._found.add(name, "the business is gone")
        elif last_number < rows_there:
            self._found.add(name, f"its history should end with row {last_number}, and ends with row {rows_there}")

    def _check_row(self, name: str, row: _Row, tag: bytes, seals: "_Seals") -> None:
        sealed = seals.find(row.sequence)
        if sealed is not None and sealed.tag != tag:
            text = f"row {row.sequence} of {name} was changed after it was sealed ({_time(sealed.sealed_at)})"
            self._found.add(format_id(IdKind.TRANSACTION, row.id), text)
        if sealed is None and self._is_late(row.time_us):
            text = f"row {row.sequence} of {name}: a row that the chain does not know, though newer rows are sealed"
            self._found.add(format_id(IdKind.TRANSACTION, row.id), text)

    def _note_gap(self, name: str, expected: int, came: int) -> None:
        if came < expected:
            self._found.add(name, f"history row {came} is there twice")
        elif came == expected + 1:
            self._found.add(name, f"history row {expected} is missing")
        else:
            self._found.add(name, f"history rows {expected} to {came - 1} are missing")

    @property
    def _made_at(self) -> str:
        return self._head.made_at if self._head else ""

    def _is_late(self, time_us: int) -> bool:
        if self._complete_until is None:
            return False
        return time_us < (self._complete_until - timedelta(seconds=OVERLAP_S)).timestamp() * 1_000_000


@dataclass(frozen=True, slots=True)
class _SealedRow:
    """What the seal of a row says."""

    tag: bytes
    sealed_at: datetime


class _Seals:
    """The seals of one business's history, read beside its rows; each is checked when it is come to."""

    def __init__(self, connection: Connection, key: bytes, business_id: UUID, found: Alterations) -> None:
        self._key = key
        self._business_id = business_id
        self._found = found
        self._seals = self._read(connection)
        self._end = 0
        self._digest = NO_DIGEST
        self._tags = b""
        self._current: Any = None
        self._go_on()

    def find(self, sequence: int) -> _SealedRow | None:
        """Return the seal of a row; rows come in the order of their numbers."""
        while self._current is not None and self._current.last_sequence < sequence:
            self._go_on()
        if self._current is None or sequence < self._current.first_sequence:
            return None
        position = (sequence - self._current.first_sequence) * TAG_BYTES
        return _SealedRow(self._tags[position : position + TAG_BYTES], self._current.sealed_at)

    def read_end(self) -> int:
        """Return the number of the last row that was sealed, after a look at the seals that are left."""
        while self._current is not None:
            self._go_on()
        return self._end

    def _go_on(self) -> None:
        self._current = next(self._seals, None)
        if self._current is None:
            return
        seal = self._current
        self._tags = bytes(seal.tags)
        stretch = Stretch(self._business_id, seal.first_sequence, bytes(seal.previous), bytearray(self._tags))
        name = format_id(IdKind.BUSINESS, self._business_id)
        if seal.first_sequence != self._end + 1:
            self._found.add(name, f"seals of its rows {self._end + 1} to {seal.first_sequence - 1} are missing")
        elif stretch.previous != self._digest:
            self._found.add(name, f"the seals before its row {seal.first_sequence} were changed")
        if stretch.end != seal.last_sequence or stretch.digest(self._key) != bytes(seal.digest):
            self._found.add(name, f"the seal of its rows {seal.first_sequence} to {seal.last_sequence} was changed")
        self._end, self._digest = seal.last_sequence, bytes(seal.digest)

    def _read(self, connection: Connection) -> Iterator[Any]:
        first = 1
        while True:
            page = connection.execute(
                _SEALS, {"business_id": self._business_id, "first": first, "seals_max": _SEALS_AT_ONCE}
            ).all()
            yield from page
            if len(page) < _SEALS_AT_ONCE:
                return
            first = page[-1].first_sequence + 1


# Other rows


def _check_rows(connection: Connection, key: bytes, kind: Kind, found: Alterations, tell: Tell) -> None:
    """Compare a kind's rows with their newest seals."""
    statement = f"""
        SELECT COALESCE(rows.row_id, seal.row_id) AS row_id, rows.text, rows.state, rows.created_at,
            seal.tag AS sealed_tag, seal.state AS sealed_state, seal.sealed_at
        FROM ({select_rows(kind)}) AS rows
        FULL JOIN (
            SELECT DISTINCT ON (business_id, row_id) business_id, row_id, tag, state, sealed_at
            FROM row_seals
            WHERE kind = '{kind.name}'
            ORDER BY business_id, row_id, number DESC
        ) AS seal ON seal.business_id = rows.business_id AND seal.row_id = rows.row_id
    """  # noqa: S608 (nothing of it comes from outside)
    sealed_until = _read_sealed_until(connection, kind.name)
    late = None if sealed_until is None else sealed_until - timedelta(seconds=OVERLAP_S)
    seen = 0
    for row in _stream(connection, sa.text(statement)):
        seen += 1
        name = f"{kind.table} {row.row_id}" if kind.id_kind is None else format_id(kind.id_kind, row.row_id)
        since = f"after it was sealed ({_time(row.sealed_at)})" if row.sealed_at else ""
        if row.text is None:
            found.add(name, f"the row of {kind.table} was deleted {since}")
        elif row.sealed_tag is None:
            if late is not None and row.created_at < late:
                found.add(name, f"a row of {kind.table} that the chain does not know, though newer rows are sealed")
        elif tag_row(key, kind, row.text, row.sealed_state) != bytes(row.sealed_tag):
            found.add(name, f"the row of {kind.table} was changed {since}")
        elif row.state != row.sealed_state and not kind.may_follow(row.sealed_state, row.state):
            found.add(name, f"what had become of the row of {kind.table} was undone {since}")
    tell(f"rows of {kind.table}", seen)


def _check_row_chains(connection: Connection, key: bytes, head: Head | None, found: Alterations, tell: Tell) -> None:
    """Walk through the seals of each business in their order."""
    statement = sa.text("""
        SELECT business_id, number, kind, row_id, state, tag, digest
        FROM row_seals
        ORDER BY business_id, number
    """)
    seen = 0
    left: dict[UUID, BusinessHead] = {}
    if head is not None:
        left = {id_: each for id_, each in head.businesses.items() if each.other_rows > 0}
    for business_id, seals in groupby(_stream(connection, statement), key=lambda row: row.business_id):
        name = format_id(IdKind.BUSINESS, business_id)
        known = left.get(business_id)
        number, previous = 0, NO_DIGEST
        for seal in seals:
            seen += 1
            content = seal_content(seal.kind, seal.row_id, seal.state, bytes(seal.tag))
            is_next = seal.number == number + 1
            if not is_next or row_digest(key, business_id, seal.number, previous, content) != bytes(seal.digest):
                text = "was changed" if is_next else f"should be number {number + 1}"
                found.add(name, f"seal {seal.number} of its rows of {KINDS[seal.kind].table} {text}")
            number, previous = seal.number, bytes(seal.digest)
            if known is not None and number == known.other_rows:
                del left[business_id]
                if previous != known.other_digest and head is not None:
                    found.add(name, f"its audit log, keys and batches are not those of the head of {head.made_at}")
    for business_id in left:
        if head is not None:
            text = f"some of its audit log, keys or batches are missing, which the head of {head.made_at} has"
            found.add(format_id(IdKind.BUSINESS, business_id), text)
    tell("seals", seen)


def _check_users(connection: Connection, hash_secret: bytes, found: Alterations, tell: Tell) -> None:
    """Compare each user's hash with the one that the e-mail has."""
    statement = sa.text("SELECT business_id, id, email, hash_digest FROM payout_users")
    seen = 0
    for business_id, id_, email, hash_digest in _stream(connection, statement):
        seen += 1
        if digest_of(payout_hash(hash_secret, business_id, email)) != bytes(hash_digest):
            found.add(format_id(IdKind.PAYOUT_USER, id_), "the e-mail and the hash do not belong together")
    tell("payout users", seen)


# Rows that were numbered later than written are not quite in the order of their balances.
_USER_BALANCES = sa.text("""
    SELECT id, before + change AS expected, user_balance_after AS actual
    FROM (
        SELECT history.id, sequence, numbered_later, user_balance_after,
            CASE type WHEN 'allocation' THEN amount ELSE -amount END AS change,
            COALESCE(lag(user_balance_after) OVER own, 0) AS before,
            COALESCE(lag(sequence) OVER own, CASE WHEN numbered_later = 0 THEN 1 ELSE 0 END) AS sequence_before
        FROM payout_transactions AS history
        JOIN businesses ON businesses.id = business_id
        WHERE payout_user_id IS NOT NULL
        WINDOW own AS (PARTITION BY payout_user_id ORDER BY sequence)
    ) AS rows
    WHERE sequence_before > numbered_later AND user_balance_after IS DISTINCT FROM before + change
    LIMIT 1000
""")


def _check_user_balances(connection: Connection, found: Alterations) -> None:
    """Compute each user's running balance anew."""
    for id_, expected, actual in connection.execute(_USER_BALANCES):
        text = f"the user's balance after it should be {expected} cents, and is {actual}"
        found.add(format_id(IdKind.TRANSACTION, id_), text)


# Rows that were paid already are kept apart, by their numbers in the submission; the others follow each other.
_BATCHES = sa.text("""
    SELECT payout_batches.business_id, payout_batches.id, request_digest, already_paid, position, email, items.amount,
        reference
    FROM payout_batches
    LEFT JOIN payout_batch_items AS items
        ON items.business_id = payout_batches.business_id AND batch_id = payout_batches.id
    ORDER BY payout_batches.business_id, payout_batches.id, position
""")
_ALREADY_PAID = sa.text("""
    SELECT row, email, amount, reference
    FROM payout_batch_already_paid
    WHERE business_id = :business_id AND batch_id = :batch_id
""")
_PAID_ROWS = sa.text("""
    SELECT items.batch_id, items.id, items.position
    FROM payout_batch_items AS items
    JOIN payout_batches AS batch ON batch.business_id = items.business_id AND batch.id = items.batch_id
    JOIN payout_transactions AS history ON history.business_id = items.business_id AND history.id = items.id
    LEFT JOIN payout_users AS payout_user
        ON payout_user.business_id = items.business_id AND payout_user.id = history.payout_user_id
    WHERE items.position < batch.processed
        AND (payout_user.email IS DISTINCT FROM items.email
            OR payout_user.hash_digest IS DISTINCT FROM items.hash_digest)
    ORDER BY items.batch_id, items.position
    LIMIT 1000
""")


def _check_batches(connection: Connection, found: Alterations, tell: Tell) -> None:
    """Compare each batch's rows with what was handed in, and paid rows with whom they paid."""
    for batch_id, _, position in connection.execute(_PAID_ROWS):
        text = f"row {position} is paid, and its e-mail or hash is not that of the user who got it"
        found.add(format_id(IdKind.BATCH, batch_id), text)
    seen = 0
    for batch_id, group in groupby(_stream(connection, _BATCHES), key=lambda row: row.id):
        items = list(group)
        seen += len(items)
        if digest_rows(_read_submitted(connection, items)) != bytes(items[0].request_digest):
            found.add(format_id(IdKind.BATCH, batch_id), "its rows are not those that were handed in")
    tell("rows of payout batches", seen)


def _read_submitted(connection: Connection, items: list[Any]) -> list[BatchRow]:
    """Return a batch's rows as they were handed in."""
    to_pay = iter([BatchRow(item.email, item.amount, item.reference) for item in items if item.position is not None])
    first = items[0]
    if not first.already_paid:
        return list(to_pay)
    key = {"business_id": first.business_id, "batch_id": first.id}
    paid = {row.row: BatchRow(*row[1:]) for row in connection.execute(_ALREADY_PAID, key)}
    submitted: list[BatchRow] = []
    for row in to_pay:
        while len(submitted) in paid:
            submitted.append(paid[len(submitted)])
        submitted.append(row)
    while len(submitted) in paid:
        submitted.append(paid[len(submitted)])
    return submitted


def _read_sealed_until(connection: Connection, kind: str) -> datetime | None:
    query = sa.text("SELECT sealed_until FROM seal_progress WHERE kind = :kind")
    found: datetime | None = connection.execute(query, {"kind": kind}).scalar_one_or_none()
    return found


def _stream(connection: Connection, statement: sa.TextClause) -> Iterator[Any]:
    result = connection.execution_options(stream_results=True, max_row_buffer=5_000).execute(statement)
    try:
        yield from result
    finally:
        result.close()


def _time(value: datetime) -> str:
    return value.isoformat(timespec="seconds").replace("+00:00", "Z")
