"""Values, names and numbers as they stand in a text for people."""

import unicodedata
from collections.abc import Sequence
from typing import Any

_SHOWN_MAX_CHARACTERS = 40
_NUMBERS_SHOWN_MAX = 20


def show(value: Any) -> str:
    """Write a value that somebody sent, in quotes, without what cannot be seen."""
    text = str(value)
    clean = "".join(_show_character(character) for character in text[: _SHOWN_MAX_CHARACTERS + 1])
    return f"'{clean[:_SHOWN_MAX_CHARACTERS]}…'" if len(text) > _SHOWN_MAX_CHARACTERS else f"'{clean}'"


def _show_character(character: str) -> str:
    if character.isprintable():
        return character
    return " " if unicodedata.category(character) == "Zs" else "\N{REPLACEMENT CHARACTER}"


def list_names(names: Sequence[str]) -> str:
    """Write names one after the other, each in quotes."""
    shown = ", ".join(show(name) if name else "one without a name" for name in names[:_NUMBERS_SHOWN_MAX])
    more = len(names) - _NUMBERS_SHOWN_MAX
    return f"{shown} and {more:,} more" if more > 0 else shown


def list_numbers(numbers: Sequence[int]) -> str:
    """Write line or row numbers: `3`, `3 and 4`, `3, 4 and 7`."""
    if len(numbers) > _NUMBERS_SHOWN_MAX:
        return f"{', '.join(map(str, numbers[:_NUMBERS_SHOWN_MAX]))} and {len(numbers) - _NUMBERS_SHOWN_MAX:,} more"
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last
