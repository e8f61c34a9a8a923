"""What a caller may ask a list for: parameters are read one by one, and every broken rule is reported."""

import base64
import binascii
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from api.web.idempotency import may_be_key
from api.web.validation import EMAIL_FORMAT, FieldErrors, check_reference
from core.emails import normalise_email
from core.ids import IdKind, parse_id
from core.ledger.history import Position, TransactionType
from core.money import BALANCE_MAX_CENTS

LIMIT_DEFAULT = 25
LIMIT_MAX = 100
PAGE = ("limit", "cursor")
"""What every list takes."""

_INTEGER = re.compile(r"-?[0-9]+\Z")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
# RFC 3339. In a query, a `+` that was not encoded arrives as a space.
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?)([Zz]|[-+ ][0-9]{2}:[0-5][0-9])\Z"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_USERS, _HISTORY, _BATCHES, _RESULTS = b"u", b"h", b"b", b"r"
_ROW_BYTES = 3
_TIME_BYTES = 7  # microseconds since 1970, until the year 4253

# What cursors look like: base64url of the bytes above, of which each value is a place.
USERS_CURSOR_PATTERN = "^d[Q-Za-f][A-Za-z0-9_-]{20}[AEIMQUYcgkosw048]$"
BATCHES_CURSOR_PATTERN = "^Y[g-v][A-Za-z0-9_-]{20}[AEIMQUYcgkosw048]$"
RESULTS_CURSOR_PATTERN = "^c[g-v][A-Za-z0-9_-]{3}[AQgw]$"
HISTORY_CURSOR_PATTERN = "^a[A-P][A-Za-z0-9_-]{30}$"


class Parameters:
    """Reads what a list is asked for; `errors` fills up with what is wrong, by field."""

    def __init__(self, values: Mapping[str, Any], repeated: Iterable[str] = ()) -> None:
        self._values = values
        self._repeated = set(repeated)
        self.errors: FieldErrors = {}

    @classmethod
    def from_query(cls, pairs: Iterable[tuple[str, str]], known: Collection[str]) -> "Parameters":
        """Take a query's names and values; which of several values is meant, nobody can know.

        Names that are not `known` are refused: a filter that is not applied would answer with everybody's rows.
        """
        values: dict[str, str] = {}
        repeated = []
        for name, value in pairs:
            if name in values:
                repeated.append(name)
            values[name] = value
        parameters = cls(values, repeated)
        for name in values:
            if name not in known:
                parameters._refuse(name, f"The {name} parameter is not known.")
        return parameters

    def under(self, fields: Mapping[str, Any]) -> "Parameters":
        """Return these, below the fields of a body, which count more unless they are null."""
        sent = {name: value for name, value in fields.items() if value is not None}
        below = Parameters({**self._values, **sent}, self._repeated - sent.keys())
        below.errors = {name: list(texts) for name, texts in self.errors.items()}
        return below

    def limit(self) -> int:
        """Return how many rows a page has."""
        value = self._get("limit")
        if value is None:
            return LIMIT_DEFAULT
        if isinstance(value, str) and _INTEGER.match(value):
            value = Decimal(value)
        if not isinstance(value, Decimal) or value != value.to_integral_value():
            self._refuse("limit", "The limit must be an integer.")
        elif value < 1:
            self._refuse("limit", "The limit must be at least 1.")
        elif value > LIMIT_MAX:
            self._refuse("limit", f"The limit may not be greater than {LIMIT_MAX}.")
        else:
            return int(value)
        return LIMIT_DEFAULT

    def users_cursor(self) -> UUID | None:
        """Return the place where a page of payout users goes on; None for the first page."""
        payload = self._cursor(_USERS, 16)
        return None if payload is None else UUID(bytes=payload)

    def batches_cursor(self) -> UUID | None:
        """Return the place where a page of payout batches goes on; None for the first page."""
        payload = self._cursor(_BATCHES, 16)
        return None if payload is None else UUID(bytes=payload)

    def results_cursor(self) -> int | None:
        """Return the row after which a page of a batch's rows goes on; None for the first page."""
        payload = self._cursor(_RESULTS, _ROW_BYTES)
        return None if payload is None else int.from_bytes(payload)

    def history_cursor(self) -> Position | None:
        """Return the place where a page of transactions goes on; None for the first page."""
        payload = self._cursor(_HISTORY, _TIME_BYTES + 16)
        if payload is None:
            return None
        created_at = _EPOCH + timedelta(microseconds=int.from_bytes(payload[:_TIME_BYTES]))
        return Position(created_at, UUID(bytes=payload[_TIME_BYTES:]))

    def _cursor(self, kind: bytes, length: int) -> bytes | None:
        text = self._get("cursor")
        if text is None:
            return None
        payload = _decode_cursor(kind, text)
        if payload is None or len(payload) != length:
            self._refuse("cursor", "The cursor is invalid.")
            return None
        return payload

    def email(self) -> str | None:
        """Return the normalised e-mail that is looked for."""
        value = self._get("email")
        if value is None:
            return None
        email = normalise_email(value.strip()) if isinstance(value, str) else None
        if email is None:
            self._refuse("email", EMAIL_FORMAT)
        return email

    def type(self) -> TransactionType | None:
        """Return the type of transactions that is looked for."""
        value = self._get("type")
        if value is None:
            return None
        try:
            return TransactionType(value)
        except ValueError:
            self._refuse("type", "The selected type is invalid.")
            return None

    def user(self) -> UUID | None:
        """Return the payout user whose transactions are looked for."""
        value = self._get("user")
        if value is None:
            return None
        id_ = parse_id(IdKind.PAYOUT_USER, value)
        if id_ is None:
            self._refuse("user", "The selected user is invalid.")
        return id_

    def reference(self) -> str | None:
        """Return the reference that is looked for."""
        value = self._get("reference")
        if value is None:
            return None
        reference, errors = check_reference(value)
        if reference is None:
            self.errors.setdefault("reference", []).extend(errors or ["The reference may not be empty."])
        return reference

    def idempotency_key(self) -> str | None:
        """Return the idempotency key that is looked for."""
        value = self._get("idempotency_key")
        if value is None:
            return None
        if not isinstance(value, str) or not may_be_key(value):
            self._refuse("idempotency_key", "The idempotency_key must be 1 to 255 visible ASCII characters.")
            return None
        return value

    def amount(self, name: str) -> int | None:
        """Return a bound of the amounts that are looked for, in cents."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not _INTEGER.match(value):
            self._refuse(name, f"The {name} must be an integer.")
        elif not 0 <= Decimal(value) <= BALANCE_MAX_CENTS:
            self._refuse(name, f"The {name} must be between 0 and {BALANCE_MAX_CENTS}.")
        else:
            return int(value)
        return None

    def since(self) -> datetime | None:
        """Return `from`: the moment itself is included, and a date begins at midnight in UTC."""
        value = self._get("from")
        return None if value is None else self._moment("from", value)

    def until(self) -> datetime | None:
        """Return the moment before which `to` ends: a moment is left out, a date is included as a whole."""
        value = self._get("to")
        if value is None:
            return None
        moment = self._moment("to", value)
        if moment is None or not _DATE.match(value):
            return moment
        try:
            return moment + timedelta(days=1)
        except OverflowError:
            return None  # the last day there is ends nothing

    def _moment(self, name: str, value: str) -> datetime | None:
        try:
            if _DATE.match(value):
                return datetime.combine(date.fromisoformat(value), datetime.min.time(), UTC)
            if match := _TIME.match(value):
                return datetime.fromisoformat(match[1].upper() + match[2].upper().replace(" ", "+"))
        except ValueError:
            pass
        self._refuse(name, f"The {name} is not a valid date.")
        return None

    def _get(self, name: str) -> Any:
        if name in self._repeated:
            self._refuse(name, f"The {name} may be given only once.")
            return None
        return self._values.get(name)

    def _refuse(self, name: str, text: str) -> None:
        self.errors.setdefault(name, []).append(text)


def users_cursor(last: UUID) -> str:
    """Write the position after a payout user."""
    return _encode_cursor(_USERS + last.bytes)


def batches_cursor(last: UUID) -> str:
    """Write the position after a payout batch."""
    return _encode_cursor(_BATCHES + last.bytes)


def results_cursor(last: int) -> str:
    """Write the position after a row of a payout batch."""
    return _encode_cursor(_RESULTS + last.to_bytes(_ROW_BYTES))


def history_cursor(last: Position) -> str:
    """Write the position after a transaction."""
    since_epoch = last.created_at - _EPOCH
    microseconds = since_epoch // timedelta(microseconds=1)
    return _encode_cursor(_HISTORY + microseconds.to_bytes(_TIME_BYTES) + last.id.bytes)


def _encode_cursor(payload: bytes) -> str:
    return base64.urlsafe_b64encode(payload).rstrip(b"=").decode()


def _decode_cursor(kind: bytes, text: Any) -> bytes | None:
    try:
        payload = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, TypeError, binascii.Error):
        return None
    # One spelling only.
    return payload.removeprefix(kind) if payload.startswith(kind) and _encode_cursor(payload) == text else None
