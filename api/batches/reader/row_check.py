"""The check of one row after the other: e-mail, amount and reference, whatever the format is."""

import itertools
import re
from collections.abc import Callable
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, TypeGuard

import msgspec

from api.batches.reader.amounts import Unit, check_bounds, read_amount
from api.batches.reader.columns import FIELDS, Mapping
from api.batches.reader.json_rows import JsonNumber, Pairs, parse_pairs
from api.batches.reader.mistakes import Fault, Mistake, Reason
from core.batches.payout_batch import REFERENCE_MAX_CHARACTERS, BatchRow
from core.emails import EMAIL_MAX_CHARACTERS, normalise_email
from core.money import ALLOCATION_MAX_CENTS

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MISSING_WORDS = {"na", "n/a", "#n/a", "nan", "<na>", "null", "(null)", "none", "nil", "-", "undefined", "nat"}
_FEW_DIGITS = re.compile(r"[0-9]{1,2}\Z")
_FLOAT_DIGITS = ".15g"
"""How many digits of a stored number are what somebody entered; the rest is binary."""


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    email: str
    amount: msgspec.Raw
    reference: str | None = None


_decoder = msgspec.json.Decoder(_Row)


class RowCheck:
    """Checks rows, keeps the good ones, and notes what is wrong with the others."""

    def __init__(self, unit: Unit, mapping: Mapping, *, may_have_comma: bool = False) -> None:
        self.rows: list[BatchRow] = []
        self.lines: list[int] = []
        self.mistakes: list[Mistake] = []
        self.count = 0
        self.wrong_rows = 0
        self.cell_of: Callable[[int, str], str] | None = None
        self._unit = unit
        self._may_have_comma = may_have_comma
        self._mapping = mapping
        self._field_by_name = {str(name): field for field, name in mapping.names().items()}
        has_usual_names = self._field_by_name == {field: field for field in FIELDS} and not mapping.ignored
        self._may_be_quick = unit is Unit.CENTS and has_usual_names
        self._line_by_reference: dict[str, int] = {}
        self._first_comma = self._first_point = 0

    def add_json(self, line: int, text: bytes) -> bool:
        """Take a row of JSON; False where it is not JSON."""
        row = self._check_quickly(line, text) if self._may_be_quick else None
        if row is not None:
            self.rows.append(row)
            self.lines.append(line)
            self.count += 1
            return True
        try:
            pairs = parse_pairs(text)
        except ValueError:
            return False
        if pairs is None:
            self.refuse(line, "", Fault(Reason.NOT_AN_OBJECT))
            return True
        self._add_pairs(line, pairs)
        return True

    def add_cells(self, line: int, email: str, amount: str, reference: str | None) -> None:
        """Take a row of trimmed texts, as CSV has them."""
        found: list[tuple[str, Fault]] = []
        address = normalise_email(email)
        if address is None:
            found += [("email", fault) for fault in check_email(email)]
        cents = read_amount(amount, self._unit, may_have_comma=self._may_have_comma)
        if isinstance(cents, Fault):
            found.append(("amount", cents))
        elif self._may_have_comma:
            self._note_mark(line, amount)
        found += [("reference", fault) for fault in self._check_reference(line, reference)]
        self._finish(line, address, cents, reference, found)

    def add_values(self, line: int, email: Any, amount: Any, reference: Any, faults: dict[str, Fault]) -> None:
        """Take a row of a workbook; `faults` are those that its cells have already."""
        found: list[tuple[str, Fault]] = []
        address = normalise_email(email) if isinstance(email, str) else None
        if "email" not in faults and address is None:
            found += [("email", fault) for fault in check_email(email)]
        cents = read_value(amount, self._unit)
        if isinstance(cents, Fault) and "amount" not in faults:
            found.append(("amount", cents))
        text = _write_reference(reference)
        if isinstance(text, Fault):
            if "reference" not in faults:
                found.append(("reference", text))
            text = None
        else:
            found += [("reference", fault) for fault in self._check_reference(line, text)]
        self._finish(line, address, cents, text, [*faults.items(), *found])

    def refuse(self, line: int, field: str, *faults: Fault) -> None:
        """Note what is wrong with a whole row."""
        for fault in faults:
            self.mistakes.append(Mistake(fault.reason, fault.details, line, self.count, field, self._cell(line, field)))
        self.wrong_rows += 1
        self.count += 1

    def finish(self, *, has_reference: bool, is_by_commas: bool) -> None:
        """Note what only all rows together tell."""
        if self._first_comma and self._first_point:
            details = {"comma": self._first_comma, "point": self._first_point}
            self.mistakes.append(Mistake(Reason.MARKS_MIXED, details))
        if is_by_commas and has_reference and self._are_amounts_split():
            self.mistakes.append(Mistake(Reason.COMMAS_SPLIT_AMOUNTS, self._show_first()))

    def _check_quickly(self, line: int, text: bytes) -> BatchRow | None:
        """Return the row of an object that is as it should be; None where it takes a closer look."""
        try:
            row = _decoder.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None
        # A name that comes twice shows in the number of quotes that are no part of a text.
        quotes = (text if b"\\" not in text else text.replace(b"\\\\", b"").replace(b'\\"', b"")).count(b'"')
        digits = bytes(row.amount)
        email = normalise_email(row.email.strip())
        if email is None or not digits.isdigit() or len(digits) > 9:
            return None
        reference = row.reference
        if reference is None:
            if quotes != 6 and not (quotes == 8 and b'"reference"' in text):
                return None
        elif quotes != 10:
            return None
        else:
            reference = reference.strip() or None
            if reference is not None and (
                len(reference) > REFERENCE_MAX_CHARACTERS
                or _CONTROL.search(reference)
                or self._is_repeated(line, reference)
            ):
                return None
        cents = int(digits)
        return BatchRow(email, cents, reference) if 1 <= cents <= ALLOCATION_MAX_CENTS else None

    def _add_pairs(self, line: int, pairs: Pairs) -> None:
        found: list[tuple[str, Fault]] = []
        values: dict[str, Any] = {}
        repeated: set[str] = set()
        ignored = {str(name) for name in self._mapping.ignored}
        for name, value in pairs:
            field = self._field_by_name.get(name)
            if name in ignored:
                continue
            if field is None:
                if not self._mapping.ignores_others:
                    found.append((name, Fault(Reason.FIELD_UNKNOWN, {"name": name})))
            elif field in values:
                repeated.add(field)
            else:
                values[field] = value
        found += [(field, Fault(Reason.FIELD_REPEATED, {"name": field})) for field in FIELDS if field in repeated]
        email = values.get("email")
        email = email.strip() if _is_text(email) else email
        address = normalise_email(email) if _is_text(email) and not _SURROGATE.search(email) else None
        if address is None and "email" not in repeated:
            found += [("email", fault) for fault in check_email(email)]
        cents, faults = self._read_json_amount(values.get("amount"))
        if "amount" not in repeated:
            found += [("amount", fault) for fault in faults]
        reference = values.get("reference")
        if reference is not None and not _is_text(reference):
            if "reference" not in repeated:
                found.append(("reference", Fault(Reason.REFERENCE_NOT_TEXT, {"value": show_json(reference)})))
            reference = None
        elif "reference" not in repeated:
            reference = (reference or "").strip() or None
            found += [("reference", fault) for fault in self._check_reference(line, reference)]
        self._finish(line, address, cents, reference, found)

    def _read_json_amount(self, value: Any) -> tuple[int, list[Fault]]:
        if isinstance(value, JsonNumber):
            amount = read_amount(str(value), self._unit)
            if not isinstance(amount, Fault):
                return amount, []
            faults = [amount]
            if amount.reason not in {Reason.AMOUNT_TOO_SMALL, Reason.AMOUNT_TOO_LARGE}:
                bound = _find_bound(str(value))
                faults += [Fault(bound, amount.details)] if bound else []
            return 0, faults
        if value is None or (isinstance(value, str) and not value.strip()):
            return 0, [Fault(Reason.AMOUNT_MISSING)]
        if isinstance(value, str):
            return 0, [Fault(Reason.AMOUNT_AS_TEXT, {"value": value, "unit": self._unit})]
        return 0, [Fault(Reason.AMOUNT_NOT_A_NUMBER, {"value": show_json(value), "unit": self._unit})]

    def _check_reference(self, line: int, reference: str | None) -> list[Fault]:
        """Return what is wrong with a trimmed reference, and note that it was used."""
        if not reference:
            return []
        faults = []
        if len(reference) > REFERENCE_MAX_CHARACTERS:
            faults.append(Fault(Reason.REFERENCE_TOO_LONG, {"most": REFERENCE_MAX_CHARACTERS}))
        if _CONTROL.search(reference):
            faults.append(Fault(Reason.REFERENCE_CONTROL))
        if self._is_repeated(line, reference):
            details = {
                "value": reference,
                "first_line": self._line_by_reference[reference],
                "line": line,
                "is_missing_word": reference.lower() in _MISSING_WORDS,
            }
            faults.append(Fault(Reason.REFERENCE_REPEATED, details))
        return faults

    def _is_repeated(self, line: int, reference: str) -> bool:
        """Tell whether an earlier row has a reference, and note that this one has it."""
        here = line or -self.count - 1  # rows of a call's JSON have no lines: their numbers serve
        return self._line_by_reference.setdefault(reference, here) != here

    def _finish(
        self, line: int, email: str | None, cents: int | Fault, reference: str | None, found: list[tuple[str, Fault]]
    ) -> None:
        if found or email is None or isinstance(cents, Fault):
            for field, fault in found:
                cell = self._cell(line, field)
                self.mistakes.append(Mistake(fault.reason, fault.details, line, self.count, field, cell))
            self.wrong_rows += 1
            self.count += 1
        else:
            self._keep(line, BatchRow(email, cents, reference or None))

    def _keep(self, line: int, row: BatchRow) -> None:
        self.rows.append(row)
        self.lines.append(line)
        self.count += 1

    def _cell(self, line: int, field: str) -> str:
        return self.cell_of(line, field) if self.cell_of and field in FIELDS else ""

    def _note_mark(self, line: int, amount: str) -> None:
        if "," in amount:
            self._first_comma = self._first_comma or line
        elif "." in amount:
            self._first_point = self._first_point or line

    def _are_amounts_split(self) -> bool:
        """Tell whether each row looks as if the comma in its amount had made two cells of it."""
        references = [row.reference or "" for row in self.rows]
        if not all(_FEW_DIGITS.match(reference) for reference in references):
            return False
        # References that count from row to row are numbers of rows, and so is a single digit.
        numbers = [int(reference) for reference in references]
        counts = len(numbers) > 1 and all(after - before == 1 for before, after in itertools.pairwise(numbers))
        return not counts and any(len(reference) == 2 for reference in references)

    def _show_first(self) -> dict[str, Any]:
        row = self.rows[0]
        whole = row.amount_cents if self._unit is Unit.CENTS else row.amount_cents // 100
        return {"whole": whole, "rest": row.reference, "first_line": self.lines[0]}


def check_email(value: Any) -> list[Fault]:
    """Return what is wrong with an e-mail address that is not valid."""
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        return [Fault(Reason.EMAIL_MISSING)]
    if not _is_text(value):
        shown = {"value": show_json(value)}
        return [Fault(Reason.EMAIL_NOT_TEXT, shown), Fault(Reason.EMAIL_INVALID, shown)]
    faults = [Fault(Reason.EMAIL_INVALID, {"value": value})]
    if len(value) > EMAIL_MAX_CHARACTERS:
        faults.append(Fault(Reason.EMAIL_TOO_LONG, {"most": EMAIL_MAX_CHARACTERS}))
    return faults


def read_value(value: Any, unit: Unit) -> int | Fault:
    """Return the cents that a cell of a workbook holds."""
    if isinstance(value, str):
        return read_amount(value.strip(), unit)
    if isinstance(value, bool):
        return Fault(Reason.AMOUNT_NOT_A_NUMBER, {"value": str(value).upper(), "unit": unit})
    if isinstance(value, date | time | timedelta):
        return Fault(Reason.AMOUNT_DATE, {"value": str(value), "unit": unit})
    if value is None:
        return Fault(Reason.AMOUNT_MISSING)
    number = Decimal(format(value, _FLOAT_DIGITS))
    if not number.is_finite():
        return Fault(Reason.AMOUNT_NOT_A_NUMBER, {"value": str(value), "unit": unit})
    cents = number * 100 if unit is Unit.DOLLARS else number
    text = format(number, "f")
    if cents != cents.to_integral_value():
        return read_amount(text, unit)  # which says why
    return check_bounds(int(cents), text, unit)


def _write_reference(value: Any) -> str | Fault | None:
    """Return a cell's reference: text, or a whole number as it is shown."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = Decimal(format(value, _FLOAT_DIGITS))
        if number.is_finite() and number == number.to_integral_value() and abs(number) < 10**11:
            return format(int(number), "d")
        return Fault(Reason.REFERENCE_NUMBER)
    return Fault(Reason.REFERENCE_NOT_TEXT, {"value": str(value)})


def show_json(value: Any) -> str:
    """Write a value as JSON has it, for people."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "an array or an object" if isinstance(value, list) else str(value)


def _find_bound(literal: str) -> Reason | None:
    """Return which bound a number breaks that is no whole number of cents as it is written."""
    mantissa, _, exponent = literal.lower().partition("e")
    # Beyond six digits an exponent changes nothing, and takes long.
    sign = "-" if exponent.startswith("-") else ""
    digits = exponent.lstrip("+-").lstrip("0")[:6] or "0"
    value = Decimal(f"{mantissa}e{sign}{digits if len(exponent.lstrip('+-').lstrip('0')) <= 6 else '9' * 6}")
    if value < 1:
        return Reason.AMOUNT_TOO_SMALL
    return Reason.AMOUNT_TOO_LARGE if value > ALLOCATION_MAX_CENTS else None


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and not isinstance(value, JsonNumber)
