"""Cents for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.money import ALLOCATION_MAX_CENTS, BALANCE_MAX_CENTS, format_decimal, format_dollars, parse_dollars


@pytest.mark.parametrize(
    ("cents", "text"),
    [
        (0, "$0.00"),
        (1, "$0.01"),
        (99, "$0.99"),
        (100, "$1.00"),
        (1_234_567, "$12,345.67"),
        (-5, "-$0.05"),
        (-100_000, "-$1,000.00"),
        (ALLOCATION_MAX_CENTS, "$1,000,000.00"),
    ],
)
def test_cents_are_written_as_dollars(cents: int, text: str) -> None:
    assert format_dollars(cents) == text


@given(st.integers())
def test_no_cent_is_lost(cents: int) -> None:
    text = format_dollars(cents)
    assert int(text.replace("$", "").replace(",", "").replace(".", "")) == cents


def test_balances_fit_their_column_with_room_for_sums() -> None:
    assert BALANCE_MAX_CENTS + 10_000 * ALLOCATION_MAX_CENTS < 2**63


@given(st.integers(0, BALANCE_MAX_CENTS // 100))
def test_dollars_are_read_as_they_are_written(cents: int) -> None:
    assert parse_dollars(format_decimal(cents)) == cents


@pytest.mark.parametrize("text", ["", "1,404.78", "$1", "-1", "1.234", "1.", ".5", "1e3", "\uff11", "1 2"])
def test_what_is_no_dollars_is_not_read(text: str) -> None:
    assert parse_dollars(text) is None
