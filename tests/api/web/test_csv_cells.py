"""Cells that a spreadsheet would take for a formula: written with a quote in front, and read back as they were."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.web.csv_cells import escape_cell, unescape_cell

STARTS = "=+-@＝＋－＠\t\r\n '"  # noqa: RUF001


@given(st.text() | st.text(st.sampled_from(STARTS + "ab")))
@example("'=x")
@example("''=x")
@example(" =x")
@example("'")
def test_what_was_escaped_reads_back_as_it_was(text: str) -> None:
    assert unescape_cell(escape_cell(text)) == text


@given(st.text(st.sampled_from(STARTS + "ab")))
def test_no_cell_begins_a_formula(text: str) -> None:
    escaped = escape_cell(text)
    assert not escaped.startswith(tuple("\t\r\n"))
    assert not escaped.lstrip().startswith(tuple("=+-@＝＋－＠"))  # noqa: RUF001


@pytest.mark.parametrize("text", ["", "a", "'", "'a", "o'neil@example.com", "'quoted'", "12.50", "a=b"])
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert escape_cell(text) == text
    assert unescape_cell(text) == text
