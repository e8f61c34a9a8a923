"""An .xlsx workbook: the one visible sheet with the columns. Values by calamine, the rest by `workbook_marks`.

Only the parts that are needed are unpacked, to a size that is checked while they are, and handed on packed anew: what
reads them cannot be made to unpack more.
"""

import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import python_calamine

from api.batches.reader.columns import Mapping, is_header
from api.batches.reader.csv_table import HEADER_ROWS_MAX
from api.batches.reader.mistakes import FileMistakeError, Reason
from api.batches.reader.workbook_marks import Marks, parse_xml, read_marks

UNPACKED_MAX_BYTES = 96 * 2**20
"""What the parts of a workbook that are read may have unpacked."""
_PARTS_MAX = 2_000
_SHEETS_MAX = 50
_WORKBOOK = "xl/workbook.xml"
_RELATIONS = "xl/_rels/workbook.xml.rels"
_STYLES = "xl/styles.xml"
_NEEDED = re.compile(r"(?:\[Content_Types\]\.xml|_rels/\.rels|xl/(?!media/|drawings/|charts/|theme/).*)\Z")
_GENERAL = 0
_TEXT = 49
_PERCENT = {9, 10}
_QUOTED = re.compile(r'"[^"]*"|\\.')
_BRACKETED = re.compile(r"\[\$([^\]-]*)[^\]]*\]")
_FOREIGN_SIGN = re.compile(r"[€£¥₹₽₩₺₴₫฿%]|\b(?:EUR|GBP|CHF|JPY|CAD|AUD|SEK|NOK|DKK|PLN|CZK|INR|CNY|BRL|MXN)\b")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sheet with payments: its values by row, each with what the XML says of it."""

    name: str
    rows: list[list[Any]]
    marks: Marks
    formats: "Formats"
    header_at: int | None
    """The row of the header, counted from 0; None where none is found."""
    hidden_sheets: tuple[str, ...]
    other_sheets: tuple[str, ...]

    def filled_rows(self) -> Iterator[tuple[int, list[Any]]]:
        """Yield the rows that are not empty, with their numbers, counted from 0.

        A formula without a stored value looks empty, and is not.
        """
        marked = self.marks.marked_rows()
        width = self.marks.column_max + 1
        for number in range(max(len(self.rows), max(marked, default=-1) + 1)):
            cells = self.rows[number] if number < len(self.rows) else []
            if number in marked or any(
                cell != "" and not (isinstance(cell, str) and not cell.strip()) for cell in cells
            ):
                yield number, cells + [""] * (width - len(cells))


@dataclass(frozen=True, slots=True)
class Formats:
    """How the styles of a workbook show numbers."""

    plain: frozenset[int]
    """Styles that show a number as it is."""
    foreign: frozenset[int]
    """Styles that show something other than dollars: percent, or another currency."""


def open_sheet(body: bytes, mapping: Mapping, wanted: str | None, check_time: Callable[[], None]) -> Sheet:
    """Return the one visible sheet that names the columns, or the only one that is not empty, or the wanted one.

    Raises:
        FileMistakeError: there is none, or there are several.

    """
    parts = _unpack(body)
    sheets = _list_sheets(parts)
    visible = [name for name, is_visible, _ in sheets if is_visible]
    hidden = tuple(name for name, is_visible, _ in sheets if not is_visible)
    if wanted is not None and wanted not in visible:
        raise FileMistakeError(Reason.SHEET_NOT_THERE, name=wanted, names=visible)
    if not visible or len(sheets) > _SHEETS_MAX:
        raise FileMistakeError(Reason.NO_VISIBLE_SHEET, hidden=list(hidden))
    marks_by_name = {
        name: read_marks(parts[path], check_time) for name, is_visible, path in sheets if is_visible and path in parts
    }
    formats = _read_formats(parts.get(_STYLES, b""))
    packed = _pack(parts)
    parts.clear()
    found: list[Sheet] = []
    for name, marks in marks_by_name.items():
        if marks.row_max < 0 or wanted not in {None, name}:
            continue
        check_time()
        rows = _read_values(packed, name)
        sheet = Sheet(name, rows, marks, formats, None, hidden, tuple(each for each in visible if each != name))
        found.append(_with_header(sheet, mapping))
    with_header = [sheet for sheet in found if sheet.header_at is not None]
    if len(with_header) == 1 or len(found) == 1:
        return (with_header or found)[0]
    if not found:
        raise FileMistakeError(Reason.NO_VISIBLE_SHEET, hidden=list(hidden))
    raise FileMistakeError(
        Reason.SEVERAL_SHEETS,
        names=[sheet.name for sheet in with_header or found],
        have_columns=bool(with_header),
    )


def _with_header(sheet: Sheet, mapping: Mapping) -> Sheet:
    for count, (number, cells) in enumerate(sheet.filled_rows()):
        if count >= HEADER_ROWS_MAX:
            break
        if is_header([_as_name(cell) for cell in cells], mapping):
            return Sheet(
                sheet.name, sheet.rows, sheet.marks, sheet.formats, number, sheet.hidden_sheets, sheet.other_sheets
            )
    return sheet


def _as_name(cell: Any) -> str:
    return cell if isinstance(cell, str) else str(cell)


def _unpack(body: bytes) -> dict[str, bytes]:
    """Return the parts of a workbook that are needed."""
    parts: dict[str, bytes] = {}
    left = UNPACKED_MAX_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = archive.infolist()
            if len(entries) > _PARTS_MAX:
                raise _damaged()
            for entry in entries:
                if entry.is_dir() or not _NEEDED.match(entry.filename):
                    continue
                if entry.flag_bits & 1:
                    raise FileMistakeError(Reason.ENCRYPTED)
                with archive.open(entry) as file:
                    part = file.read(left + 1)
                left -= len(part)
                if left < 0:
                    raise FileMistakeError(Reason.UNPACKED_TOO_LARGE, megabytes=UNPACKED_MAX_BYTES // 2**20)
                parts[entry.filename] = part
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError, OSError, ValueError):
        raise _damaged() from None
    return parts


def _pack(parts: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(name), part)
    return packed.getvalue()


def _list_sheets(parts: dict[str, bytes]) -> list[tuple[str, bool, str]]:
    """Return each sheet's name, whether it is visible, and where its part is."""
    paths: dict[str, str] = {}
    found: list[tuple[str, bool, str]] = []

    def read_relation(name: str, attributes: dict[str, str]) -> None:
        if name == "Relationship":
            target = attributes.get("Target", "")
            path = target[1:] if target.startswith("/") else posixpath.normpath(f"xl/{target}")
            paths[attributes.get("Id", "")] = path

    def read_sheet(name: str, attributes: dict[str, str]) -> None:
        if name == "sheet":
            relation = next((value for key, value in attributes.items() if key.rpartition(":")[2] == "id"), "")
            is_visible = attributes.get("state", "visible") == "visible"
            path = paths.get(relation, "")
            if "/worksheets/" in path or path in parts:
                found.append((attributes.get("name", ""), is_visible, path))

    if _WORKBOOK not in parts or _RELATIONS not in parts:
        raise _damaged()
    parse_xml(parts[_RELATIONS], read_relation)
    parse_xml(parts[_WORKBOOK], read_sheet)
    return found


def _read_values(packed: bytes, name: str) -> list[list[Any]]:
    try:
        with python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(packed)) as workbook:
            rows: list[list[Any]] = workbook.get_sheet_by_name(name).to_python(skip_empty_area=False)
            return rows
    except (python_calamine.CalamineError, ValueError, OSError):
        raise _damaged() from None


def _read_formats(styles: bytes) -> Formats:
    """Sort the styles by how they show numbers."""
    codes: dict[int, str] = {}
    ids: list[int] = []
    is_in_cells = False

    def read(name: str, attributes: dict[str, str]) -> None:
        nonlocal is_in_cells
        if name == "numFmt" and attributes.get("numFmtId", "").isdigit():
            codes[int(attributes["numFmtId"])] = attributes.get("formatCode", "")
        elif name in {"cellXfs", "cellStyleXfs", "cellStyles", "dxfs"}:
            is_in_cells = name == "cellXfs"
        elif name == "xf" and is_in_cells:
            given = attributes.get("numFmtId", "0")
            ids.append(int(given) if given.isdigit() else _GENERAL)

    if styles:
        parse_xml(styles, read)
    plain = frozenset(style for style, number in enumerate(ids) if number in {_GENERAL, _TEXT} or number == 1)
    foreign = frozenset(
        style for style, number in enumerate(ids) if number in _PERCENT or _shows_no_dollars(codes.get(number, ""))
    )
    return Formats(plain, foreign)


def _shows_no_dollars(code: str) -> bool:
    signs = " ".join(_BRACKETED.findall(code))
    bare = _QUOTED.sub(" ", _BRACKETED.sub(" ", code))
    quoted = " ".join(_QUOTED.findall(code))
    return any(_FOREIGN_SIGN.search(text) for text in (signs, bare, quoted))


def _damaged() -> FileMistakeError:
    return FileMistakeError(Reason.DAMAGED, kind=".xlsx file")
