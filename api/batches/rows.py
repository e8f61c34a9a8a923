"""The rows of a payout batch as an API call sends them: JSON, CSV or NDJSON, answered in the contract's words.

Errors are by field, as everywhere: `allocations.17.email` is that of row 17, counted from 0. What is wrong with the
body as a whole is said of `allocations`, with the line, counted from 1. At most a hundred rows are reported.
"""

import itertools
from collections.abc import Callable, Iterator

from api.batches.reader.columns import Mapping
from api.batches.reader.csv_table import open_csv
from api.batches.reader.doors import Door
from api.batches.reader.files import FileFormat, decode, find_format
from api.batches.reader.json_rows import NotAnObjectError, parse_pairs, read_lines
from api.batches.reader.mistakes import FileMistakeError, Mistake, Reason
from api.batches.reader.options import Options
from api.batches.reader.payments import read_payments
from api.batches.reader.reading import Reading
from api.batches.reader.words import write_fault, write_mistake
from api.web.validation import FieldErrors, NotAnObject
from core.batches.payout_batch import REFERENCE_MAX_CHARACTERS, ROWS_MAX, BatchRow
from core.emails import EMAIL_MAX_CHARACTERS
from core.money import ALLOCATION_MAX_CENTS

ROWS_REPORTED_MAX = 100
_NAME_MAX_CHARACTERS = 40
_FORMAT_BY_TYPE = {
    "application/json": FileFormat.JSON,
    "text/csv": FileFormat.CSV,
    "application/x-ndjson": FileFormat.NDJSON,
    "application/ndjson": FileFormat.NDJSON,
    "application/jsonl": FileFormat.NDJSON,
    "application/jsonlines": FileFormat.NDJSON,
}
_NAME = "allocations"
_REQUIRED = "The {} field is required."
_INTEGER = "The {} must be an integer."
_WHOLE_CENTS = "The {} must be whole cents, written without a point or an exponent."
_BODY_TEXTS = {
    Reason.NO_ROWS: _REQUIRED,
    Reason.NOT_AN_OBJECT: "The {} must be an array.",
    Reason.FIELD_REPEATED: "The {} field must be given once.",
    Reason.TOO_MANY_ROWS: f"The {{}} may not have more than {ROWS_MAX} items.",
}
_ROW_TEXTS = {
    Reason.NOT_AN_OBJECT: "The {} must be an object.",
    Reason.FIELD_UNKNOWN: "The {} field is not known.",
    Reason.FIELD_REPEATED: "The {} field must be given once.",
    Reason.EMAIL_MISSING: _REQUIRED,
    Reason.EMAIL_NOT_TEXT: "The {} must be a string.",
    Reason.EMAIL_INVALID: "The {} must be a valid email address.",
    Reason.EMAIL_TOO_LONG: f"The {{}} may not be greater than {EMAIL_MAX_CHARACTERS} characters.",
    Reason.REFERENCE_NOT_TEXT: "The {} must be a string.",
    Reason.REFERENCE_TOO_LONG: f"The {{}} may not be greater than {REFERENCE_MAX_CHARACTERS} characters.",
    Reason.REFERENCE_CONTROL: "The {} may not contain control characters.",
    Reason.REFERENCE_REPEATED: "The {} has a duplicate value.",
    Reason.AMOUNT_MISSING: _REQUIRED,
    Reason.AMOUNT_TOO_SMALL: "The {} must be at least 1.",
    Reason.AMOUNT_TOO_LARGE: f"The {{}} may not be greater than {ALLOCATION_MAX_CENTS}.",
    Reason.OUTCOME_UNKNOWN: "The {} must be that of a row that is paid or cancelled.",
    Reason.RESULT_CHANGED: "The {} must be the same in cents and in dollars.",
}


def find_body_format(content_type: str) -> FileFormat | None:
    """Return the format that a `Content-Type` names; None where it names none, and the body is taken for JSON."""
    return _FORMAT_BY_TYPE.get(content_type.partition(";")[0].strip().lower())


def parse_rows(
    body: bytes, written_as: FileFormat | None, check_time: Callable[[], None] = lambda: None
) -> list[BatchRow] | FieldErrors | NotAnObject:
    """Read and check all rows of a batch; every thousand rows, `check_time` may raise to end it."""
    options = Options(file_format=written_as or FileFormat.JSON, rows_max=ROWS_MAX, wrong_rows_max=ROWS_REPORTED_MAX)
    try:
        reading = read_payments(body, options, check_time)
    except NotAnObjectError:
        mistake = None if written_as else _find_unnamed_format(body)
        return NotAnObject() if mistake is None else _write_body_mistake(mistake)
    if not reading.mistakes and not reading.rows:
        return {_NAME: ["Every row of these results is paid already."]}
    return _write_errors(reading) if reading.mistakes else reading.rows


def _write_errors(reading: Reading) -> FieldErrors:
    for mistake in reading.mistakes:
        if mistake.row is None:
            return _write_body_mistake(mistake)
    errors: FieldErrors = {}
    for mistake in reading.mistakes:
        name = f"{_NAME}.{mistake.row}"
        if mistake.field:
            name += f".{mistake.field[:_NAME_MAX_CHARACTERS]}"
        texts = errors.setdefault(name, [])
        texts += [text for text in _write_texts(mistake, name, reading) if text not in texts]
    # What a text says of the line comes behind the contract's texts.
    return {name: sorted(texts, key=lambda text: not text.startswith("The ")) for name, texts in errors.items()}


def _write_body_mistake(mistake: Mistake) -> FieldErrors:
    text = _BODY_TEXTS.get(mistake.reason)
    return {_NAME: [text.format(_NAME) if text else write_mistake(mistake, Door.API)]}


def _write_texts(mistake: Mistake, name: str, reading: Reading) -> Iterator[str]:
    text = _ROW_TEXTS.get(mistake.reason)
    if text is not None:
        yield text.format(name)
        return
    yield _INTEGER.format(name)
    if reading.file_format is FileFormat.CSV:
        yield f"Line {mistake.line}: {write_fault(mistake, Door.API)}."
    elif _is_whole(mistake):
        yield _WHOLE_CENTS.format(name)


def _is_whole(mistake: Mistake) -> bool:
    """Tell whether a number of JSON is an integer in all but its spelling."""
    if mistake.reason is Reason.AMOUNT_EXPONENT:
        return "." not in mistake.details.get("written_out", ".")
    value = str(mistake.details.get("value", ""))
    return mistake.reason is Reason.AMOUNT_POINT and not value.partition(".")[2].strip("0")


def _find_unnamed_format(body: bytes) -> Mistake | None:
    """Tell what a body is that is no JSON object and whose content type names none of the formats."""
    try:
        if find_format(body) is not FileFormat.CSV:
            is_rows = any(parse_pairs(text) for _, text in itertools.islice(read_lines(body), 1))
            return Mistake(Reason.NDJSON_AS_JSON) if is_rows else None
        is_table = open_csv(decode(body), Mapping()).header_at is not None
    except FileMistakeError as error:
        return error.mistake if error.mistake.reason is Reason.FOREIGN_FORMAT else None
    except ValueError:
        return None
    return Mistake(Reason.CSV_AS_JSON) if is_table else None
