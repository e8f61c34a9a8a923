"""The payments of a CSV file."""

from api.batches.reader.amounts import Unit
from api.batches.reader.csv_table import SEPARATORS, open_csv
from api.batches.reader.mistakes import Reason
from api.batches.reader.progress import Progress
from api.batches.reader.row_check import RowCheck
from api.batches.reader.tables import find_header, has_unnamed, is_done
from api.web.csv_cells import unescape_cell


def read_csv(progress: Progress, text: str) -> None:
    """Read the text of a CSV file."""
    options = progress.options
    table = open_csv(text, options.mapping)
    rows = table.rows()
    columns = find_header(progress, rows, table.header_at)
    unit = Unit.CENTS if columns.outcome is not None else options.unit
    check = RowCheck(unit, options.mapping, may_have_comma=table.separator != SEPARATORS[0] and unit is Unit.DOLLARS)
    progress.take_mistakes(check)
    email_at, amount_at = columns.positions["email"], columns.positions["amount"]
    reference_at = columns.positions.get("reference")
    unnamed_seen: set[int] = set()
    try:
        for line, cells in rows:
            if not progress.goes_on(check):
                break
            if len(cells) != columns.width:
                progress.refuse_line(check, Reason.CELL_COUNT, line, count=len(cells), width=columns.width)
                continue
            if progress.is_only_counted(check):
                check.count += 1
                continue
            if columns.unnamed and has_unnamed(progress, columns, cells, line, unnamed_seen):
                check.wrong_rows += 1
                check.count += 1
                continue
            if columns.outcome is not None and is_done(progress, check, columns, line, cells):
                continue
            reference = unescape_cell(cells[reference_at].strip()).strip() if reference_at is not None else None
            check.add_cells(line, unescape_cell(cells[email_at].strip()), cells[amount_at].strip(), reference)
        check.finish(
            has_reference=reference_at is not None and columns.outcome is None,
            is_by_commas=table.separator == SEPARATORS[0],
        )
    finally:
        progress.take_rows(check)
