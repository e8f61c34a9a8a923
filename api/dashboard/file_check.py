"""A file that was uploaded: read with what its sender said of it, until it is clear, wrong, or needs another word."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

import msgspec

from api.batches.reader.amounts import Unit
from api.batches.reader.columns import FIELDS
from api.batches.reader.columns import Mapping as Columns
from api.batches.reader.doors import Door
from api.batches.reader.mistakes import Reason
from api.batches.reader.options import HiddenRows, Options
from api.batches.reader.payments import read_payments
from api.batches.reader.reading import Reading
from api.batches.reader.words import write_mistakes
from core.batches.payout_batch import ROWS_MAX

MISTAKES_SHOWN_MAX = 100
_QUICKLY = 1


class FileChoices(msgspec.Struct, frozen=True):
    """What somebody said of a file: where its fields are, by position from 0, and what becomes of hidden rows."""

    positions: dict[str, int] | None = None
    hidden_rows: HiddenRows = HiddenRows.REFUSE
    sheet: str | None = None


class UnclearFile(msgspec.Struct, frozen=True):
    """A file that cannot be read before somebody says more of it."""

    id: UUID
    business_id: UUID
    file_name: str
    unit: Unit
    packed: bytes
    choices: FileChoices
    mistakes: list[str]
    columns: list[str]
    """The names of its columns, where somebody is to choose among them."""
    guesses: dict[str, int]
    """The columns that are chosen unless somebody chooses others."""
    has_hidden_rows: bool
    """Whether somebody is to say what becomes of them."""

    def content(self) -> bytes:
        """Return the file."""
        return zlib.decompress(self.packed)


@dataclass(frozen=True, slots=True)
class Unclear:
    """What a reading leaves open."""

    mistakes: list[str]
    columns: list[str]
    guesses: dict[str, int]
    has_hidden_rows: bool
    sheet: str | None

    def keep(
        self, id_: UUID, business_id: UUID, name: str, unit: Unit, content: bytes, choices: FileChoices
    ) -> UnclearFile:
        """Return the file, to be kept until the next word."""
        return UnclearFile(
            id=id_,
            business_id=business_id,
            file_name=name,
            unit=unit,
            packed=zlib.compress(content, _QUICKLY),
            choices=msgspec.structs.replace(choices, sheet=self.sheet),
            mistakes=self.mistakes,
            columns=self.columns,
            guesses=self.guesses,
            has_hidden_rows=self.has_hidden_rows,
        )


def check_file(
    content: bytes, unit: Unit, choices: FileChoices, check_time: Callable[[], None]
) -> Reading | Unclear | list[str]:
    """Read a file; return its payments, what is open, or the mistakes that only another file puts right."""
    positions = choices.positions
    columns = Columns()
    if positions is not None:
        columns = Columns(positions["email"], positions["amount"], positions.get("reference"), ignores_others=True)
    options = Options(
        unit=unit,
        mapping=columns,
        hidden_rows=choices.hidden_rows,
        sheet=choices.sheet,
        rows_max=ROWS_MAX,
        wrong_rows_max=MISTAKES_SHOWN_MAX,
        stops_early=True,
    )
    reading = read_payments(content, options, check_time)
    if not reading.mistakes:
        return reading if reading.rows else ["Every row of these results is paid already."]
    mistakes = write_mistakes(reading, Door.DASHBOARD, MISTAKES_SHOWN_MAX)
    if not reading.needs_columns and not reading.needs_hidden_rows:
        return mistakes
    return Unclear(
        mistakes,
        reading.columns if reading.needs_columns or positions is not None else [],
        positions if positions is not None else _guess(reading),
        reading.needs_hidden_rows,
        reading.sheet or None,
    )


def read_choices(values: Mapping[str, str], file: UnclearFile) -> FileChoices | str:
    """Return what a form says of a file, or what is wrong with it."""
    choices = file.choices
    if file.columns:
        positions = {}
        for field in FIELDS:
            chosen = values.get(field, "")
            if chosen.isascii() and chosen.isdigit() and int(chosen[:6]) < len(file.columns):
                positions[field] = int(chosen)
        if "email" not in positions or "amount" not in positions:
            return "Choose the columns of the e-mail addresses and of the amounts."
        if len(set(positions.values())) < len(positions):
            return "One column cannot be two things at once."
        choices = msgspec.structs.replace(choices, positions=positions)
    if file.has_hidden_rows:
        if values.get("hidden_rows") not in {HiddenRows.TAKE, HiddenRows.LEAVE}:
            return "Choose what becomes of the hidden rows."
        choices = msgspec.structs.replace(choices, hidden_rows=HiddenRows(values["hidden_rows"]))
    return choices


def _guess(reading: Reading) -> dict[str, int]:
    """Return the columns that are probably the fields."""
    names = [name.lower() for name in reading.columns]
    guesses = {field: names.index(field) for field in FIELDS if field in names}
    for mistake in reading.mistakes:
        if mistake.reason is Reason.COLUMNS_MISSING:
            for field, name in mistake.details["guesses"].items():
                guesses.setdefault(field, reading.columns.index(name))
    return guesses
