"""Reading a file of payments from its bytes: every door comes through here."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

from api.batches.reader import exports, json_rows
from api.batches.reader.amounts import Unit
from api.batches.reader.columns import Columns, Mapping, find_columns, show_names
from api.batches.reader.csv_table import SEPARATORS, open_csv
from api.batches.reader.files import FileFormat, check_utf_8, decode, find_format, unpack
from api.batches.reader.json_rows import JsonRow
from api.batches.reader.mistakes import Fault, FileMistakeError, Mistake, Reason
from api.batches.reader.row_check import RowCheck
from api.batches.reader.workbook import Sheet, open_sheet
from api.batches.reader.workbook_marks import at, cell_name
from api.web.csv_cells import unescape_cell
from core.batches.payout_batch import BatchRow

_CHECK_TIME_EVERY = 1_000


class HiddenRows(StrEnum):
    """What becomes of the rows of a workbook that somebody hid or filtered out."""

    REFUSE = "refuse"
    TAKE = "take"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Options:
    """How a file is to be read."""

    unit: Unit = Unit.CENTS
    mapping: Mapping = field(default_factory=Mapping)
    hidden_rows: HiddenRows = HiddenRows.REFUSE
    sheet: str | None = None
    """The sheet of a workbook to read; None: the only visible one with the columns."""
    file_format: FileFormat | None = None
    """None: the file's first bytes tell."""
    rows_max: int | None = None
    wrong_rows_max: int | None = None
    """After so many wrong rows the others are counted, and not checked."""
    stops_early: bool = False
    """With so many wrong rows the reading ends."""


@dataclass(slots=True)
class Reading:
    """What a file says: its payments, or what is wrong with it."""

    unit: Unit
    file_format: FileFormat | None = None
    rows: list[BatchRow] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """The line of each row, counted from 1; that of a sheet's row is its number. 0 in an API call's JSON."""
    count: int = 0
    """How many rows there are, wrong ones included."""
    mistakes: list[Mistake] = field(default_factory=list)
    paid_before: int = 0
    """Rows of a batch's results that were paid, and are left out."""
    is_results: bool = False
    columns: list[str] = field(default_factory=list)
    """How a table calls its columns."""
    ignored: list[str] = field(default_factory=list)
    """The columns that are left out."""
    sheet: str = ""
    """The sheet of a workbook that was read."""
    other_sheets: list[str] = field(default_factory=list)
    """Its other sheets, the hidden ones included."""
    left_out: int = 0
    """Hidden rows that are left out."""

    @property
    def amount_cents(self) -> int:
        """All payments together."""
        return sum(row.amount_cents for row in self.rows)

    @property
    def needs_columns(self) -> bool:
        """Whether somebody has to say which column is which."""
        return bool(self.columns) and any(
            mistake.reason in {Reason.COLUMNS_MISSING, Reason.COLUMNS_UNKNOWN, Reason.COLUMN_UNNAMED}
            for mistake in self.mistakes
        )

    @property
    def needs_hidden_rows(self) -> bool:
        """Whether somebody has to say what becomes of hidden rows."""
        return any(mistake.reason is Reason.ROWS_HIDDEN for mistake in self.mistakes)

    def equal_rows(self) -> list[list[int]]:
        """Return the lines of the rows without a reference that are equal, most frequent first."""
        lines: dict[BatchRow, list[int]] = {}
        for row, line in zip(self.rows, self.lines, strict=True):
            if row.reference is None:
                lines.setdefault(row, []).append(line)
        return sorted((each for each in lines.values() if len(each) > 1), key=len, reverse=True)


def read_payments(body: bytes, options: Options, check_time: Callable[[], None] = lambda: None) -> Reading:
    """Read and check a file; every thousand rows, `check_time` may raise to end it.

    Raises:
        NotAnObjectError: the options say that it is the JSON of an API call, and it is no object.

    """
    reading = Reading(options.unit)
    try:
        _Reader(reading, options, check_time).read(body)
    except FileMistakeError as error:
        reading.mistakes.append(error.mistake)
    if not reading.mistakes and not reading.rows and not reading.paid_before:
        reading.mistakes.append(Mistake(Reason.NO_ROWS, {"is_table": bool(reading.columns)}))
    return reading


class _Reader:
    """One reading under way."""

    def __init__(self, reading: Reading, options: Options, check_time: Callable[[], None]) -> None:
        self._reading = reading
        self._options = options
        self._check_time = check_time

    def read(self, body: bytes) -> None:
        options = self._options
        if options.file_format is FileFormat.JSON:
            self._reading.file_format = FileFormat.JSON
            check_utf_8(body)
            self._read_json(json_rows.read_body(body))
            return
        body = unpack(body)
        found = find_format(body)
        self._reading.file_format = found if options.file_format is None else options.file_format
        if options.file_format is not None and found is not options.file_format:
            self._refuse_other_format(found)
        if found is FileFormat.XLSX:
            self._read_sheet(open_sheet(body, options.mapping, options.sheet, self._check_time))
            return
        text = decode(body)
        if self._reading.file_format is FileFormat.CSV:
            self._read_csv(text)
            return
        body = text.encode()
        rows = json_rows.read_document(body) if options.file_format is None else None
        if rows is None and found is FileFormat.JSON and options.file_format is None:
            self._explain_array(body)
        self._reading.file_format = FileFormat.NDJSON if rows is None else FileFormat.JSON
        self._read_json(json_rows.read_lines(body) if rows is None else rows)

    def _refuse_other_format(self, found: FileFormat) -> None:
        """Refuse what is not written as a caller said; a JSON array by lines is refused by its rows."""
        if found is FileFormat.XLSX:
            raise FileMistakeError(Reason.WORKBOOK_NOT_TAKEN)
        if self._reading.file_format is FileFormat.CSV:
            raise FileMistakeError(Reason.JSON_AS_CSV)

    def _explain_array(self, body: bytes) -> None:
        """Say on which line an array is no JSON."""
        try:
            json.loads(body)
        except json.JSONDecodeError as error:
            raise FileMistakeError(Reason.NOT_JSON, error.lineno) from None
        except (ValueError, RecursionError):
            raise FileMistakeError(Reason.NOT_JSON, 1) from None

    def _read_json(self, rows: Iterator[JsonRow]) -> None:
        check = RowCheck(self._options.unit, self._options.mapping)
        is_body = self._options.file_format is FileFormat.JSON
        self._attach(check)
        try:
            for line, text in rows:
                if not self._goes_on(check):
                    break
                if self._is_only_counted(check):
                    if not is_body and not _is_json(text):
                        self._refuse_line(line, text)
                    check.count += 1
                elif not check.add_json(line, text):
                    self._refuse_line(line, text)
                    check.wrong_rows += 1
                    check.count += 1
        finally:
            self._detach(check)

    def _refuse_line(self, line: int, text: bytes) -> None:
        reason = Reason.ARRAY_AS_NDJSON if text.startswith(b"[") else Reason.NOT_JSON
        mistake = Mistake(reason, {}, line)
        if self._options.file_format is not None:
            raise FileMistakeError(reason, line)
        self._reading.mistakes.append(mistake)

    def _read_csv(self, text: str) -> None:
        options = self._options
        table = open_csv(text, options.mapping)
        rows = table.rows()
        columns, line = self._find_header(rows, table.header_at)
        unit = Unit.CENTS if columns.outcome is not None else options.unit
        check = RowCheck(
            unit, options.mapping, may_have_comma=table.separator != SEPARATORS[0] and unit is Unit.DOLLARS
        )
        self._attach(check)
        email_at, amount_at = columns.positions["email"], columns.positions["amount"]
        reference_at = columns.positions.get("reference")
        unnamed_seen: set[int] = set()
        try:
            for line, cells in rows:
                if not self._goes_on(check):
                    break
                if len(cells) != columns.width:
                    self._refuse_width(check, line, len(cells), columns.width)
                    continue
                if self._is_only_counted(check):
                    check.count += 1
                    continue
                if columns.unnamed and self._has_unnamed(columns, cells, line, unnamed_seen):
                    check.wrong_rows += 1
                    check.count += 1
                    continue
                if columns.outcome is not None and self._is_done(check, columns, line, cells):
                    continue
                reference = unescape_cell(cells[reference_at].strip()).strip() if reference_at is not None else None
                check.add_cells(line, unescape_cell(cells[email_at].strip()), cells[amount_at].strip(), reference)
            check.finish(
                has_reference=reference_at is not None and columns.outcome is None,
                is_by_commas=table.separator == SEPARATORS[0],
            )
        finally:
            self._detach(check)

    def _find_header(self, rows: Iterator[tuple[int, Sequence[str]]], header_at: int | None) -> tuple[Columns, int]:
        """Take the header off a table's rows.

        Raises:
            FileMistakeError: it is none.

        """
        first = next(rows, None)
        if first is None:
            raise FileMistakeError(Reason.EMPTY)
        line, cells = first
        if header_at:
            later = [next(rows, first) for _ in range(header_at)][-1][0]
            raise FileMistakeError(Reason.HEADER_LATER, line, later=later)
        if header_at is None and not self._has_mapping():
            if any("@" in cell for cell in cells):
                raise FileMistakeError(Reason.NO_HEADER, line)
            if len(cells) == 1 and "|" in cells[0]:
                raise FileMistakeError(Reason.SEPARATOR_BARS, line)
        self._reading.columns = show_names(cells)
        columns = find_columns(cells, line, self._options.mapping)
        if isinstance(columns, list):
            self._reading.mistakes += columns[:-1]
            raise FileMistakeError(columns[-1].reason, line, **columns[-1].details)
        self._reading.ignored = list(columns.ignored)
        self._reading.is_results = columns.outcome is not None
        if columns.outcome is not None:
            self._reading.unit = Unit.CENTS
        return columns, line

    def _has_mapping(self) -> bool:
        mapping = self._options.mapping
        return mapping.email is not None or mapping.amount is not None

    def _refuse_width(self, check: RowCheck, line: int, count: int, width: int) -> None:
        details = {"count": count, "width": width}
        if self._options.file_format is not None:
            raise FileMistakeError(Reason.CELL_COUNT, line, **details)
        self._reading.mistakes.append(Mistake(Reason.CELL_COUNT, details, line))
        check.wrong_rows += 1
        check.count += 1

    def _has_unnamed(self, columns: Columns, cells: Sequence[Any], line: int, seen: set[int]) -> bool:
        """Tell whether a column without a name has something in it, and note the first place."""
        filled = [at_ for at_ in columns.unnamed if str(cells[at_]).strip()]
        for position in filled:
            if position not in seen:
                seen.add(position)
                details = {"number": position + 1, "value": str(cells[position]).strip(), "line": line}
                self._reading.mistakes.append(Mistake(Reason.COLUMN_UNNAMED, details))
        return bool(filled)

    def _is_done(self, check: RowCheck, columns: Columns, line: int, cells: Sequence[Any]) -> bool:
        """Tell whether a row of results needs nothing more: it was paid, or is refused."""
        assert columns.outcome is not None  # noqa: S101 (the caller looked)
        outcome = str(cells[columns.outcome]).strip()
        if outcome in exports.PAID_OUTCOMES:
            self._reading.paid_before += 1
            return True
        if outcome not in exports.UNPAID_OUTCOMES:
            check.refuse(line, "outcome", Fault(Reason.OUTCOME_UNKNOWN, {"value": outcome}))
            return True
        cents, dollars = cells[columns.positions["amount"]], cells[columns.dollars] if columns.dollars else ""
        if not _are_equal(cents, dollars):
            details = {"cents": str(cents).strip(), "dollars": str(dollars).strip()}
            check.refuse(line, "amount", Fault(Reason.RESULT_CHANGED, details))
            return True
        return False

    def _read_sheet(self, sheet: Sheet) -> None:
        options, reading = self._options, self._reading
        reading.sheet = sheet.name
        reading.other_sheets = [*sheet.other_sheets, *sheet.hidden_sheets]
        filled = sheet.filled_rows()
        header_row = 0

        def as_texts() -> Iterator[tuple[int, Sequence[str]]]:
            nonlocal header_row
            for number, cells in filled:
                header_row = number
                yield number + 1, _strip_end([_as_text(cell) for cell in cells])

        header_at = None
        if sheet.header_at is not None:
            before = sum(1 for number, _ in sheet.filled_rows() if number < sheet.header_at)
            header_at = before
        columns, _ = self._find_header(as_texts(), 0 if options.mapping.is_by_position else header_at)
        self._refuse_hidden_columns(sheet, columns)
        unit = Unit.CENTS if columns.outcome is not None else options.unit
        check = RowCheck(unit, options.mapping)
        check.cell_of = lambda line, field_: cell_name(line - 1, columns.positions.get(field_, 0))
        self._attach(check)
        hidden: list[int] = []
        unnamed_seen: set[int] = set()
        try:
            for number, cells in filled:
                if not self._goes_on(check):
                    break
                line = number + 1
                if sheet.marks.is_row_hidden(number):
                    hidden.append(line)
                    if options.hidden_rows is not HiddenRows.TAKE:
                        continue
                self._add_sheet_row(check, sheet, columns, line, cells, unnamed_seen)
        finally:
            self._detach(check)
        if hidden and options.hidden_rows is HiddenRows.REFUSE:
            reading.mistakes.append(Mistake(Reason.ROWS_HIDDEN, {"rows": hidden}))
        reading.left_out = len(hidden) if options.hidden_rows is HiddenRows.LEAVE else 0

    def _add_sheet_row(
        self, check: RowCheck, sheet: Sheet, columns: Columns, line: int, cells: Sequence[Any], unnamed_seen: set[int]
    ) -> None:
        beyond = [at_ for at_ in range(columns.width, len(cells)) if _as_text(cells[at_]).strip()]
        unnamed = Columns(columns.positions, columns.width, (*columns.unnamed, *beyond))
        texts: Sequence[Any] = [_as_text(cell) for cell in cells] if unnamed.unnamed else ()
        if unnamed.unnamed and self._has_unnamed(unnamed, texts, line, unnamed_seen):
            check.wrong_rows += 1
            check.count += 1
            return
        if columns.outcome is not None:
            as_texts = [_as_text(cell) for cell in cells]
            if self._is_done(check, columns, line, as_texts):
                return
        values: dict[str, Any] = {}
        faults: dict[str, Fault] = {}
        for field_, position in columns.positions.items():
            value = cells[position] if position < len(cells) else ""
            values[field_] = unescape_cell(value.strip()).strip() if isinstance(value, str) else value
            fault = _find_cell_fault(sheet, field_, at(line - 1, position), value)
            if fault is not None:
                faults[field_] = fault
        check.add_values(line, values["email"], values["amount"], values.get("reference"), faults)

    def _refuse_hidden_columns(self, sheet: Sheet, columns: Columns) -> None:
        hidden = [
            cell_name(0, position).rstrip("1")
            for position in columns.positions.values()
            if sheet.marks.is_column_hidden(position)
        ]
        if hidden:
            raise FileMistakeError(Reason.COLUMN_HIDDEN, columns=hidden)

    def _attach(self, check: RowCheck) -> None:
        check.mistakes = self._reading.mistakes

    def _detach(self, check: RowCheck) -> None:
        reading = self._reading
        reading.rows, reading.lines, reading.count = check.rows, check.lines, check.count + reading.paid_before

    def _goes_on(self, check: RowCheck) -> bool:
        """Tell whether another row is to be read.

        Raises:
            FileMistakeError: there are too many.

        """
        options = self._options
        if check.count % _CHECK_TIME_EVERY == 0:
            self._check_time()
        if options.rows_max is not None and check.count >= options.rows_max:
            raise FileMistakeError(Reason.TOO_MANY_ROWS, most=options.rows_max)
        return not (options.stops_early and self._is_only_counted(check))

    def _is_only_counted(self, check: RowCheck) -> bool:
        most = self._options.wrong_rows_max
        return most is not None and check.wrong_rows >= most


def _find_cell_fault(sheet: Sheet, field_: str, here: int, value: Any) -> Fault | None:
    """Return what the XML says against a cell whose value looks harmless."""
    marks = sheet.marks
    if here in marks.errors:
        return Fault(Reason.CELL_ERROR, {"value": marks.errors[here] or "#N/A"})
    if here in marks.formulas:
        return Fault(Reason.CELL_FORMULA)
    style = marks.styles.get(here)
    if style is None or isinstance(value, str):
        return None
    if field_ == "amount" and style in sheet.formats.foreign:
        return Fault(Reason.AMOUNT_FORMAT)
    if field_ == "reference" and style not in sheet.formats.plain:
        return Fault(Reason.REFERENCE_NUMBER)
    return None


def _as_text(cell: Any) -> str:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 10**15:
        return str(int(cell))
    return cell if isinstance(cell, str) else str(cell)


def _strip_end(cells: list[str]) -> list[str]:
    """Return a header without the empty cells at its end."""
    while len(cells) > 1 and not cells[-1].strip():
        cells.pop()
    return cells


def _are_equal(cents: Any, dollars: Any) -> bool:
    """Tell whether the amounts of a row of results say the same, in whatever form a spreadsheet left the dollars."""
    text = str(dollars).strip().lstrip("$").replace(",", ".")
    if not text:
        return True
    try:
        return Decimal(text) * 100 == Decimal(str(cents).strip())
    except InvalidOperation:
        return False


def _is_json(text: bytes) -> bool:
    try:
        json_rows.parse_pairs(text)
    except ValueError:
        return False
    return True
