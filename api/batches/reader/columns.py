"""Which column of a table is which: by its name, or as somebody says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from api.batches.reader import exports
from api.batches.reader.mistakes import Mistake, Reason

FIELDS = ("email", "amount", "reference")
_NAME_MAX_CHARACTERS = 200
_GUESSES = {
    "email": re.compile(r"e-?mail|correo|courriel|mail", re.IGNORECASE),
    "amount": re.compile(r"amount|betrag|montant|importe|importo|summe|sum|value|usd|cents|dollars", re.IGNORECASE),
    "reference": re.compile(r"^ref|reference|referenz|invoice|payment.?id|order", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class Mapping:
    """Which columns hold the fields, by name or by position from 0, and which are left out."""

    email: str | int | None = None
    amount: str | int | None = None
    reference: str | int | None = None
    ignored: tuple[str | int, ...] = ()
    ignores_others: bool = False
    """Every column that is not named is left out: the person saw them all."""

    def names(self) -> dict[str, str | int]:
        """Return what the fields' columns are called."""
        given = {"email": self.email, "amount": self.amount, "reference": self.reference}
        return {field: field if column is None else column for field, column in given.items()}

    @property
    def is_given(self) -> bool:
        """Whether somebody said which column is which."""
        return self.email is not None or self.amount is not None

    @property
    def is_by_position(self) -> bool:
        """Whether it says where columns are, not how they are called."""
        return isinstance(self.email, int)


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a table's fields are."""

    positions: dict[str, int]
    width: int
    unnamed: tuple[int, ...] = ()
    """Columns without a name, which must be empty."""
    ignored: tuple[str, ...] = ()
    outcome: int | None = None
    """Only in the results of a batch: what became of the row."""
    dollars: int | None = None


@dataclass(slots=True)
class _Search:
    """One header, on its way to `Columns`."""

    cells: Sequence[str]
    line: int
    names: list[str]
    mistakes: list[Mistake] = field(default_factory=list)

    def refuse(self, reason: Reason, **details: object) -> None:
        self.mistakes.append(Mistake(reason, details, self.line))

    def find(self, column: str | int, *, is_usual: bool = False) -> int | None:
        """Return the position of a column that somebody named; one with its usual name need not be there."""
        if isinstance(column, int):
            return column if column < len(self.cells) else None
        name = column.strip().lower()
        count = self.names.count(name)
        if count == 1:
            return self.names.index(name)
        if count > 1:
            self.refuse(Reason.COLUMN_REPEATED, name=column.strip())
        elif name.isascii() and name.isdigit() and 1 <= int(name[:6]) <= len(self.cells):
            return int(name) - 1
        elif not is_usual:
            self.refuse(Reason.COLUMN_NOT_THERE, name=column, columns=show_names(self.cells))
        return None


def show_names(cells: Sequence[str]) -> list[str]:
    """Return the names of columns, as somebody may repeat them."""
    return [cell.strip()[:_NAME_MAX_CHARACTERS] for cell in cells]


def is_header(cells: Sequence[str], mapping: Mapping) -> bool:
    """Tell whether a row names the columns that a payment needs."""
    names = [cell.strip().lower() for cell in cells]
    if exports.is_results(names) or exports.find_unpayable(names):
        return True
    wanted = mapping.names()
    return all(
        isinstance(wanted[field], int) or str(wanted[field]).strip().lower() in names for field in ("email", "amount")
    )


def find_columns(cells: Sequence[str], line: int, mapping: Mapping) -> Columns | list[Mistake]:
    """Return where the fields are, or everything that is wrong with a header."""
    names = [cell.strip().lower() for cell in cells]
    search = _Search(cells, line, names)
    unpayable = exports.find_unpayable(names)
    if unpayable is not None:
        return [Mistake(unpayable, line=line)]
    if exports.is_results(names):
        return _find_result_columns(search)
    positions: dict[str, int] = {}
    for field_, column in mapping.names().items():
        position = search.find(column, is_usual=getattr(mapping, field_) is None)
        if position is not None and position in positions.values():
            search.refuse(Reason.COLUMN_USED_TWICE, name=show_names(cells)[position])
        elif position is not None:
            positions[field_] = position
    ignored = {position for column in mapping.ignored if (position := search.find(column)) is not None}
    missing = [field_ for field_ in ("email", "amount") if field_ not in positions]
    if search.mistakes:
        return search.mistakes
    others = [at for at in range(len(cells)) if at not in positions.values() and at not in ignored]
    if missing:
        search.refuse(
            Reason.COLUMNS_MISSING,
            missing=missing,
            columns=show_names(cells),
            guesses=_guess(cells, positions),
        )
        return search.mistakes
    if mapping.ignores_others:
        ignored |= set(others)
        others = []
    unknown = [at for at in others if names[at]]
    if unknown:
        repeated = [names[at] for at in unknown if names[at] in FIELDS and mapping.names()[names[at]] == names[at]]
        if repeated:
            search.refuse(Reason.COLUMN_REPEATED, name=repeated[0])
        else:
            search.refuse(Reason.COLUMNS_UNKNOWN, names=[show_names(cells)[at] for at in unknown])
        return search.mistakes
    unnamed = tuple(at for at in others if not names[at])
    shown = tuple(show_names(cells)[at] or f"column {at + 1}" for at in sorted(ignored - set(positions.values())))
    return Columns(positions, len(cells), unnamed, shown)


def _find_result_columns(search: _Search) -> Columns | list[Mistake]:
    needed = {"email": "email", "amount": "amount_cents", "reference": "reference", "outcome": "outcome"}
    for name in {*needed.values(), "amount_dollars"}:
        if search.names.count(name) > 1:
            search.refuse(Reason.COLUMN_REPEATED, name=name)
    if search.mistakes:
        return search.mistakes
    positions = {field_: search.names.index(name) for field_, name in needed.items()}
    outcome = positions.pop("outcome")
    dollars = search.names.index("amount_dollars") if "amount_dollars" in search.names else None
    return Columns(positions, len(search.cells), outcome=outcome, dollars=dollars)


def _guess(cells: Sequence[str], positions: dict[str, int]) -> dict[str, str]:
    """Return which columns may be meant, for the person to decide."""
    guesses: dict[str, str] = {}
    for field_ in FIELDS:
        if field_ in positions:
            continue
        for position, cell in enumerate(cells):
            name = cell.strip()
            is_free = position not in positions.values() and name not in guesses.values()
            if is_free and name and _GUESSES[field_].search(name):
                guesses[field_] = name
                break
    return guesses
