"""What people read about a file: each mistake with its line or cell, and what to do about it at the door they use."""

from collections.abc import Sequence

from api.batches.reader.doors import Door
from api.batches.reader.files import FileFormat
from api.batches.reader.mistakes import Mistake
from api.batches.reader.reading import Reading
from api.batches.reader.texts import TEXTS, Details


def write_mistakes(reading: Reading, door: Door, most: int | None = None) -> list[str]:
    """Write a file's mistakes, all those of a row in one text; no more than `most` texts."""
    texts: list[str] = []
    group: list[Mistake] = []
    for mistake in reading.mistakes:
        if group and (mistake.row is None or mistake.row != group[0].row):
            texts.append(_write_row(group, reading, door))
            group = []
        if most is not None and len(texts) >= most:
            return texts
        if mistake.row is None:
            texts.append(write_mistake(mistake, door, place_word(reading)))
        else:
            group.append(mistake)
    if group:
        texts.append(_write_row(group, reading, door))
    return texts[:most]


def write_mistake(mistake: Mistake, door: Door, place: str = "line") -> str:
    """Write what is wrong with a file as a whole, with its line."""
    text = write_fault(mistake, door, place)
    return f"{text[0].upper()}{text[1:]}."


def write_fault(mistake: Mistake, door: Door, place: str = "line") -> str:
    """Write what is wrong with a field, without its place."""
    return TEXTS[mistake.reason](Details(mistake, door, place))


def _write_row(mistakes: Sequence[Mistake], reading: Reading, door: Door) -> str:
    """Write what is wrong with a row; of a field, the first fault is enough."""
    first_by_field: dict[str, Mistake] = {}
    for mistake in mistakes:
        first_by_field.setdefault(mistake.field, mistake)
    place = place_word(reading)
    parts = []
    for mistake in first_by_field.values():
        cell = f"cell {mistake.cell}, " if mistake.cell else ""
        parts.append(cell + write_fault(mistake, door, place))
    return f"{place.capitalize()} {mistakes[0].line}: {'; '.join(parts)}."


def place_word(reading: Reading) -> str:
    """Return what a file's rows are counted by: `line`, or `row` in a workbook."""
    return "row" if reading.file_format is FileFormat.XLSX else "line"
