"""What can be wrong with a file of payments: reasons for programs, with the place and the text as it is written."""

from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any


class Reason(StrEnum):
    """Why a file, a row or a field is refused. `words.py` and `contract.py` have the texts."""

    # The file as a whole.
    EMPTY = auto()
    NO_ROWS = auto()
    TOO_LARGE = auto()
    TOO_MANY_ROWS = auto()
    FOREIGN_FORMAT = auto()
    WORKBOOK_NOT_TAKEN = auto()
    ENCRYPTED = auto()
    DAMAGED = auto()
    UNPACKED_TOO_LARGE = auto()
    NOT_UTF_8 = auto()
    CUT_OFF = auto()
    UTF_16_WITHOUT_MARK = auto()
    NOT_CSV = auto()
    JSON_AS_CSV = auto()
    CSV_AS_JSON = auto()
    NDJSON_AS_JSON = auto()
    NOT_JSON = auto()
    ARRAY_AS_NDJSON = auto()
    CELL_COUNT = auto()
    SEPARATOR_UNKNOWN = auto()
    SEPARATOR_BARS = auto()

    # The columns.
    NO_HEADER = auto()
    HEADER_LATER = auto()
    COLUMNS_MISSING = auto()
    COLUMNS_UNKNOWN = auto()
    COLUMN_REPEATED = auto()
    COLUMN_NOT_THERE = auto()
    COLUMN_USED_TWICE = auto()
    COLUMN_UNNAMED = auto()
    COLUMN_HIDDEN = auto()
    HISTORY_EXPORT = auto()
    USERS_EXPORT = auto()
    BATCHES_EXPORT = auto()

    # All amounts or references together.
    MARKS_MIXED = auto()
    COMMAS_SPLIT_AMOUNTS = auto()

    # A workbook.
    NO_VISIBLE_SHEET = auto()
    SEVERAL_SHEETS = auto()
    SHEET_NOT_THERE = auto()
    SHEET_TOO_WIDE = auto()
    ROWS_HIDDEN = auto()
    CELL_ERROR = auto()
    CELL_FORMULA = auto()

    # A row's fields.
    NOT_AN_OBJECT = auto()
    FIELD_UNKNOWN = auto()
    FIELD_REPEATED = auto()
    EMAIL_MISSING = auto()
    EMAIL_NOT_TEXT = auto()
    EMAIL_INVALID = auto()
    EMAIL_TOO_LONG = auto()
    REFERENCE_NOT_TEXT = auto()
    REFERENCE_NUMBER = auto()
    REFERENCE_TOO_LONG = auto()
    REFERENCE_CONTROL = auto()
    REFERENCE_REPEATED = auto()
    OUTCOME_UNKNOWN = auto()
    RESULT_CHANGED = auto()

    # An amount.
    AMOUNT_MISSING = auto()
    AMOUNT_AS_TEXT = auto()
    AMOUNT_POINT = auto()
    AMOUNT_EXPONENT = auto()
    AMOUNT_COMMA = auto()
    AMOUNT_MAY_BE_THOUSANDS = auto()
    AMOUNT_THOUSANDS = auto()
    AMOUNT_SPACE = auto()
    AMOUNT_CURRENCY = auto()
    AMOUNT_NEGATIVE = auto()
    AMOUNT_TOO_PRECISE = auto()
    AMOUNT_FORMULA = auto()
    AMOUNT_OTHER_DIGITS = auto()
    AMOUNT_DATE = auto()
    AMOUNT_FORMAT = auto()
    AMOUNT_NOT_A_NUMBER = auto()
    AMOUNT_TOO_SMALL = auto()
    AMOUNT_TOO_LARGE = auto()


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one value: the reason, and what its text needs to know."""

    reason: Reason
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mistake:
    """A fault and its place; `row` counts from 0, and is None where the fault is the file's."""

    reason: Reason
    details: dict[str, Any] = field(default_factory=dict)
    line: int | None = None
    """The line or the row of the sheet, counted from 1."""
    row: int | None = None
    field: str = ""
    cell: str = ""
    """The cell of a workbook, such as `B3`."""


class FileMistakeError(Exception):
    """The rest of the file cannot be read; the mistake says why."""

    def __init__(self, reason: Reason, line: int | None = None, **details: Any) -> None:
        super().__init__(reason)
        self.mistake = Mistake(reason, details, line)
