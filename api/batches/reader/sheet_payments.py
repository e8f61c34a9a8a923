"""The payments of a workbook's sheet."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from api.batches.reader.amounts import Unit
from api.batches.reader.columns import Columns
from api.batches.reader.mistakes import Fault, FileMistakeError, Mistake, Reason
from api.batches.reader.options import HiddenRows
from api.batches.reader.progress import Progress
from api.batches.reader.row_check import RowCheck
from api.batches.reader.tables import find_header, has_unnamed, is_done
from api.batches.reader.workbook import Sheet
from api.batches.reader.workbook_marks import at, cell_name
from api.web.csv_cells import unescape_cell


def read_sheet(progress: Progress, sheet: Sheet) -> None:
    """Read the payments of a sheet."""
    options, reading = progress.options, progress.reading
    reading.sheet = sheet.name
    reading.other_sheets = [*sheet.other_sheets, *sheet.hidden_sheets]
    filled = sheet.filled_rows()

    def as_texts() -> Iterator[tuple[int, Sequence[str]]]:
        for number, cells in filled:
            yield number + 1, _strip_end([_as_text(cell) for cell in cells])

    header_at = sheet.header_at
    if header_at is not None:
        first = header_at
        header_at = sum(1 for _ in itertools.takewhile(lambda row: row[0] < first, sheet.filled_rows()))
    columns = find_header(progress, as_texts(), 0 if options.mapping.is_by_position else header_at)
    _refuse_hidden_columns(sheet, columns)
    unit = Unit.CENTS if columns.outcome is not None else options.unit
    check = RowCheck(unit, options.mapping)
    check.cell_of = lambda line, field_: cell_name(line - 1, columns.positions.get(field_, 0))
    progress.take_mistakes(check)
    hidden: list[int] = []
    unnamed_seen: set[int] = set()
    try:
        for number, cells in filled:
            if not progress.goes_on(check):
                break
            line = number + 1
            if sheet.marks.is_row_hidden(number):
                hidden.append(line)
                if options.hidden_rows is not HiddenRows.TAKE:
                    continue
            _add_row(progress, check, sheet, columns, line, cells, unnamed_seen)
    finally:
        progress.take_rows(check)
    if hidden and options.hidden_rows is HiddenRows.REFUSE:
        reading.mistakes.append(Mistake(Reason.ROWS_HIDDEN, {"rows": hidden}))
    reading.left_out = len(hidden) if options.hidden_rows is HiddenRows.LEAVE else 0


def _add_row(
    progress: Progress,
    check: RowCheck,
    sheet: Sheet,
    columns: Columns,
    line: int,
    cells: Sequence[Any],
    unnamed_seen: set[int],
) -> None:
    beyond = [at_ for at_ in range(columns.width, len(cells)) if _as_text(cells[at_]).strip()]
    unnamed = Columns(columns.positions, columns.width, (*columns.unnamed, *beyond))
    texts: Sequence[Any] = [_as_text(cell) for cell in cells] if unnamed.unnamed else ()
    if unnamed.unnamed and has_unnamed(progress, unnamed, texts, line, unnamed_seen):
        check.wrong_rows += 1
        check.count += 1
        return
    if columns.outcome is not None:
        as_texts = [_as_text(cell) for cell in cells]
        if is_done(progress, check, columns, line, as_texts):
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


def _refuse_hidden_columns(sheet: Sheet, columns: Columns) -> None:
    hidden = [
        cell_name(0, position).rstrip("1")
        for position in columns.positions.values()
        if sheet.marks.is_column_hidden(position)
    ]
    if hidden:
        raise FileMistakeError(Reason.COLUMN_HIDDEN, columns=hidden)


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
