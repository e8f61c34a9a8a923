"""What a file says: its payments, or what is wrong with it."""

from dataclasses import dataclass, field

from api.batches.reader.amounts import Unit
from api.batches.reader.files import FileFormat
from api.batches.reader.mistakes import Mistake, Reason
from core.batches.payout_batch import BatchRow


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
