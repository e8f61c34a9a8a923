"""Workbooks: to the cent, by cell, whatever is hidden, and within limits of size and time."""

import io
import os
import re
import resource
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import xlsxwriter
from hypothesis import given, settings
from hypothesis import strategies as st

from api.batches.reader.amounts import Unit
from api.batches.reader.doors import Door
from api.batches.reader.options import HiddenRows, Options
from api.batches.reader.payments import read_payments
from api.batches.reader.reading import Reading
from api.batches.reader.words import write_mistakes
from core.money import ALLOCATION_MAX_CENTS
from tests.api.batches.file_cases import fill, workbook

ROWS = 100_000


def read(content: bytes, unit: Unit = Unit.DOLLARS, **options: Any) -> Reading:
    return read_payments(content, Options(unit=unit, **options))


def mistakes_of(write: Callable[[xlsxwriter.Workbook], None], **options: Any) -> list[str]:
    return write_mistakes(read(workbook(write), **options), Door.PUSH)


@given(st.lists(st.integers(1, ALLOCATION_MAX_CENTS), min_size=1, max_size=20))
@settings(max_examples=30)
def test_dollars_that_were_stored_as_floats_are_read_to_the_cent(amounts: list[int]) -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        fill(book, "A", *(["a@example.com", float(Decimal(amount) / 100)] for amount in amounts))

    reading = read(workbook(write))
    assert reading.mistakes == []
    assert [row.amount_cents for row in reading.rows] == amounts


def test_a_sum_of_floats_that_shows_two_decimals_is_what_it_shows() -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        fill(book, "A", ["a@example.com", 0.1 + 0.2])

    assert [row.amount_cents for row in read(workbook(write)).rows] == [30]


def test_a_row_of_formulas_that_were_never_calculated_is_not_taken_for_an_empty_one() -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        sheet = fill(book, "A", ["a@example.com", 1])
        for column in range(3):
            sheet.write_formula(2, column, "=Other!A1", None, "")
            sheet.write_formula(9, column, "=Other!A1", None, "")

    texts = mistakes_of(write)
    assert [text.partition(":")[0] for text in texts] == ["Row 3", "Row 10"]
    assert all("its formula has no stored value" in text for text in texts)


def test_rows_of_a_template_whose_formulas_came_to_nothing_are_empty_rows() -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        sheet = fill(book, "A", ["a@example.com", 1])
        for row in range(2, 9):
            for column in range(3):
                sheet.write_formula(row, column, '=IF(Z9="","",Z9)', None, "")

    def calculate(part: bytes) -> bytes:
        return re.sub(rb'<c r="([A-Z]+[0-9]+)"><f>', rb'<c r="\1" t="str"><f>', part)

    content = repack(workbook(write), {SHEET: calculate})
    reading = read(content)
    assert (len(reading.rows), reading.mistakes) == (1, [])
    # One that is half filled is no empty row.
    half = repack(
        content, {SHEET: lambda part: part.replace(b'<c r="B3" t="str"><f>', b'<c r="B3"><v>5</v></c><c r="Y3"><f>')}
    )
    assert write_mistakes(read(half), Door.PUSH) == ["Row 3: cell A3, the email is missing."]


def test_errors_dates_booleans_and_other_currencies_are_refused_by_cell() -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        sheet = fill(book, "A", *([f"{name}@example.com"] for name in "abcdefg"))
        sheet.write_formula(1, 1, "=1/0", None, "#DIV/0!")
        sheet.write_number(2, 1, 46_000, book.add_format({"num_format": "yyyy-mm-dd"}))
        sheet.write_boolean(3, 1, True)
        sheet.write_number(4, 1, 0.5, book.add_format({"num_format": "0%"}))
        sheet.write_number(5, 1, 5, book.add_format({"num_format": "#,##0.00 [$€-407]"}))
        sheet.write_number(6, 1, 5, book.add_format({"num_format": '"£"0.00'}))
        sheet.write_number(7, 1, 19.999)

    texts = mistakes_of(write)
    wanted = ["the error #DIV/0!", "is a date", "'TRUE' is not a number", *["in another currency"] * 3, "more than two"]
    assert len(texts) == len(wanted)
    for number, (text, part) in enumerate(zip(texts, wanted, strict=True), 2):
        assert text.startswith(f"Row {number}: cell B{number}, ")
        assert part in text


@pytest.mark.parametrize("code", ["$#,##0.00", "#,##0.00", "[$$-409]#,##0.00", '_("$"* #,##0.00_)', "@", "[Red]0.00"])
def test_amounts_that_are_shown_in_dollars_are_read(code: str) -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        sheet = fill(book, "A", ["a@example.com"])
        sheet.write_number(1, 1, 12.5, book.add_format({"num_format": code}))

    assert [row.amount_cents for row in read(workbook(write)).rows] == [1250]


def test_a_reference_that_is_shown_otherwise_than_it_is_stored_is_refused() -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        sheet = fill(book, "A", ["a@example.com", 1], ["b@example.com", 1, 124], ["c@example.com", 1, 1.5])
        sheet.write_number(1, 2, 123, book.add_format({"num_format": "000000"}))

    texts = mistakes_of(write)
    assert [text[: len("Row 2: cell C2, the reference is a number")] for text in texts] == [
        "Row 2: cell C2, the reference is a number",
        "Row 4: cell C4, the reference is a number",
    ]


def test_hidden_columns_that_are_read_are_refused() -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        fill(book, "A", ["a@example.com", 1]).set_column(1, 1, None, None, {"hidden": True})

    assert mistakes_of(write) == ["Column B of the sheet is hidden. Show what is to be paid."]


def test_filtered_rows_are_hidden_rows() -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        sheet = fill(book, "A", ["a@example.com", 1], ["b@example.com", 2], ["c@example.com", 3])
        sheet.autofilter(0, 0, 3, 2)
        sheet.filter_column(0, "x == a*")
        sheet.set_row(2, None, None, {"hidden": True})
        sheet.set_row(3, None, None, {"hidden": True})

    assert "Rows 3 and 4 of the sheet are hidden or filtered out." in mistakes_of(write)[0]
    left = read(workbook(write), hidden_rows=HiddenRows.LEAVE)
    assert ([row.amount_cents for row in left.rows], left.left_out) == ([100], 2)


def test_of_several_sheets_the_one_with_the_columns_is_read_and_two_such_are_refused() -> None:
    def one(book: xlsxwriter.Workbook) -> None:
        book.add_worksheet("Notes").write(0, 0, "Pay these by Friday")
        fill(book, "March", ["a@example.com", 1])

    def two(book: xlsxwriter.Workbook) -> None:
        fill(book, "February", ["a@example.com", 1])
        fill(book, "It's March", ["b@example.com", 2])

    assert read(workbook(one)).sheet == "March"
    (text,) = mistakes_of(two)
    assert "'February', 'It's March' all have the columns" in text
    assert [row.amount_cents for row in read(workbook(two), sheet="It's March").rows] == [200]
    assert "no visible sheet 'April'" in mistakes_of(two, sheet="April")[0]


def test_a_cell_far_away_takes_no_memory() -> None:
    def far(book: xlsxwriter.Workbook) -> None:
        fill(book, "A", ["a@example.com", 1]).write(1_048_575, 16_383, "x")

    def formatted(book: xlsxwriter.Workbook) -> None:
        fill(book, "A", ["a@example.com", 1]).write_blank(1_048_575, 16_383, None, book.add_format({"bold": True}))

    contents = workbook(far), workbook(formatted)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert write_mistakes(read(contents[0]), Door.PUSH) == [
        "The sheet reaches to cell XFD1048576. Delete what stands far from the payments."
    ]
    assert len(read(contents[1]).rows) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100 * 1024


def test_a_sheet_that_is_mostly_empty_is_read_within_its_limit_of_memory() -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        fill(book, "A", ["a@example.com", 1]).write(99_999, 38, "x")

    content = workbook(write)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (text,) = write_mistakes(read(content), Door.PUSH)
    assert text.startswith("Column 39 has no name, and has 'x' in row 100000.")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 250 * 1024


def repack(content: bytes, change: dict[str, Callable[[bytes], bytes]], **written: bytes) -> bytes:
    """Return a workbook with some of its parts changed."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, change.get(name, bytes)(old.read(name)))
        for name, part in written.items():
            new.writestr(name, part)
    return changed.getvalue()


def simple(book: xlsxwriter.Workbook) -> None:
    fill(book, "A", ["a@example.com", 1])


SHEET = "xl/worksheets/sheet1.xml"


def test_bombs_and_entities_are_refused() -> None:
    content = workbook(simple)
    bomb = repack(content, {"xl/sharedStrings.xml": lambda part: part + b" " * (200 * 2**20)})
    assert len(bomb) < 2**20
    assert "unpacks to more than 96 MB" in write_mistakes(read(bomb), Door.PUSH)[0]
    entities = repack(
        content, {SHEET: lambda part: part.replace(b"<worksheet", b'<!DOCTYPE x [<!ENTITY a "b">]><worksheet', 1)}
    )
    assert "is damaged" in write_mistakes(read(entities), Door.PUSH)[0]


def test_a_part_that_unpacks_to_more_than_it_says_is_refused() -> None:
    content = workbook(simple)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = archive.getinfo("xl/sharedStrings.xml").file_size
    lying = content.replace(size.to_bytes(4, "little"), (size - 1).to_bytes(4, "little"))
    assert lying != content
    assert "is damaged" in write_mistakes(read(lying), Door.PUSH)[0]


@pytest.mark.parametrize("part", ["xl/workbook.xml", "xl/_rels/workbook.xml.rels", SHEET, "xl/sharedStrings.xml"])
def test_damaged_parts_are_refused_in_words(part: str) -> None:
    for damage in (lambda content: content[:-20], lambda _: b"", lambda _: b"\0\1\2"):
        texts = write_mistakes(read(repack(workbook(simple), {part: damage})), Door.PUSH)
        assert len(texts) == 1
        assert "is damaged" in texts[0] or "no sheet with rows" in texts[0] or "file is empty" in texts[0], texts


@given(st.data())
@settings(max_examples=60)
def test_no_damaged_workbook_raises(data: st.DataObject) -> None:
    content = bytearray(workbook(simple))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(1, len(content)))])
    reading = read(cut)
    assert bool(reading.rows) or bool(reading.mistakes)


def test_parts_with_prefixed_names_and_cells_without_names_are_read() -> None:
    def unname(part: bytes) -> bytes:
        return re.sub(rb' r="[A-Z]*[0-9]+"', b"", part)

    content = repack(workbook(simple), {SHEET: unname})
    assert [row.amount_cents for row in read(content).rows] == [100]


LARGE = """
    import resource, sys, time
    from api.batches.reader.amounts import Unit
    from api.batches.reader.options import Options
    from api.batches.reader.payments import read_payments
    content = open(sys.argv[1], "rb").read()
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    reading = read_payments(content, Options(unit=Unit.DOLLARS))
    taken_s = time.process_time() - begun
    assert not reading.mistakes
    print(len(reading.rows), taken_s, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) // 1024)
"""


def test_a_hundred_thousand_rows_are_checked_within_5_seconds_and_250_megabytes(tmp_path: Any) -> None:
    def write(book: xlsxwriter.Workbook) -> None:
        money = book.add_format({"num_format": "$#,##0.00"})
        sheet = fill(book, "A")
        for number in range(1, ROWS + 1):
            sheet.write_row(number, 0, [f"user{number}@example.com"])
            sheet.write_number(number, 1, number / 100, money)
            sheet.write_string(number, 2, f"order-{number}")

    path = tmp_path / "large.xlsx"
    path.write_bytes(workbook(write))
    # Coverage would trace the process, which takes three times as long.
    untraced = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LARGE), str(path)],
        env=untraced,
        capture_output=True,
        text=True,
        check=True,
    )
    rows, taken_s, megabytes = done.stdout.split()
    assert int(rows) == ROWS
    assert float(taken_s) < 5
    assert int(megabytes) < 250
