"""CSV: the separator is found by the header; rows come with the line on which they begin."""

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from api.batches.reader.columns import Mapping, is_header
from api.batches.reader.mistakes import FileMistakeError, Reason

SEPARATORS = (",", ";", "\t")
HEADER_ROWS_MAX = 10
"""Among so many first rows a header is looked for."""

_SEP_LINE = re.compile(r"\"?sep=(.)\"?\s*\Z", re.IGNORECASE)

Row = tuple[int, Sequence[str]]


@dataclass(frozen=True, slots=True)
class CsvTable:
    """A CSV file: its separator, its header, where one of the first rows is one, and its rows."""

    text: str
    separator: str
    header_at: int | None
    """Which row is the header, of those that are not blank, counted from 0; None where none is found."""
    has_sep_line: bool

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are not blank, each with the line on which it begins.

        Raises:
            FileMistakeError: a row is not CSV.

        """
        return _read(self.text, self.separator, skips_first=self.has_sep_line)


def open_csv(text: str, mapping: Mapping) -> CsvTable:
    """Find out how a CSV file separates its columns, and where it names them.

    Raises:
        FileMistakeError: it names a separator that is not read.

    """
    given = _read_sep_line(text)
    # A header that somebody explained by position is the first row; its separator is found as it was before.
    named = Mapping() if mapping.is_by_position else mapping
    found: list[tuple[int, int, str]] = []
    widths: list[tuple[int, int, str]] = []
    for order, separator in enumerate((given,) if given else SEPARATORS):
        head = _read_head(text, separator, has_sep_line=given is not None)
        if head:
            widths.append((-len(head[0]), order, separator))
        found += [(at, order, separator) for at, cells in enumerate(head) if is_header(cells, named)][:1]
    if found:
        header_at, _, separator = min(found)
        return CsvTable(text, separator, 0 if mapping.is_by_position else header_at, given is not None)
    separator = min(widths)[2] if widths else given or ","
    return CsvTable(text, separator, 0 if mapping.is_by_position else None, given is not None)


def _read_sep_line(text: str) -> str | None:
    first = text[:20].splitlines()[0] if text else ""
    match = _SEP_LINE.match(first)
    if match is None:
        return None
    if match[1] not in SEPARATORS:
        raise FileMistakeError(Reason.SEPARATOR_UNKNOWN, 1, separator=match[1])
    return match[1]


def _read_head(text: str, separator: str, *, has_sep_line: bool) -> list[Sequence[str]]:
    """Return the first rows as a separator makes them, up to one that is not CSV."""
    head: list[Sequence[str]] = []
    try:
        for _, cells in itertools.islice(_read(text, separator, skips_first=has_sep_line), HEADER_ROWS_MAX):
            head.append(cells)
    except FileMistakeError:
        pass
    return head


def _read(text: str, separator: str, *, skips_first: bool) -> Iterator[Row]:
    lines = io.StringIO(text, newline="")
    offset = 1
    if skips_first:
        lines.readline()
        offset = 2
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        line = reader.line_num + offset
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise FileMistakeError(Reason.NOT_CSV, line, error=_describe(error)) from None
        if cells is None:
            return
        if "".join(cells).strip():
            yield line, cells


def _describe(error: csv.Error) -> str:
    text = str(error)
    if text == "unexpected end of data":
        return "a quote is opened and never closed"
    if text.startswith("field larger"):
        return "a cell is longer than 131,072 characters, perhaps for a quote that is never closed"
    return "after a closing quote comes neither a separator nor the end of the line"
