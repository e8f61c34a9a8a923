"""The head of the history: how far each business's seals go, and their last digests, signed for keeping elsewhere.

Seals show what was rewritten, but not what was cut off at the end together with its seals: a truncated table, a backup
that was restored, a replica that lacked the last transactions. A head that is kept elsewhere shows that too.
"""

import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from core.credentials import head_key
from core.database.tables import installation
from core.errors import UserError
from core.ids import IdKind, format_id, parse_id

_VERSION = 1
_UNKNOWN = "the database does not say which installation it is: its row in `installation` is gone"


class HeadError(UserError):
    """A head cannot be compared with; the text says why."""


class _Business(msgspec.Struct, frozen=True):
    id: str
    history_rows: int
    history_digest: str
    other_rows: int
    other_digest: str


class _Document(msgspec.Struct, frozen=True):
    version: int
    installation: str
    made_at: str
    businesses: list[_Business]
    signature: str


@dataclass(frozen=True, slots=True)
class BusinessHead:
    """How far a business's seals go: the number of the last row of its history and of its other rows, with digests."""

    history_rows: int
    history_digest: bytes
    other_rows: int
    other_digest: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """A head that was read: it was signed with this installation's key."""

    made_at: str
    businesses: dict[UUID, BusinessHead]


_READ = sa.text("""
    SELECT id, COALESCE(history.last_sequence, 0), COALESCE(history.digest, ''), COALESCE(other.number, 0),
        COALESCE(other.digest, '')
    FROM businesses
    LEFT JOIN LATERAL (
        SELECT last_sequence, digest FROM history_seals
        WHERE business_id = businesses.id ORDER BY first_sequence DESC LIMIT 1
    ) AS history ON true
    LEFT JOIN LATERAL (
        SELECT number, digest FROM row_seals WHERE business_id = businesses.id ORDER BY number DESC LIMIT 1
    ) AS other ON true
    ORDER BY id
""")


def read_installation(connection: Connection) -> UUID | None:
    """Return which installation this is."""
    found: UUID | None = connection.execute(sa.select(installation.c.id)).scalar_one_or_none()
    return found


def make_head(connection: Connection, hash_secret: bytes) -> dict[str, Any]:
    """Return the signed head of what is sealed, as a JSON document.

    Raises:
        HeadError: the database does not say which installation it is.

    """
    id_ = read_installation(connection)
    if id_ is None:
        raise HeadError(_UNKNOWN)
    document = {
        "version": _VERSION,
        "installation": id_.hex,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "businesses": [
            {
                "id": format_id(IdKind.BUSINESS, business_id),
                "history_rows": rows,
                "history_digest": bytes(digest).hex(),
                "other_rows": other_rows,
                "other_digest": bytes(other_digest).hex(),
            }
            for business_id, rows, digest, other_rows, other_digest in connection.execute(_READ)
        ],
    }
    return document | {"signature": _sign(hash_secret, document)}


def read_head(connection: Connection, hash_secret: bytes, text: bytes) -> Head:
    """Read a head that was kept elsewhere.

    Raises:
        HeadError: it is none, its signature is broken, or it is another installation's.

    """
    try:
        document = msgspec.json.decode(text, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        _fail("this is no head of a history, as `payouts head` prints it")
    if document.version != _VERSION:
        _fail(f"the head has version {document.version}, which this version of Payouts does not know")
    here = read_installation(connection)
    if here is None:
        _fail(_UNKNOWN)
    if document.installation != here.hex:
        _fail(f"the head is another installation's: {document.installation}, and this is {here.hex}")
    unsigned = msgspec.to_builtins(document)
    del unsigned["signature"]
    if not hmac.compare_digest(_sign(hash_secret, unsigned).encode(), document.signature.encode()):
        _fail("the head's signature is broken: the file was changed, or it was signed with another hash secret")
    businesses: dict[UUID, BusinessHead] = {}
    for each in document.businesses:
        id_ = parse_id(IdKind.BUSINESS, each.id)
        if id_ is None:
            _fail("the head names a business by what is no id")
        businesses[id_] = BusinessHead(
            each.history_rows, bytes.fromhex(each.history_digest), each.other_rows, bytes.fromhex(each.other_digest)
        )
    return Head(document.made_at, businesses)


def _sign(hash_secret: bytes, document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hmac.digest(head_key(hash_secret), text.encode(), "sha256").hex()


def _fail(text: str) -> NoReturn:
    raise HeadError(text)
