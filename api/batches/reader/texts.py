"""One text for people for each reason, with what to do about it."""

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from api.batches.reader.amounts import Unit
from api.batches.reader.doors import Door
from api.batches.reader.mistakes import Mistake, Reason
from api.batches.reader.phrases import list_names, list_numbers, show
from core.money import ALLOCATION_MAX_CENTS, format_decimal

_HOW = "a point, no thousands separators, no currency"


class Details:
    """A mistake's details, and what its door makes of them; `place` is what rows are counted by, `line` or `row`."""

    def __init__(self, mistake: Mistake, door: Door, place: str) -> None:
        self.line = mistake.line
        self.place = place
        self.door = door
        self.cures = door.value
        self._details = mistake.details

    def __getitem__(self, name: str) -> Any:
        return self._details[name]

    def get(self, name: str) -> Any:
        """Return a detail; None where the reason has none of this name."""
        return self._details.get(name)

    @property
    def at_line(self) -> str:
        """The header's line."""
        return f"{self.place} {self.line}" if self.line else "the header"

    @property
    def value(self) -> str:
        """The value as it is written."""
        return show(self._details["value"])

    @property
    def amount(self) -> str:
        """The amount as it is written."""
        return f"the amount {self.value}"

    @property
    def in_cents(self) -> bool:
        """Whether amounts are cents."""
        return bool(self._details["unit"] is Unit.CENTS)

    @property
    def cure(self) -> str:
        """What to write instead of an amount."""
        cents, dollars = self.get("as_cents"), self.get("as_dollars")
        if not self.in_cents:
            return f"write {_trim(dollars)}: {_HOW}" if dollars else f"write dollars as 1234.56: {_HOW}"
        dollars_too = f"{self.cures.in_dollars} and write {_trim(dollars) if dollars else '1234.56'}: {_HOW}"
        if cents and dollars.endswith(".00") and not self.get("has_decimals"):
            text = f"if these are cents, write {dollars.removesuffix('.00')}"
            dollars_too = dollars_too if self.cures.in_dollars else f"write {cents}"
            return f"{text}; if these are dollars ({self['shown']}), {dollars_too}"
        text = f"write whole cents, digits alone: {cents} for {self['shown']}" if cents else "write whole cents"
        return f"{text}; or {dollars_too}" if self.cures.in_dollars else text


def _trim(dollars: str) -> str:
    return dollars.removesuffix(".00")


def _amount_point(details: Details) -> str:
    """A decimal point in cents: those of a program that writes `100.0`, or dollars."""
    value = str(details["value"])
    whole, _, decimals = value.lstrip("+").partition(".")
    start = f"{details.amount} is not whole cents, written without a point"
    dollars = details.cures.in_dollars
    if decimals.strip("0"):
        cents = f"in cents {details['shown']} is {details['as_cents']}" if details.get("as_cents") else "write cents"
        return f"{start}: {cents}; if the file is in dollars, {dollars}" if dollars else f"{start}: {cents}"
    text = f"{start}: if these are cents, write {whole.lstrip('0') or '0'}"
    shown = f" ({details['shown']})" if details.get("shown") else ""
    if dollars:
        return f"{text}; if these are dollars{shown}, {dollars}"
    return f"{text}; if these are dollars{shown}, write {details['as_cents']}" if shown else text


def _amount_exponent(details: Details) -> str:
    written = details.get("written_out")
    text = f"{details.amount} has an exponent: write it out"
    if not written:
        return text
    return f"{text}: {written}, in whole cents" if "." in written and details.in_cents else f"{text}: {written}"


def _amount_may_be_thousands(details: Details) -> str:
    value = str(details["value"])
    digits = value.replace(".", "").replace(",", "")
    whole = value.replace(",", ".").partition(".")[0]
    text = f"{details.amount} has more than two decimals, or is {int(digits)} with a thousands separator"
    return f"{text}: write {int(digits)} or {int(whole)}" + ("" if details.in_cents else ", without a separator")


def _bounds(details: Details) -> str:
    if details.in_cents:
        return f"{details.amount} is not from 1 to {ALLOCATION_MAX_CENTS} cents"
    return f"{details.amount} is not from 0.01 to {format_decimal(ALLOCATION_MAX_CENTS)} dollars"


def _columns_missing(details: Details) -> str:
    missing, columns, guesses = details["missing"], details["columns"], details["guesses"]
    noun = "columns" if len(missing) > 1 else "column"
    text = f"{details.at_line} does not name the {noun} {' and '.join(missing)}; it names {list_names(columns)}"
    if details.door is Door.PUSH:
        wanted = [*missing, *(["reference"] if "reference" in guesses else [])]
        options = " ".join(f"--{field}-column {shlex.quote(guesses.get(field, 'NAME'))}" for field in wanted)
        rest = [name for name in columns if name and name not in guesses.values() and name.lower() not in _FIELD_NAMES]
        if rest:
            options += f" --ignore-columns {shlex.quote(','.join(rest))}"
        return f"{text}. Say which is which: {options}"
    if details.door is Door.DASHBOARD:
        return f"{text}. Choose below which column is which"
    return f"{text}. The columns are email, amount and, if wanted, reference"


_FIELD_NAMES = {"email", "amount", "reference"}


def _columns_unknown(details: Details) -> str:
    names = details["names"]
    what, them = ("unknown columns", "them") if len(names) > 1 else ("an unknown column", "it")
    known = "the columns are email, amount and reference"
    text = f"{details.at_line} names {what}, {list_names(names)}; {known}"
    if details.door is Door.PUSH:
        return f"{text}. To leave {them} out: --ignore-columns {shlex.quote(','.join(names))}"
    return f"{text}. Choose below which columns to pay from" if details.door is Door.DASHBOARD else text


def _column_unnamed(details: Details) -> str:
    text = f"column {details['number']} has no name, and has {details.value} in {details.place} {details['line']}"
    if details.door is Door.PUSH:
        return f"{text}. Name it, or leave it out: --ignore-columns {details['number']}"
    return f"{text}. Name it, or {'choose below' if details.door is Door.DASHBOARD else 'leave it out'}"


def _rows_hidden(details: Details) -> str:
    rows = details["rows"]
    text = f"{'rows' if len(rows) > 1 else 'row'} {list_numbers(rows)} of the sheet {_are(rows)} hidden or filtered out"
    them = "them" if len(rows) > 1 else "it"
    if details.door is Door.PUSH:
        return f"{text}. Show {them}, or say what becomes of {them}: --hidden-rows take or --hidden-rows leave"
    return f"{text}. Show {them}, or choose below what becomes of {them}"


def _are(items: Sequence[Any]) -> str:
    return "are" if len(items) > 1 else "is"


def _not_utf_8(details: Details) -> str:
    encoding = details["encoding"]
    text = f"{details.at_line} is not valid UTF-8"
    if encoding:
        text += f"; it is probably {encoding}"
    return f"{text}. Save the file as UTF-8 (in Excel: Save As, CSV UTF-8)"


def _foreign(details: Details) -> str:
    kind = details["kind"]
    if kind == "HTML or XML":
        return "this is HTML or XML, whatever its name says. Save it as CSV or .xlsx"
    return f"this is {kind}, which is not read. {_save_as(details)}"


def _save_as(details: Details) -> str:
    if details.cures.takes_workbooks:
        return "Open it and save it as .xlsx or as CSV UTF-8"
    return "Send CSV, NDJSON or JSON; payouts push and the dashboard read .xlsx too"


def _several_sheets(details: Details) -> str:
    have = "the columns" if details["have_columns"] else "rows, and none names the columns email and amount"
    text = f"the sheets {list_names(details['names'])} all have {have}"
    if details.door is Door.PUSH:
        return f"{text}. Say which one to pay: --sheet {shlex.quote(details['names'][0])}"
    return f"{text}. Leave one of them visible, or save it as a file of its own"


def _no_visible_sheet(details: Details) -> str:
    hidden = details["hidden"]
    if not hidden:
        return "the workbook has no sheet with rows"
    return f"the workbook has no visible sheet with rows; hidden: {list_names(hidden)}. Show the one to pay"


def _reference_repeated(details: Details) -> str:
    lines = list_numbers([details["first_line"], details["line"]])
    text = f"the reference {details.value} is on {details.place}s {lines}; a reference pays once"
    if details.get("is_missing_word"):
        return f"{text}. It looks like a missing value: leave the cell empty for no reference"
    return text


def _email_invalid(details: Details) -> str:
    return f"{details.value} is not a valid e-mail address"


def _not_json(details: Details) -> str:
    text = f"line {details.line} is not JSON"
    return text if details.door is Door.API else f"{text}: write one JSON object a line"


def _array_as_ndjson(details: Details) -> str:
    return f"line {details.line} is not JSON: write one JSON object a line, without brackets and commas around them"


def _no_rows(details: Details) -> str:
    return "the file has no rows, only the names of the columns" if details.get("is_table") else "the file is empty"


_EMPTY = "the file is empty; its first line must name the columns: email,amount or email,amount,reference"
TEXTS: dict[Reason, Callable[[Details], str]] = {
    Reason.EMPTY: lambda _: _EMPTY,
    Reason.NO_ROWS: _no_rows,
    Reason.TOO_LARGE: lambda d: f"the file is larger than {d['megabytes']} MB; split it",
    Reason.TOO_MANY_ROWS: lambda d: f"the file has more than {d['most']:,} rows, the most that one batch may have",
    Reason.FOREIGN_FORMAT: _foreign,
    Reason.WORKBOOK_NOT_TAKEN: lambda d: f"this is an .xlsx workbook, which is not read here. {_save_as(d)}",
    Reason.ENCRYPTED: lambda _: "the workbook has a password. Save it without one",
    Reason.DAMAGED: lambda d: f"the {d['kind']} is damaged or incomplete. Save or download it again",
    Reason.UNPACKED_TOO_LARGE: lambda d: f"the file unpacks to more than {d['megabytes']} MB. Split it",
    Reason.NOT_UTF_8: _not_utf_8,
    Reason.CUT_OFF: lambda d: (
        f"the file ends in the middle of a character, on line {d.line}. It is probably incomplete: save it again"
    ),
    Reason.UTF_16_WITHOUT_MARK: lambda _: (
        "line 1 is not valid UTF-8; it is probably UTF-16. Save the file as UTF-8 (in Excel: Save As, CSV UTF-8)"
    ),
    Reason.NOT_CSV: lambda d: f"line {d.line} is not CSV: {d['error']}",
    Reason.JSON_AS_CSV: lambda _: (
        "the body is JSON: send Content-Type: application/json, or one JSON object a line as application/x-ndjson"
    ),
    Reason.CSV_AS_JSON: lambda _: "the body is CSV: send Content-Type: text/csv",
    Reason.NDJSON_AS_JSON: lambda _: "the body has one JSON object a line: send Content-Type: application/x-ndjson",
    Reason.NOT_JSON: _not_json,
    Reason.ARRAY_AS_NDJSON: _array_as_ndjson,
    Reason.CELL_COUNT: lambda d: (
        f"line {d.line} has {d['count']} cell{'' if d['count'] == 1 else 's'}, and there are {d['width']} columns"
    ),
    Reason.SEPARATOR_UNKNOWN: lambda d: (
        f"line 1 says that {show(d['separator'])} separates columns; use commas, semicolons or tabs"
    ),
    Reason.SEPARATOR_BARS: lambda d: f"{d.at_line} separates columns by bars; use commas, semicolons or tabs",
    Reason.NO_HEADER: lambda d: (
        f"{d.at_line} names no columns: it has an e-mail address. Put the names of the columns above it: email,amount "
        "or email,amount,reference"
    ),
    Reason.HEADER_LATER: lambda d: (
        f"{d.at_line} is no header: the columns are named on {d.place} {d['later']}. Delete what stands above it"
    ),
    Reason.COLUMNS_MISSING: _columns_missing,
    Reason.COLUMNS_UNKNOWN: _columns_unknown,
    Reason.COLUMN_REPEATED: lambda d: f"{d.at_line} names the column {d['name']} twice",
    Reason.COLUMN_NOT_THERE: lambda d: (
        f"{d.at_line} names no column {show(d['name'])}; it names {list_names(d['columns'])}"
    ),
    Reason.COLUMN_USED_TWICE: lambda d: f"the column {show(d['name'])} cannot be two things at once",
    Reason.COLUMN_UNNAMED: _column_unnamed,
    Reason.COLUMN_HIDDEN: lambda d: (
        f"column {' and '.join(d['columns'])} of the sheet {_are(d['columns'])} hidden. Show what is to be paid"
    ),
    Reason.HISTORY_EXPORT: lambda _: "this is an export of the history: nothing to pay in it",
    Reason.USERS_EXPORT: lambda _: "this is an export of the payout users: nothing to pay in it",
    Reason.BATCHES_EXPORT: lambda _: "this is an export of the batches: nothing to pay in it",
    Reason.MARKS_MIXED: lambda d: (
        f"the file has decimal points and commas: a comma on line {d['comma']}, a point on line {d['point']}. "
        "Use one of them"
    ),
    Reason.COMMAS_SPLIT_AMOUNTS: lambda d: (
        f"the amounts look like decimal commas: line {d['first_line']} may mean {d['whole']},{d['rest']} instead of "
        f"the amount {d['whole']} and the reference {d['rest']}. Write amounts with a point, or separate columns by "
        "semicolons; write references with three characters or more"
    ),
    Reason.NO_VISIBLE_SHEET: _no_visible_sheet,
    Reason.SEVERAL_SHEETS: _several_sheets,
    Reason.SHEET_NOT_THERE: lambda d: (
        f"the workbook has no visible sheet {show(d['name'])}; it has {list_names(d['names'])}"
    ),
    Reason.SHEET_TOO_WIDE: lambda d: f"the sheet reaches to cell {d['cell']}. Delete what stands far from the payments",
    Reason.ROWS_HIDDEN: _rows_hidden,
    Reason.CELL_ERROR: lambda d: f"it has the error {d['value']}",
    Reason.CELL_FORMULA: lambda _: "its formula has no stored value: open the workbook, let it calculate, and save it",
    Reason.NOT_AN_OBJECT: lambda _: "it is not a JSON object",
    Reason.FIELD_UNKNOWN: lambda d: (
        f"the field {show(d['name'])} is unknown; the fields are email, amount and reference, in lower case"
        + (f" (leave it out with --ignore-columns {shlex.quote(d['name'][:40])})" if d.door is Door.PUSH else "")
    ),
    Reason.FIELD_REPEATED: lambda d: f"it names the field {d['name']} twice",
    Reason.EMAIL_MISSING: lambda _: "the email is missing",
    Reason.EMAIL_NOT_TEXT: _email_invalid,
    Reason.EMAIL_INVALID: _email_invalid,
    Reason.EMAIL_TOO_LONG: lambda d: f"the email is longer than {d['most']} characters",
    Reason.REFERENCE_NOT_TEXT: lambda d: f"the reference {d.value} is not text: it must be a string",
    Reason.REFERENCE_NUMBER: lambda _: (
        "the reference is a number, and may be shown otherwise than it is stored: format the column as text, and write "
        "it anew"
    ),
    Reason.REFERENCE_TOO_LONG: lambda d: f"the reference is longer than {d['most']} characters",
    Reason.REFERENCE_CONTROL: lambda _: "the reference has control characters, such as a line end",
    Reason.REFERENCE_REPEATED: _reference_repeated,
    Reason.OUTCOME_UNKNOWN: lambda d: (
        f"its outcome is {d.value}: neither paid nor cancelled. Pay results when their batch is finished, and take out "
        "what was reversed"
    ),
    Reason.RESULT_CHANGED: lambda d: (
        f"amount_cents {show(d['cents'])} and amount_dollars {show(d['dollars'])} differ: results are read as "
        "they were written"
    ),
    Reason.AMOUNT_MISSING: lambda _: "the amount is missing",
    Reason.AMOUNT_AS_TEXT: lambda d: (
        f"{d.amount} is text: it must be an integer, without quotes"
        if d.in_cents
        else f"{d.amount} is text: it must be a number, without quotes"
    ),
    Reason.AMOUNT_POINT: _amount_point,
    Reason.AMOUNT_EXPONENT: _amount_exponent,
    Reason.AMOUNT_COMMA: lambda d: f"{d.amount} has a decimal comma: {d.cure}",
    Reason.AMOUNT_MAY_BE_THOUSANDS: _amount_may_be_thousands,
    Reason.AMOUNT_THOUSANDS: lambda d: f"{d.amount} has thousands separators: {d.cure}",
    Reason.AMOUNT_SPACE: lambda d: f"{d.amount} contains a {d['space']}: {d.cure}",
    Reason.AMOUNT_CURRENCY: lambda d: f"{d.amount} has a currency or a word; amounts are in US dollars: {d.cure}",
    Reason.AMOUNT_NEGATIVE: lambda d: f"{d.amount} is negative: a payout is a positive amount",
    Reason.AMOUNT_TOO_PRECISE: lambda d: f"{d.amount} has more than two decimals: round it to cents",
    Reason.AMOUNT_FORMULA: lambda d: f"{d.amount} is a formula: write {d['formula_text'] or 'the number'} alone",
    Reason.AMOUNT_OTHER_DIGITS: lambda d: f"{d.amount} has other digits: write it with the digits 0 to 9 alone",
    Reason.AMOUNT_DATE: lambda d: f"the amount is a date, {d.value}: format the cell as a number, and write it anew",
    Reason.AMOUNT_FORMAT: lambda _: (
        "the amount is shown as a percentage or in another currency: amounts are in US dollars"
    ),
    Reason.AMOUNT_NOT_A_NUMBER: lambda d: (
        f"{d.amount} is not a number: write digits alone"
        if d.in_cents
        else f"{d.amount} is not a number: write dollars as 1234.56"
    ),
    Reason.AMOUNT_TOO_SMALL: _bounds,
    Reason.AMOUNT_TOO_LARGE: _bounds,
}
