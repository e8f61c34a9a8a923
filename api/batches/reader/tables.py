"""What CSV and the sheets of workbooks have in common: a header, columns without a name, and the results of a batch."""

from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from api.batches.reader import exports
from api.batches.reader.amounts import Unit
from api.batches.reader.columns import Columns, find_columns, show_names
from api.batches.reader.mistakes import Fault, FileMistakeError, Mistake, Reason
from api.batches.reader.progress import Progress
from api.batches.reader.row_check import RowCheck


def find_header(progress: Progress, rows: Iterator[tuple[int, Sequence[str]]], header_at: int | None) -> Columns:
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
    if header_at is None and not progress.options.mapping.is_given:
        if any("@" in cell for cell in cells):
            raise FileMistakeError(Reason.NO_HEADER, line)
        if len(cells) == 1 and "|" in cells[0]:
            raise FileMistakeError(Reason.SEPARATOR_BARS, line)
    progress.reading.columns = show_names(cells)
    columns = find_columns(cells, line, progress.options.mapping)
    if isinstance(columns, list):
        progress.reading.mistakes += columns[:-1]
        raise FileMistakeError(columns[-1].reason, line, **columns[-1].details)
    progress.reading.ignored = list(columns.ignored)
    progress.reading.is_results = columns.outcome is not None
    if columns.outcome is not None:
        progress.reading.unit = Unit.CENTS
    return columns


def has_unnamed(progress: Progress, columns: Columns, cells: Sequence[Any], line: int, seen: set[int]) -> bool:
    """Tell whether a column without a name has something in it, and note the first place."""
    filled = [at_ for at_ in columns.unnamed if str(cells[at_]).strip()]
    for position in filled:
        if position not in seen:
            seen.add(position)
            details = {"number": position + 1, "value": str(cells[position]).strip(), "line": line}
            progress.reading.mistakes.append(Mistake(Reason.COLUMN_UNNAMED, details))
    return bool(filled)


def is_done(progress: Progress, check: RowCheck, columns: Columns, line: int, cells: Sequence[Any]) -> bool:
    """Tell whether a row of results needs nothing more: it was paid, or is refused."""
    assert columns.outcome is not None  # noqa: S101 (the caller looked)
    outcome = str(cells[columns.outcome]).strip()
    if outcome in exports.PAID_OUTCOMES:
        progress.reading.paid_before += 1
        return True
    if outcome not in exports.UNPAID_OUTCOMES:
        check.refuse(line, "outcome", Fault(Reason.OUTCOME_UNKNOWN, {"value": outcome}))
        return True
    cents, dollars = cells[columns.positions["amount"]], "" if columns.dollars is None else cells[columns.dollars]
    if not _are_equal(cents, dollars):
        details = {"cents": str(cents).strip(), "dollars": str(dollars).strip()}
        check.refuse(line, "amount", Fault(Reason.RESULT_CHANGED, details))
        return True
    return False


def _are_equal(cents: Any, dollars: Any) -> bool:
    """Tell whether the amounts of a row of results say the same, in whatever form a spreadsheet left the dollars."""
    text = str(dollars).strip().lstrip("$").replace(",", ".")
    if not text:
        return True
    try:
        return Decimal(text) * 100 == Decimal(str(cents).strip())
    except InvalidOperation:
        return False
