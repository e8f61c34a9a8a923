"""The rows of a payout batch, as JSON, CSV or NDJSON: all of them are checked before anything is accepted.

Errors are by field, as everywhere: `allocations.17.email` is that of row 17, counted from 0. What is wrong with the
file as a whole is said of `allocations`, with the line, counted from 1.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from enum import StrEnum
from typing import Any

import msgspec

from api.web.validation import FieldErrors, NotAnObject, check_amount, check_email, parse_object
from core.batches.payout_batch import REFERENCE_MAX_CHARACTERS, ROWS_MAX, BatchRow
from core.emails import normalise_email
from core.money import ALLOCATION_MAX_CENTS

ROWS_REPORTED_MAX = 100
_CHECK_TIME_EVERY = 1_000
_COLUMNS = ("email", "amount", "reference")
_INTEGER = re.compile(r"[+-]?[0-9]+\Z")
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class BatchFormat(StrEnum):
    """How the rows are written; the media type tells, and JSON is the default."""

    JSON = "application/json"
    CSV = "text/csv"
    NDJSON = "application/x-ndjson"


NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/jsonlines")


class _Body(msgspec.Struct):
    allocations: list[msgspec.Raw]


class _Row(msgspec.Struct):
    email: str
    amount: int
    reference: str | None = None


_row_decoder = msgspec.json.Decoder(_Row)


class FileError(Exception):
    """The file as a whole is wrong; the text says why, with the line."""


def find_format(content_type: str) -> BatchFormat:
    """Return the format that a `Content-Type` names."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == BatchFormat.CSV:
        return BatchFormat.CSV
    return BatchFormat.NDJSON if media_type in NDJSON_TYPES else BatchFormat.JSON


def parse_rows(
    body: bytes, written_as: BatchFormat, check_time: Callable[[], None] = lambda: None
) -> list[BatchRow] | FieldErrors | NotAnObject:
    """Read and check all rows of a batch; every thousand rows, `check_time` may raise to end it."""
    checker = RowChecker()
    try:
        _refuse_invalid_utf_8(body)
        if written_as is BatchFormat.CSV:
            rows: Iterable[bytes | dict[str, Any]] = _read_csv(body)
        elif written_as is BatchFormat.NDJSON:
            rows = _read_ndjson(body)
        else:
            try:
                rows = map(bytes, msgspec.json.decode(body, type=_Body).allocations)
            except msgspec.ValidationError:
                return _explain_json(body)
            except (msgspec.DecodeError, RecursionError):
                return NotAnObject()
        for row in rows:
            if checker.count % _CHECK_TIME_EVERY == 0:
                check_time()
            checker.add(row)
        if not checker.count:
            text = "The allocations field is required."
            raise FileError(text)
    except FileError as error:
        return {"allocations": [str(error)]}
    return checker.errors or checker.rows


def _explain_json(body: bytes) -> FieldErrors | NotAnObject:
    fields = parse_object(body)
    if isinstance(fields, NotAnObject):
        return fields
    if fields.get("allocations") is None:
        return {"allocations": ["The allocations field is required."]}
    return {"allocations": ["The allocations must be an array."]}


class RowChecker:
    """Checks row after row, and keeps what is wrong with the first hundred that are."""

    def __init__(self) -> None:
        self.rows: list[BatchRow] = []
        self.errors: FieldErrors = {}
        self.count = 0
        self._wrong_rows = 0
        self._references: set[str] = set()

    def add(self, row: bytes | dict[str, Any]) -> None:
        """Take the next row: JSON, or fields."""
        if self.count == ROWS_MAX:
            text = f"The allocations may not have more than {ROWS_MAX} items."
            raise FileError(text)
        if self._wrong_rows >= ROWS_REPORTED_MAX:
            self.count += 1  # what there is to say is said
            return
        if isinstance(row, bytes):
            checked = self._check_quickly(row)
            if checked is None:
                fields = parse_object(row)
                checked = self._check(None if isinstance(fields, NotAnObject) else fields)
        else:
            checked = self._check(row)
        self.count += 1
        if checked is not None:
            self.rows.append(checked)

    def _check_quickly(self, row: bytes) -> BatchRow | None:
        """Check a row that is as it should be; None where it takes a closer look."""
        try:
            decoded = _row_decoder.decode(row)
        except (msgspec.DecodeError, RecursionError):
            return None
        email = normalise_email(decoded.email.strip())
        if email is None or not 1 <= decoded.amount <= ALLOCATION_MAX_CENTS:
            return None
        if decoded.reference is not None:
            return None if self._is_wrong(decoded.reference) else self._with_reference(email, decoded)
        return BatchRow(email, decoded.amount)

    def _with_reference(self, email: str, decoded: _Row) -> BatchRow:
        assert decoded.reference is not None  # noqa: S101 (the caller looked)
        self._references.add(decoded.reference)
        return BatchRow(email, decoded.amount, decoded.reference)

    def _is_wrong(self, reference: str) -> bool:
        is_long = len(reference) > REFERENCE_MAX_CHARACTERS
        return is_long or not reference.strip() or "\0" in reference or reference in self._references

    def _check(self, row: dict[str, Any] | None) -> BatchRow | None:
        name = f"allocations.{self.count}"
        if row is None:
            self._refuse({name: [f"The {name} must be an object."]})
            return None
        email, email_errors = check_email(row.get("email"), f"{name}.email")
        amount, amount_errors = check_amount(row.get("amount"), f"{name}.amount")
        reference, reference_errors = self._check_reference(row.get("reference"), f"{name}.reference")
        errors = {
            f"{name}.email": email_errors,
            f"{name}.amount": amount_errors,
            f"{name}.reference": reference_errors,
        }
        errors = {field: texts for field, texts in errors.items() if texts}
        if errors:
            self._refuse(errors)
            return None
        return BatchRow(email, amount, reference)

    def _check_reference(self, value: Any, name: str) -> tuple[str | None, list[str]]:
        if value is None or (isinstance(value, str) and not value.strip()):
            return None, []
        if not isinstance(value, str) or "\0" in value:
            return None, [f"The {name} must be a string."]
        errors = []
        if len(value) > REFERENCE_MAX_CHARACTERS:
            errors.append(f"The {name} may not be greater than {REFERENCE_MAX_CHARACTERS} characters.")
        if value in self._references:
            errors.append(f"The {name} has a duplicate value.")
        self._references.add(value)
        return value, errors

    def _refuse(self, errors: FieldErrors) -> None:
        self._wrong_rows += 1
        if self._wrong_rows <= ROWS_REPORTED_MAX:
            self.errors.update(errors)


def _refuse_invalid_utf_8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        text = f"Line {line} is not valid UTF-8."
        raise FileError(text) from None


def _read_ndjson(body: bytes) -> Iterator[bytes]:
    """Yield the lines that are not blank."""
    for number, line in enumerate(body.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        stripped = line.strip()
        if not stripped:
            continue
        try:
            msgspec.json.decode(stripped, type=msgspec.Raw)
        except (msgspec.DecodeError, RecursionError):
            text = f"Line {number} is not JSON."
            raise FileError(text) from None
        yield stripped


def _read_csv(body: bytes) -> Iterator[dict[str, Any]]:
    """Yield rows by column name; amounts as decimals where they are integers, else as they are."""
    text = io.StringIO(body.decode("utf-8-sig"), newline="")
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            error = "The file is empty; its first line must name the columns: email,amount or email,amount,reference."
            raise FileError(error)
        columns = check_header(header)
        for row in reader:
            if not row:
                continue  # a blank line
            if len(row) != len(columns):
                error = f"Line {reader.line_num} has {len(row)} cells, and the first line names {len(columns)} columns."
                raise FileError(error)
            fields: dict[str, Any] = dict(zip(columns, row, strict=True))
            amount = fields["amount"].strip()
            # An amount with a decimal point is most likely in dollars, and must not become cents.
            fields["amount"] = Decimal(amount) if _INTEGER.match(amount) else [amount] if amount else None
            yield fields
    except csv.Error as error:
        raise FileError(f"Line {reader.line_num} is not CSV: {error}.") from None  # noqa: EM102


def check_header(header: list[str], line: int = 1) -> list[str]:
    """Return the columns that a CSV file's header, on line `line`, names: `email`, `amount`, perhaps `reference`.

    Raises:
        FileError: a column is missing, unknown or named twice, or something other than commas stands between them.

    """
    columns = [name.strip().lower() for name in header]
    if len(columns) == 1:
        for delimiter, name in _DELIMITERS.items():
            if delimiter in columns[0]:
                text = f"Line {line} separates columns by {name}; CSV separates them by commas."
                raise FileError(text)
    for name in columns:
        if name not in _COLUMNS:
            text = f"Line {line} names an unknown column, {name[:40]!r}; the columns are email, amount and reference."
            raise FileError(text)
        if columns.count(name) > 1:
            text = f"Line {line} names the column {name} twice."
            raise FileError(text)
    for name in ("email", "amount"):
        if name not in columns:
            text = f"Line {line} does not name the column {name}."
            raise FileError(text)
    return columns
