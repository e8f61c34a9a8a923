"""What a file's bytes are: packed or not, text or a workbook, and in which encoding."""

import codecs
import gzip
import io
import re
import zipfile
import zlib
from enum import StrEnum

from api.batches.reader.mistakes import FileMistakeError, Reason
from core.batches.payout_batch import BODY_MAX_BYTES

UNPACKED_MAX_BYTES = BODY_MAX_BYTES
"""What a .gz file may have unpacked."""


class FileFormat(StrEnum):
    """How rows are written."""

    JSON = "application/json"
    CSV = "text/csv"
    NDJSON = "application/x-ndjson"
    XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"


_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_OLE = b"\xd0\xcf\x11\xe0"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_FOREIGN_BY_MAGIC = {
    b"%PDF": "a PDF document",
    b"Rar!": "a .rar archive",
    b"7z\xbc\xaf": "a .7z archive",
    b"\x28\xb5\x2f\xfd": "a .zst file",
    b"BZh": "a .bz2 file",
    b"\xfd7zXZ": "an .xz file",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "an SQLite database",
    b"{\\rtf": "an RTF document",
}
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def unpack(body: bytes) -> bytes:
    """Return the bytes of a file without its gzip wrapping; a bomb is refused while it is small."""
    if not body.startswith(_GZIP):
        return body
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            unpacked = file.read(UNPACKED_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise FileMistakeError(Reason.DAMAGED, kind=".gz file") from None
    if len(unpacked) > UNPACKED_MAX_BYTES:
        raise FileMistakeError(Reason.UNPACKED_TOO_LARGE, megabytes=UNPACKED_MAX_BYTES // 2**20)
    return unpacked


def find_format(body: bytes) -> FileFormat:
    """Tell how an unpacked file is written, by its first bytes.

    Raises:
        FileMistakeError: it is in a format that is not read.

    """
    for magic, kind in _FOREIGN_BY_MAGIC.items():
        if body.startswith(magic):
            raise FileMistakeError(Reason.FOREIGN_FORMAT, kind=kind)
    if body.startswith(_OLE):
        if _ENCRYPTED in body:
            raise FileMistakeError(Reason.ENCRYPTED)
        raise FileMistakeError(Reason.FOREIGN_FORMAT, kind="an old Excel workbook (.xls)")
    if body.startswith(_ZIP):
        return _find_zip_format(body)
    start = body[:4_096]
    if start.startswith(_UTF_16):
        start = start[: len(start) & ~1].decode("utf-16", "replace").encode()
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"<"):
        raise FileMistakeError(Reason.FOREIGN_FORMAT, kind="HTML or XML")
    if start.startswith(b"["):
        return FileFormat.JSON
    return FileFormat.NDJSON if start.startswith(b"{") else FileFormat.CSV


def _find_zip_format(body: bytes) -> FileFormat:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            names = set(archive.namelist())
            mimetype = archive.read("mimetype")[:100] if "mimetype" in names else b""
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, zlib.error, EOFError, OSError):
        raise FileMistakeError(Reason.DAMAGED, kind=".xlsx file") from None
    if "xl/workbook.bin" in names:
        raise FileMistakeError(Reason.FOREIGN_FORMAT, kind="a binary Excel workbook (.xlsb)")
    if mimetype.startswith(b"application/vnd.oasis.opendocument"):
        raise FileMistakeError(Reason.FOREIGN_FORMAT, kind="an OpenDocument file (.ods)")
    if any(name.endswith(".iwa") or name == "Index.zip" for name in names):
        raise FileMistakeError(Reason.FOREIGN_FORMAT, kind="a Numbers document (.numbers)")
    if "[Content_Types].xml" in names and any(name.startswith("xl/") for name in names):
        return FileFormat.XLSX
    raise FileMistakeError(Reason.FOREIGN_FORMAT, kind="a .zip archive")


def decode(body: bytes) -> str:
    """Return the text of a file: UTF-8, with or without a mark, or UTF-16 with one.

    Raises:
        FileMistakeError: it is in another encoding, with the line and the likely one.

    """
    if body.startswith(_UTF_16) and not body.startswith(_UTF_32):
        try:
            return body.decode("utf-16")
        except UnicodeDecodeError:
            raise FileMistakeError(Reason.CUT_OFF, 1) from None
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _explain_encoding(body, error) from None
    if text[:200].count("\0") > len(text[:200]) // 3:
        raise FileMistakeError(Reason.UTF_16_WITHOUT_MARK, 1)
    return text


def check_utf_8(body: bytes) -> None:
    """Refuse the body of a call that is not UTF-8.

    Raises:
        FileMistakeError: it is not, with the line.

    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise _explain_encoding(body, error) from None


def _explain_encoding(body: bytes, error: UnicodeDecodeError) -> FileMistakeError:
    start = error.start + len(body) - len(error.object)  # a mark in front is not counted
    line = len(_LINE_END.findall(body, 0, start)) + 1
    if error.reason == "unexpected end of data" and start >= len(body) - 3:
        return FileMistakeError(Reason.CUT_OFF, line)
    if body.startswith(_UTF_32):
        encoding = "UTF-32"
    elif body[:200].count(b"\0") > len(body[:200]) // 3:
        return FileMistakeError(Reason.UTF_16_WITHOUT_MARK, 1)
    else:
        try:
            body.decode("cp1252")
            encoding = "Windows-1252"
        except UnicodeDecodeError:
            encoding = ""
    return FileMistakeError(Reason.NOT_UTF_8, line, encoding=encoding)
