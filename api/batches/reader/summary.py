"""What a file comes to, for the person who is about to pay it."""

from collections.abc import Iterator

from api.batches.reader.phrases import list_names, list_numbers
from api.batches.reader.reading import Reading
from api.batches.reader.words import place_word
from core.money import format_dollars

_GROUPS_SHOWN_MAX = 5


def describe(reading: Reading) -> Iterator[str]:
    """Write how amounts were read, the smallest and the largest, and what was left out."""
    if reading.rows:
        amounts = [row.amount_cents for row in reading.rows]
        yield (
            f"Amounts are read as {reading.unit}: the smallest is {format_dollars(min(amounts))}, "
            f"the largest {format_dollars(max(amounts))}."
        )
    yield from describe_source(reading)


def describe_source(reading: Reading) -> Iterator[str]:
    """Write which part of a file was read, and which was not."""
    if reading.sheet and reading.other_sheets:
        yield f"The sheet {list_names([reading.sheet])} is read; left out: {list_names(reading.other_sheets)}."
    if reading.ignored:
        columns = "column" if len(reading.ignored) == 1 else "columns"
        yield f"The {columns} {list_names(reading.ignored)} {'is' if len(reading.ignored) == 1 else 'are'} left out."
    if reading.left_out:
        rows = "row is" if reading.left_out == 1 else "rows are"
        yield f"{reading.left_out:,} hidden {rows} left out."
    if reading.is_results:
        rows = "row was" if reading.paid_before == 1 else "rows were"
        yield f"These are the results of a batch: {reading.paid_before:,} {rows} paid before and left out."
    groups = reading.equal_rows()
    for lines in groups[:_GROUPS_SHOWN_MAX]:
        yield f"{place_word(reading).capitalize()}s {list_numbers(lines)} are equal: each is paid."
    if len(groups) > _GROUPS_SHOWN_MAX:
        yield f"{len(groups) - _GROUPS_SHOWN_MAX:,} more groups of rows are equal: each row is paid."
