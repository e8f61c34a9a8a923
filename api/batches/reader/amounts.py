"""Amounts as people and programs write them: whole cents, or dollars with at most two decimals; nothing is guessed."""

import re
import unicodedata
from decimal import Decimal
from enum import StrEnum

from api.batches.reader.mistakes import Fault, Reason
from core.money import ALLOCATION_MAX_CENTS, format_decimal, format_dollars


class Unit(StrEnum):
    """What an amount counts."""

    CENTS = "cents"
    DOLLARS = "dollars"


_DIGITS_MAX = 40
_EXPONENT_MAX = 20
_INTEGER = re.compile(r"-?[0-9]+\Z")
_DOLLARS = re.compile(r"\+?(?:[0-9]+(?:\.[0-9]{0,2})?|\.[0-9]{1,2})\Z")
_DOLLARS_WITH_COMMA = re.compile(r"[0-9]+,[0-9]{1,2}\Z")
_EXPONENT = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))[eE]([+-]?[0-9]+)\Z")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)\Z")
_COMMA = re.compile(r"[0-9]+,[0-9]{1,2}\Z")
_MAY_BE_THOUSANDS = re.compile(r"[0-9]{1,3}[.,][0-9]{3}\Z")
_GROUPS = re.compile(r"[0-9][0-9 ,._'’]*[0-9]\Z")  # noqa: RUF001 (Swiss thousands)
_DOLLAR_WORDS = re.compile(r"US ?\$|USD|dollars?|\$", re.IGNORECASE)
_PLAIN = re.compile(r"[0-9]+(?:[.,][0-9]{1,2})?\Z")
_AROUND = re.compile(r"\A[x_]+\.?_*|[x_]+\.?\Z")
# A separator, the decimal mark beside it, and the form. One group of a point or comma alone may be decimals.
_GROUPED = (
    ("_", "x", re.compile(r"[0-9]{1,3}(?:_[0-9]{3})+\Z")),
    ("_", ".", re.compile(r"[0-9]{1,3}(?:_[0-9]{3})+\.[0-9]{1,2}\Z")),
    ("_", ",", re.compile(r"[0-9]{1,3}(?:_[0-9]{3})+,[0-9]{1,2}\Z")),
    (",", ".", re.compile(r"[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}\.[0-9]{1,2}\Z")),
    (".", ",", re.compile(r"[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}\Z")),
    (",", "x", re.compile(r"[0-9]{1,3}(?:,[0-9]{2,3})+,[0-9]{3}\Z")),
    (".", "x", re.compile(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}\Z")),
)
_FORMULA_TEXT = re.compile(r"[0-9][0-9.,]*")
_DECIMALS = re.compile(r"[.,][0-9]{1,2}(?![0-9])")
_MINUS_SIGNS = "-−–"  # noqa: RUF001 (the minus of spreadsheets, and the dash of word processors)


def read_amount(text: str, unit: Unit, *, may_have_comma: bool = False) -> int | Fault:
    """Return the cents that a trimmed text says, or why it says none for certain.

    A decimal comma is for files that do not separate their columns by commas.
    """
    if unit is Unit.CENTS:
        if text.isascii() and text.isdigit():
            return check_bounds(_to_int(text), text, unit)
    elif _DOLLARS.match(text):
        return check_bounds(_to_cents(text), text, unit)
    elif may_have_comma and _DOLLARS_WITH_COMMA.match(text):
        return check_bounds(_to_cents(text.replace(",", ".")), text, unit)
    return _explain(text, unit)


def check_bounds(cents: int, text: str, unit: Unit) -> int | Fault:
    """Return an amount that one payment may have."""
    if cents < 1:
        return Fault(Reason.AMOUNT_TOO_SMALL, {"value": text, "unit": unit})
    if cents > ALLOCATION_MAX_CENTS:
        return Fault(Reason.AMOUNT_TOO_LARGE, {"value": text, "unit": unit})
    return cents


def _to_int(digits: str) -> int:
    # Longer texts only cost time: they are too large.
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _DIGITS_MAX else ALLOCATION_MAX_CENTS + 1


def _to_cents(text: str) -> int:
    whole, _, decimals = text.lstrip("+").partition(".")
    return _to_int(whole + decimals.ljust(2, "0"))


def _explain(text: str, unit: Unit) -> Fault:
    """Say why a text is no amount, and what to write instead where that is certain."""
    if not text:
        return Fault(Reason.AMOUNT_MISSING)
    details: dict[str, object] = {"value": text, "unit": unit}
    meant = _guess(text)
    if meant is not None:
        details |= {
            "as_cents": str(int(meant * 100)),
            "as_dollars": format_decimal(int(meant * 100)),
            "shown": format_dollars(int(meant * 100)),
            "has_decimals": _DECIMALS.search(text) is not None,
        }
    reason = _find_reason(text, unit, details)
    return Fault(reason, details)


def _find_reason(text: str, unit: Unit, details: dict[str, object]) -> Reason:
    if exponent := _EXPONENT.match(text):
        if len(exponent[2].lstrip("+-0")) <= 2 and abs(int(exponent[2])) <= _EXPONENT_MAX and len(text) <= _DIGITS_MAX:
            details["written_out"] = _write_out(text)
        return Reason.AMOUNT_EXPONENT
    if text.startswith(("=", "'=")):
        digits = _FORMULA_TEXT.search(text)
        details["formula_text"] = digits[0] if digits else ""
        return Reason.AMOUNT_FORMULA
    if _INTEGER.match(text):
        return Reason.AMOUNT_TOO_SMALL  # a negative whole number
    for character in text:
        reason = None if character.isascii() else _find_foreign(character, details)
        if reason is not None:
            return reason
    has_digit = any(character.isdigit() for character in text)
    if has_digit and (text[0] in "(-" or text[-1] in ")-"):
        return Reason.AMOUNT_NEGATIVE
    if has_digit and any(character.isalpha() or character in "$%" for character in text):
        return Reason.AMOUNT_CURRENCY
    return _find_punctuation(text, unit)


def _find_foreign(character: str, details: dict[str, object]) -> Reason | None:
    """Tell what a character beyond ASCII does in an amount."""
    category = unicodedata.category(character)
    if category in {"Zs", "Zl", "Zp", "Cf"}:
        details["space"] = unicodedata.name(character, "space").lower()
        return Reason.AMOUNT_SPACE
    if category in {"Nd", "No", "Nl"}:
        return Reason.AMOUNT_OTHER_DIGITS
    if character in _MINUS_SIGNS:
        return Reason.AMOUNT_NEGATIVE
    return Reason.AMOUNT_CURRENCY if category == "Sc" else None


def _find_punctuation(text: str, unit: Unit) -> Reason:
    if _MAY_BE_THOUSANDS.match(text):
        return Reason.AMOUNT_MAY_BE_THOUSANDS
    if _COMMA.match(text):
        return Reason.AMOUNT_COMMA
    if _NUMBER.match(text) and "." in text:
        decimals = text.partition(".")[2]
        is_point_alone = unit is Unit.CENTS and (len(decimals) <= 2 or not decimals.strip("0"))
        return Reason.AMOUNT_POINT if is_point_alone else Reason.AMOUNT_TOO_PRECISE
    if _GROUPS.match(text) and _guess(text) is not None:
        return Reason.AMOUNT_THOUSANDS
    return Reason.AMOUNT_NOT_A_NUMBER


def _write_out(text: str) -> str:
    written = format(Decimal(text), "f")
    return (written.rstrip("0").rstrip(".") if "." in written else written).lstrip("+")


def _guess(text: str) -> Decimal | None:
    """Return the one amount in dollars that somebody can have meant, for a text to copy; None where there are two."""
    if len(text) > _DIGITS_MAX or not any("0" <= character <= "9" for character in text):
        return None
    bare = _DOLLAR_WORDS.sub("", text)
    if any(character.isalpha() or character == "%" or unicodedata.category(character) == "Sc" for character in bare):
        return None  # of another currency nobody can tell how many dollars it is
    core = "".join(_simplify(character) for character in bare).strip("_")
    core = _AROUND.sub("", core).strip("_")
    plain = _PLAIN.match(core)
    if plain:
        return Decimal(core.replace(",", "."))
    for separator, decimal, pattern in _GROUPED:
        if pattern.match(core):
            return Decimal(core.replace(separator, "").replace(decimal, "."))
    return None


def _simplify(character: str) -> str:
    if character in "_'’" or unicodedata.category(character) == "Zs":  # noqa: RUF001 (Swiss thousands)
        return "_"
    return character if character in "0123456789.," else "x"
