"""Reading a file of payments from its bytes: every door comes through here."""

from collections.abc import Callable

from api.batches.reader.csv_payments import read_csv
from api.batches.reader.files import FileFormat, check_utf_8, decode, find_format, unpack
from api.batches.reader.json_payments import read_call, read_json
from api.batches.reader.mistakes import FileMistakeError, Mistake, Reason
from api.batches.reader.options import Options
from api.batches.reader.progress import Progress
from api.batches.reader.reading import Reading
from api.batches.reader.sheet_payments import read_sheet
from api.batches.reader.workbook import open_sheet


def read_payments(body: bytes, options: Options, check_time: Callable[[], None] = lambda: None) -> Reading:
    """Read and check a file; every thousand rows, `check_time` may raise to end it.

    Raises:
        NotAnObjectError: the options say that it is the JSON of an API call, and it is no object.

    """
    reading = Reading(options.unit)
    try:
        _read(Progress(reading, options, check_time), body)
    except FileMistakeError as error:
        reading.mistakes.append(error.mistake)
    if not reading.mistakes and not reading.rows and not reading.paid_before:
        reading.mistakes.append(Mistake(Reason.NO_ROWS, {"is_table": bool(reading.columns)}))
    return reading


def _read(progress: Progress, body: bytes) -> None:
    options, reading = progress.options, progress.reading
    if options.file_format is FileFormat.JSON:
        reading.file_format = FileFormat.JSON
        check_utf_8(body)
        read_call(progress, body)
        return
    body = unpack(body)
    found = find_format(body)
    reading.file_format = options.file_format or found
    if progress.is_call and found is FileFormat.XLSX:
        raise FileMistakeError(Reason.WORKBOOK_NOT_TAKEN)
    if options.file_format is FileFormat.CSV and found is not FileFormat.CSV:
        raise FileMistakeError(Reason.JSON_AS_CSV)
    if found is FileFormat.XLSX:
        read_sheet(progress, open_sheet(body, options.mapping, options.sheet, progress.check_time))
        return
    text = decode(body)
    if reading.file_format is FileFormat.CSV:
        read_csv(progress, text)
    else:
        read_json(progress, text.encode(), found)
