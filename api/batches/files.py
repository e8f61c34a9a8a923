"""The file of `payouts push`: read, checked row by row, and split into parts with keys made of the rows alone."""

import codecs
import csv
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import msgspec

from api.batches.rows import FileError, check_header
from core.batches.payout_batch import BODY_MAX_BYTES, REFERENCE_MAX_CHARACTERS, ROWS_MAX
from core.emails import normalise_email
from core.errors import UserError
from core.money import ALLOCATION_MAX_CENTS, format_decimal

_Fields = dict[str, Any]

_MISTAKES_SHOWN_MAX = 20
_CHECK_TIME_EVERY = 1_000
_FIELDS = ("email", "amount", "reference")
_SHOWN_MAX_CHARACTERS = 40
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\Z")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class PushError(UserError):
    """The file was not pushed, or not all of its rows were paid; the text says why."""


@dataclass(frozen=True, slots=True)
class PushLimits:
    """What a push keeps to.

    The first two decide which rows share a batch, and so what the idempotency keys stand for: change them, and an
    interrupted run of before pays again.
    """

    rows_max: int = ROWS_MAX
    body_max_bytes: int = BODY_MAX_BYTES
    patience_s: float = 60.0
    """For so long, calls that fail in a way that passes are made again."""
    first_patience_s: float = 10.0
    """The same before the server has answered at all: its address may be wrong."""
    poll_s: float = 0.5
    idle_notice_s: float = 15.0
    """After so long without progress it is said that the batches wait."""


class PushRow(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A row as it is sent: normalised e-mail, amount in cents, and the business's own reference."""

    email: str
    amount: int
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class PushFile:
    """A file's rows, all of them checked, and the line on which each begins, counted from 1."""

    path: Path
    rows: list[PushRow]
    lines: list[int]

    @property
    def results_path(self) -> Path:
        """Where the results go."""
        return self.path.with_name(f"{self.path.name}.results.csv")


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one batch, from `first` up to `end`, counted from 0; `number` counts from 1."""

    number: int
    count: int
    first: int
    end: int
    idempotency_key: str


class _FieldError(Exception):
    """A field of a row is wrong; the text says how."""


class _Object(list[tuple[str, Any]]):
    """A JSON object as it is written: a name may be there twice."""


def read_file(path: Path, *, in_dollars: bool) -> PushFile:
    """Read and check a CSV or NDJSON file; amounts are in cents, or in dollars with up to two decimals.

    Raises:
        PushError: with what is wrong, by line.

    """
    checker = _Checker(in_dollars=in_dollars, dollars_hint="with --decimal")
    try:
        with path.open("rb") as file:
            for _ in checker.add_all(path, file):
                pass
    except OSError as error:
        text = f"{path} cannot be read: {error.strerror}"
        raise PushError(text) from None
    if checker.mistakes:
        raise PushError(_write_mistakes(checker.mistakes))
    return PushFile(path, checker.rows, checker.lines)


def check_upload(
    name: str, body: bytes, *, in_dollars: bool, mistakes_max: int, check_time: Callable[[], None]
) -> tuple[list[PushRow], list[str]]:
    """Check the rows of a file that somebody sent as one batch; return them, and the first mistakes, by line.

    Every thousand rows, `check_time` may raise to end it.
    """
    checker = _Checker(in_dollars=in_dollars, dollars_hint="in the form below")
    for count in checker.add_all(Path(name), BufferedReader(BytesIO(body))):
        if count % _CHECK_TIME_EVERY == 1:
            check_time()
        if count > ROWS_MAX:
            checker.refuse(f"The file has more than {ROWS_MAX:,} rows, the most that one batch may have.")
            break
        if len(checker.mistakes) >= mistakes_max:
            break
    return checker.rows, checker.mistakes


def _write_mistakes(mistakes: list[str]) -> str:
    more = len(mistakes) - _MISTAKES_SHOWN_MAX
    end = [f"and {more:,} more"] if more > 0 else []
    return "\n".join([*mistakes[:_MISTAKES_SHOWN_MAX], *end, "Nothing was sent."])


def _is_ndjson(path: Path, file: BufferedReader) -> bool:
    suffix = path.suffix.lower()
    if suffix in {".csv", ".ndjson", ".jsonl"}:
        return suffix != ".csv"
    return file.peek(1).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{"


def _decode_lines(file: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            text = f"Line {number} is not valid UTF-8."
            raise FileError(text) from None


def _read_csv(lines: Iterator[str]) -> Iterator[tuple[int, _Fields | str]]:
    """Yield the line of each row, and its cells by column or what is wrong with it."""
    reader = csv.reader(lines, strict=True)
    columns: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise FileError(f"Line {line} is not CSV: {_describe_csv_error(error)}.") from None  # noqa: EM102
        if cells is None:
            break
        if len(cells) <= 1 and not "".join(cells).strip():
            continue  # a blank line
        if not columns:
            columns = check_header(cells, line)
        elif len(cells) != len(columns):
            yield line, f"it has {len(cells)} cells, and there are {len(columns)} columns"
        else:
            yield line, dict(zip(columns, cells, strict=True))
    if not columns:
        text = "The file is empty; its first line must name the columns: email,amount or email,amount,reference."
        raise FileError(text)


def _read_ndjson(lines: Iterator[str]) -> Iterator[tuple[int, _Fields | str]]:
    """Yield the line of each row, and its fields or what is wrong with it."""
    for line, text in enumerate(lines, 1):
        if text.strip():
            yield line, _parse_object(text)


def _parse_object(text: str) -> _Fields | str:
    """Return the fields of a JSON object; numbers stay as they are written, for they are exact."""
    try:
        pairs = json.loads(text, object_pairs_hook=_Object, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not isinstance(pairs, _Object):
        return "it is not a JSON object"
    fields: _Fields = {}
    for name, value in ((name.strip().lower(), value) for name, value in pairs):
        if name not in _FIELDS:
            return f"the field {_show(name)} is unknown; the fields are email, amount and reference"
        if name in fields:
            return f"it names the field {name} twice"
        fields[name] = value
    return fields


class _Checker:
    """Checks row after row, and collects the good ones and what is wrong with the others."""

    def __init__(self, *, in_dollars: bool, dollars_hint: str) -> None:
        self.rows: list[PushRow] = []
        self.lines: list[int] = []
        self.mistakes: list[str] = []
        self.count = 0
        self._in_dollars = in_dollars
        self._dollars_hint = dollars_hint
        self._line_by_reference: dict[str, int] = {}

    def add_all(self, path: Path, file: BufferedReader) -> Iterator[int]:
        """Take all rows of a file, one at a time; yield how many there are so far."""
        is_ndjson = _is_ndjson(path, file)
        lines = _decode_lines(file)
        try:
            for line, fields in _read_ndjson(lines) if is_ndjson else _read_csv(lines):
                self.add(line, fields)
                yield self.count
        except FileError as error:
            self.refuse(str(error))
        else:
            if not self.count:
                self.refuse(
                    "The file is empty." if is_ndjson else "The file has no rows, only the names of the columns."
                )

    def add(self, line: int, fields: _Fields | str) -> None:
        """Take the next row, or what is wrong with it as a whole."""
        self.count += 1
        checked = [fields] if isinstance(fields, str) else self._check(line, fields)
        if isinstance(checked, PushRow):
            self.rows.append(checked)
            self.lines.append(line)
        else:
            self.refuse(f"Line {line}: {'; '.join(checked)}.")

    def refuse(self, mistake: str) -> None:
        """Note what is wrong."""
        self.mistakes.append(mistake)

    def _check(self, line: int, fields: _Fields) -> PushRow | list[str]:
        readers: dict[str, Callable[[Any], Any]] = {
            "email": _read_email,
            "amount": self._read_amount,
            "reference": lambda value: self._read_reference(value, line),
        }
        values: _Fields = {}
        mistakes = []
        for name, read in readers.items():
            try:
                values[name] = read(fields.get(name))
            except _FieldError as error:
                mistakes.append(str(error))
        return mistakes or PushRow(**values)

    def _read_amount(self, value: Any) -> int:
        return _read_amount(value, in_dollars=self._in_dollars, dollars_hint=self._dollars_hint)

    def _read_reference(self, value: Any, line: int) -> str | None:
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if not isinstance(value, str) or "\0" in value or _SURROGATE.search(value):
            text = "the reference is not text"
            raise _FieldError(text)
        if len(value) > REFERENCE_MAX_CHARACTERS:
            text = f"the reference is longer than {REFERENCE_MAX_CHARACTERS} characters"
            raise _FieldError(text)
        first_line = self._line_by_reference.setdefault(value, line)
        if first_line != line:
            text = f"the reference {_show(value)} is on line {first_line} already"
            raise _FieldError(text)
        return value


def _read_email(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "":
        error = "the email is missing"
        raise _FieldError(error)
    is_text = isinstance(text, str) and not _SURROGATE.search(text)
    email = normalise_email(text) if is_text else None
    if email is None:
        error = f"{_show(text)} is not a valid e-mail address"
        raise _FieldError(error)
    return email


def _read_amount(value: Any, *, in_dollars: bool, dollars_hint: str) -> int:
    """Return an amount in cents from its text, which is in cents or in dollars."""
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "":
        error = "the amount is missing"
        raise _FieldError(error)
    if not isinstance(text, str) or not _NUMBER.match(text):
        error = f"the amount {_show(text)} is not a number"
        raise _FieldError(error)
    _, point, decimals = text.partition(".")
    if point and not in_dollars:
        error = f"the amount {_show(text)} has a decimal point: amounts are in cents, or {dollars_hint} in dollars"
        raise _FieldError(error)
    if len(decimals) > 2:
        error = f"the amount {_show(text)} has more than two decimals"
        raise _FieldError(error)
    cents = Decimal(text) * 100 if in_dollars else Decimal(text)
    if not 1 <= cents <= ALLOCATION_MAX_CENTS:
        error = f"the amount {_show(text)} is not from 1 to {ALLOCATION_MAX_CENTS} cents"
        if in_dollars:
            error = f"the amount {_show(text)} is not from 0.01 to {format_decimal(ALLOCATION_MAX_CENTS)} dollars"
        raise _FieldError(error)
    return int(cents)


def _show(value: Any) -> str:
    shown = ascii(value) if _SURROGATE.search(repr(value)) else repr(value)
    return shown if len(shown) <= _SHOWN_MAX_CHARACTERS else shown[:_SHOWN_MAX_CHARACTERS] + "…"


def split(rows: list[PushRow], limits: PushLimits) -> list[Part]:
    """Share rows out to batches, each with an idempotency key that only the same rows in the same batches have."""
    digest = hashlib.sha256()
    starts = [0]
    size_bytes = 0
    for index, row in enumerate(rows):
        line = msgspec.json.encode(row) + b"\n"
        digest.update(line)
        if index - starts[-1] == limits.rows_max or size_bytes + len(line) > limits.body_max_bytes:
            starts.append(index)
            size_bytes = 0
        size_bytes += len(line)
    return [
        Part(number, len(starts), first, end, f"push-{digest.hexdigest()}-{number}-of-{len(starts)}")
        for number, (first, end) in enumerate(itertools.pairwise([*starts, len(rows)]), 1)
    ]


def _describe_csv_error(error: csv.Error) -> str:
    """Say what is wrong; of one mistake, Python speaks to programmers."""
    text = str(error)
    return "lines end in LF or CR LF, not in CR alone" if text.startswith("new-line character") else text
