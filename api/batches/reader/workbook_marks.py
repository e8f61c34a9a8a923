"""What a sheet's XML says and a reader of values does not: hidden rows and columns, errors, formulas, styles."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from api.batches.reader.mistakes import FileMistakeError, Reason

COLUMNS_MAX = 16_384
CELLS_MAX = 4_000_000
"""A sheet of more cells, empty ones between others included, is not read: each takes memory."""

_CHECK_TIME_EVERY_BYTES = 1 << 20
_CELL = re.compile(r"([A-Z]{1,3})([0-9]{1,7})\Z")


@dataclass(slots=True)
class Marks:
    """What is remarkable about one sheet; rows and columns count from 0."""

    hidden_rows: set[int] = field(default_factory=set)
    hidden_columns: list[tuple[int, int]] = field(default_factory=list)
    """First and last column of each hidden range."""
    are_rows_hidden: bool = False
    """Rows are hidden unless they say otherwise."""
    shown_rows: set[int] = field(default_factory=set)
    errors: dict[int, str] = field(default_factory=dict)
    """By `at(row, column)`."""
    formulas: set[int] = field(default_factory=set)
    """Formulas without a stored value."""
    styles: dict[int, int] = field(default_factory=dict)
    """Numbers that are shown in a format of their own."""
    row_max: int = -1
    column_max: int = -1

    def marked_rows(self) -> set[int]:
        """Return the rows with an error or with a formula that has no stored value."""
        return {here // COLUMNS_MAX for here in (*self.formulas, *self.errors)}

    def is_row_hidden(self, row: int) -> bool:
        """Tell whether somebody who opens the sheet does not see a row."""
        return row in self.hidden_rows or (self.are_rows_hidden and row not in self.shown_rows)

    def is_column_hidden(self, column: int) -> bool:
        """Tell whether somebody who opens the sheet does not see a column."""
        return any(first <= column <= last for first, last in self.hidden_columns)


def at(row: int, column: int) -> int:
    """Return a cell's key."""
    return row * COLUMNS_MAX + column


def cell_name(row: int, column: int) -> str:
    """Return a cell's name, such as `B3`."""
    letters = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return f"{letters}{row + 1}"


def read_marks(sheet: bytes, check_time: Callable[[], None]) -> Marks:
    """Pass over a sheet's XML.

    Raises:
        FileMistakeError: it is not well-formed, or has more cells than are read.

    """
    return _Pass(check_time).read(sheet)


def parse_xml(xml: bytes, start: Callable[[str, dict[str, str]], None]) -> None:
    """Call `start` for each element, with its name without a prefix.

    Raises:
        FileMistakeError: the XML is not well-formed, or declares entities.

    """
    parser = _make_parser()
    parser.StartElementHandler = lambda name, attributes: start(name.rpartition(":")[2], attributes)
    try:
        parser.Parse(xml, True)
    except expat.ExpatError:
        raise _damaged() from None


def _make_parser() -> Any:
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_doctype
    return parser


def _refuse_doctype(*_: object) -> None:
    raise _damaged()


def _damaged() -> FileMistakeError:
    return FileMistakeError(Reason.DAMAGED, kind=".xlsx file")


class _Pass:
    """The state of one pass over a sheet."""

    def __init__(self, check_time: Callable[[], None]) -> None:
        self._marks = Marks()
        self._check_time = check_time
        self._row = self._column = -1
        self._type = self._style = ""
        self._is_in_cell = self._has_formula = self._has_value = self._has_text = False
        self._text = ""
        self._parser = _make_parser()
        self._local_names: dict[str, str] = {}

    def read(self, sheet: bytes) -> Marks:
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        try:
            for first in range(0, len(sheet), _CHECK_TIME_EVERY_BYTES):
                self._check_time()
                self._parser.Parse(sheet[first : first + _CHECK_TIME_EVERY_BYTES], False)
            self._parser.Parse(b"", True)
        except expat.ExpatError:
            raise _damaged() from None
        marks = self._marks
        if (marks.row_max + 1) * (marks.column_max + 1) > CELLS_MAX:
            raise FileMistakeError(Reason.SHEET_TOO_WIDE, cell=cell_name(marks.row_max, marks.column_max))
        return marks

    def _local(self, name: str) -> str:
        local = self._local_names.get(name)
        if local is None:
            local = self._local_names[name] = name.rpartition(":")[2]
        return local

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        local = self._local(name)
        if local == "c":
            self._start_cell(attributes)
        elif local == "row":
            self._start_row(attributes)
        elif self._is_in_cell:
            if local == "f":
                self._has_formula = True
            elif local == "v":
                self._has_value = True
                if self._has_formula or self._type == "e":
                    self._parser.CharacterDataHandler = self._collect
            elif local == "is":
                self._has_value = self._has_text = True
        elif local == "col":
            self._start_columns(attributes)
        elif local == "sheetFormatPr":
            self._marks.are_rows_hidden = attributes.get("zeroHeight") in {"1", "true"}

    def _start_row(self, attributes: dict[str, str]) -> None:
        given = attributes.get("r", "")
        self._row = int(given) - 1 if given.isdigit() else self._row + 1
        self._column = -1
        is_flat = attributes.get("ht") in {"0", "0.0"}
        if attributes.get("hidden") in {"1", "true"} or is_flat:
            self._marks.hidden_rows.add(self._row)
        elif self._marks.are_rows_hidden and attributes.get("hidden") in {"0", "false"}:
            self._marks.shown_rows.add(self._row)

    def _start_columns(self, attributes: dict[str, str]) -> None:
        first, last = attributes.get("min", ""), attributes.get("max", "")
        is_hidden = attributes.get("hidden") in {"1", "true"} or attributes.get("width") in {"0", "0.0"}
        if is_hidden and first.isdigit() and last.isdigit():
            self._marks.hidden_columns.append((int(first) - 1, int(last) - 1))

    def _start_cell(self, attributes: dict[str, str]) -> None:
        match = _CELL.match(attributes.get("r", ""))
        if match:
            column = 0
            for letter in match[1]:
                column = column * 26 + ord(letter) - ord("A") + 1
            self._column = column - 1
            self._row = int(match[2]) - 1
        else:
            self._column += 1
        if self._row < 0 or self._column >= COLUMNS_MAX:
            raise _damaged()
        self._type = attributes.get("t", "n")
        self._style = attributes.get("s", "")
        self._is_in_cell = True
        self._has_formula = self._has_value = self._has_text = False
        self._text = ""

    def _collect(self, text: str) -> None:
        self._has_text = True
        self._text += text

    def _end(self, name: str) -> None:
        local = self._local(name)
        if local == "v":
            self._parser.CharacterDataHandler = None
        elif local == "c":
            self._is_in_cell = False
            self._end_cell()

    def _end_cell(self) -> None:
        if not self._has_value and not self._has_formula:
            return
        marks = self._marks
        marks.row_max = max(marks.row_max, self._row)
        marks.column_max = max(marks.column_max, self._column)
        here = at(self._row, self._column)
        if self._type == "e":
            marks.errors[here] = self._text[:20]
        elif (
            self._has_formula and not self._has_text and self._type != "str"
        ):  # which is an empty text that was calculated
            marks.formulas.add(here)
        elif self._type == "n" and self._style not in {"", "0"} and self._style.isdigit():
            marks.styles[here] = int(self._style)
