"""The payments of JSON and NDJSON."""

import json
from collections.abc import Iterator

from api.batches.reader import json_rows
from api.batches.reader.files import FileFormat
from api.batches.reader.json_rows import JsonRow
from api.batches.reader.mistakes import FileMistakeError, Reason
from api.batches.reader.progress import Progress
from api.batches.reader.row_check import RowCheck


def read_call(progress: Progress, body: bytes) -> None:
    """Read the JSON of an API call.

    Raises:
        NotAnObjectError: it is no object.

    """
    _read(progress, json_rows.read_body(body))


def read_json(progress: Progress, body: bytes, found: FileFormat) -> None:
    """Read a file that is JSON or NDJSON; what an API call says that it is, it has to be."""
    rows = None if progress.is_call else json_rows.read_document(body)
    if rows is None and found is FileFormat.JSON and not progress.is_call:
        _explain_array(body)
    progress.reading.file_format = FileFormat.NDJSON if rows is None else FileFormat.JSON
    _read(progress, json_rows.read_lines(body) if rows is None else rows)


def _read(progress: Progress, rows: Iterator[JsonRow]) -> None:
    check = RowCheck(progress.options.unit, progress.options.mapping)
    is_checked = progress.options.file_format is FileFormat.JSON  # the body as a whole was
    progress.take_mistakes(check)
    try:
        for line, text in rows:
            if not progress.goes_on(check):
                break
            if progress.is_only_counted(check):
                if not is_checked and not _is_json(text):
                    _refuse_line(progress, check, line, text)
                check.count += 1
            elif not check.add_json(line, text):
                _refuse_line(progress, check, line, text)
    finally:
        progress.take_rows(check)


def _refuse_line(progress: Progress, check: RowCheck, line: int, text: bytes) -> None:
    reason = Reason.ARRAY_AS_NDJSON if text.startswith(b"[") else Reason.NOT_JSON
    progress.refuse_line(check, reason, line)


def _explain_array(body: bytes) -> None:
    """Say on which line an array is no JSON."""
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        raise FileMistakeError(Reason.NOT_JSON, error.lineno) from None
    except (ValueError, RecursionError):
        raise FileMistakeError(Reason.NOT_JSON, 1) from None


def _is_json(text: bytes) -> bool:
    try:
        json_rows.parse_pairs(text)
    except ValueError:
        return False
    return True
