"""JSON and NDJSON: objects with the fields email, amount and reference, each once and nothing else."""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from api.batches.reader.mistakes import FileMistakeError, Reason

_LINE_END = re.compile(rb"\r\n|\n|\r")
# A name may be written with escapes, such as `all\\u006fcations`.
_ESCAPED_NAME = re.compile(rb'\\u[0-9a-fA-F]{4}[^"\\]*"[ \t\r\n]*:')
_RAW = msgspec.json.Decoder(msgspec.Raw)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


class _Body(msgspec.Struct):
    allocations: list[msgspec.Raw]


_BODY = msgspec.json.Decoder(_Body)


class NotAnObjectError(Exception):
    """A body of the API is not a JSON object."""


class JsonNumber(str):
    """A number as it is written in JSON, such as `100.0`."""

    __slots__ = ()


JsonRow = tuple[int, bytes]
"""The line on which an object begins, or 0 where nobody asks for it, and the object as it is written."""


class Pairs(list[tuple[str, Any]]):
    """The fields of a JSON object in their order; a name may be there twice."""


def parse_pairs(text: bytes) -> Pairs | None:
    """Return the fields of a JSON object, numbers as they are written; None where it is something else.

    Raises:
        ValueError: it is not JSON.

    """
    try:
        _RAW.decode(text)  # which refuses halves of characters, as the first look at a body does
        value = json.loads(
            text, object_pairs_hook=Pairs, parse_int=JsonNumber, parse_float=JsonNumber, parse_constant=_refuse
        )
    except (msgspec.DecodeError, RecursionError):
        raise ValueError from None
    return value if isinstance(value, Pairs) else None


def read_body(body: bytes) -> Iterator[JsonRow]:
    """Yield the rows of an API call's `{"allocations": [...]}`.

    Raises:
        NotAnObjectError: it is no JSON object.
        FileMistakeError: it names no rows, or names them twice.

    """
    try:
        rows = _BODY.decode(body).allocations
    except msgspec.ValidationError:
        raise _explain_body(body) from None
    except (msgspec.DecodeError, RecursionError):
        raise NotAnObjectError from None
    if _names_allocations_twice(body):
        raise FileMistakeError(Reason.FIELD_REPEATED, name="allocations")
    return ((0, bytes(row)) for row in rows)


def read_document(body: bytes) -> Iterator[JsonRow] | None:
    """Yield the rows of a file that is one JSON array, or an object with one; None where it is neither."""
    try:
        rows = _LIST.decode(body) if body.lstrip().startswith(b"[") else _BODY.decode(body).allocations
    except (msgspec.DecodeError, RecursionError):
        return None
    if _names_allocations_twice(body):
        raise FileMistakeError(Reason.FIELD_REPEATED, 1, name="allocations")
    return _with_lines(body, rows)


def read_lines(body: bytes) -> Iterator[JsonRow]:
    """Yield the lines of NDJSON that are not blank. Whether each is JSON is for the reader of the row to find out."""
    if b"\r" in body:
        body = _LINE_END.sub(b"\n", body)
    for line, text in enumerate(body.split(b"\n"), 1):
        stripped = text.strip(b" \t")
        if stripped:
            yield line, stripped


def _with_lines(body: bytes, rows: list[msgspec.Raw]) -> Iterator[JsonRow]:
    line, end = 1, 0
    for row in rows:
        text = bytes(row)
        start = body.index(text, end)
        line += len(_LINE_END.findall(body, end, start))
        yield line, text
        line += len(_LINE_END.findall(text))
        end = start + len(text)


def _explain_body(body: bytes) -> Exception:
    try:
        pairs = parse_pairs(body)
    except ValueError:
        pairs = None
    if pairs is None:
        return NotAnObjectError()
    rows = [value for name, value in pairs if name == "allocations"]
    if not rows or rows[-1] is None:
        return FileMistakeError(Reason.NO_ROWS)
    return FileMistakeError(Reason.NOT_AN_OBJECT, name="allocations")


def _names_allocations_twice(body: bytes) -> bool:
    if body.count(b'"allocations"') < 2 and not _ESCAPED_NAME.search(body):
        return False
    try:
        pairs = parse_pairs(body)
    except ValueError:
        return False
    return pairs is not None and [name for name, _ in pairs].count("allocations") > 1


def _refuse(name: str) -> Any:
    raise ValueError(name)
