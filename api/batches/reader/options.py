"""How a file is to be read."""

from dataclasses import dataclass, field
from enum import StrEnum

from api.batches.reader.amounts import Unit
from api.batches.reader.columns import Mapping
from api.batches.reader.files import FileFormat


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
