"""Amounts: what is read is exact, and what is refused never suggests another sum than the one that was written."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.batches.reader.amounts import Unit, read_amount
from api.batches.reader.mistakes import Fault, Reason
from core.money import ALLOCATION_MAX_CENTS, format_decimal

cents = st.integers(1, ALLOCATION_MAX_CENTS)
odd = st.text("0123456789.,-+()eE _'$%€ \u00a0\u202f\u2212\uff11", min_size=1, max_size=12)


def reason_of(text: str, unit: Unit, *, may_have_comma: bool = False) -> Reason:
    found = read_amount(text, unit, may_have_comma=may_have_comma)
    assert isinstance(found, Fault), found
    return found.reason


@given(cents, st.integers(0, 5))
def test_digits_are_cents(amount: int, zeros: int) -> None:
    assert read_amount("0" * zeros + str(amount), Unit.CENTS) == amount


@given(cents)
def test_dollars_with_a_point_or_a_comma_are_exact(amount: int) -> None:
    text = format_decimal(amount)
    assert read_amount(text, Unit.DOLLARS) == amount
    assert read_amount(text.replace(".", ","), Unit.DOLLARS, may_have_comma=True) == amount
    assert isinstance(read_amount(text.replace(".", ","), Unit.DOLLARS), Fault)


@given(odd, st.sampled_from(Unit), st.booleans())
def test_an_amount_is_read_only_in_the_one_form_that_its_unit_has(text: str, unit: Unit, may_have_comma: bool) -> None:
    text = text.strip()
    found = read_amount(text, unit, may_have_comma=may_have_comma)
    if unit is Unit.CENTS:
        form = r"[0-9]+"
    else:
        form = r"\+?([0-9]+(\.[0-9]{0,2})?|\.[0-9]{1,2})" + (r"|[0-9]+,[0-9]{1,2}" if may_have_comma else "")
    if isinstance(found, int):
        assert re.fullmatch(form, text)
        assert found == Decimal(text.replace(",", ".")) * (1 if unit is Unit.CENTS else 100)
        assert 1 <= found <= ALLOCATION_MAX_CENTS
    elif re.fullmatch(form, text):
        assert found.reason in {Reason.AMOUNT_TOO_SMALL, Reason.AMOUNT_TOO_LARGE}


@given(odd)
def test_what_is_suggested_has_the_digits_that_were_written(text: str) -> None:
    found = read_amount(text.strip(), Unit.DOLLARS)
    if isinstance(found, Fault) and "as_cents" in found.details:
        meant = found.details["as_cents"].lstrip("0")
        written = re.sub("[^0-9]", "", text).lstrip("0")
        assert meant.rstrip("0") == written.rstrip("0")
        assert Decimal(found.details["as_dollars"]) * 100 == int(found.details["as_cents"])


@pytest.mark.parametrize(
    ("text", "as_dollars"),
    [
        ("1,234.56", "1234.56"),
        ("1.234,56", "1234.56"),
        ("12,34,567.00", "1234567.00"),
        ("1'234.50", "1234.50"),
        ("1\u202f234,5", "1234.50"),
        ("$12", "12.00"),
        ("USD 12.00", "12.00"),
        ("1.234.567", "1234567.00"),
        ("12,50", "12.50"),
        # Nobody can tell what these are in dollars.
        ("1.000", None),
        ("1,000", None),
        ("€12.00", None),
        ("12 EUR", None),
        ("12%", None),
        ("1.2.3", None),
        ("12-34", None),
        ("1 2 3", None),
        ("٣", None),
    ],
)
def test_a_suggestion_is_made_only_where_one_amount_can_be_meant(text: str, as_dollars: str | None) -> None:
    for unit in Unit:
        found = read_amount(text, unit)
        assert isinstance(found, Fault)
        assert found.details.get("as_dollars") == as_dollars


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.AMOUNT_MISSING),
        ("0", Reason.AMOUNT_TOO_SMALL),
        ("-5", Reason.AMOUNT_TOO_SMALL),
        ("-12.50", Reason.AMOUNT_NEGATIVE),
        ("(12)", Reason.AMOUNT_NEGATIVE),
        ("\u221212", Reason.AMOUNT_NEGATIVE),
        ("12.345", Reason.AMOUNT_MAY_BE_THOUSANDS),
        ("1.23456", Reason.AMOUNT_TOO_PRECISE),
        ("1E5", Reason.AMOUNT_EXPONENT),
        ("1e999999999999", Reason.AMOUNT_EXPONENT),
        ("=SUM(A1:A2)", Reason.AMOUNT_FORMULA),
        ("0x10", Reason.AMOUNT_CURRENCY),
        ("nan", Reason.AMOUNT_NOT_A_NUMBER),
        ("\u0661\u0662\u066b\u0665", Reason.AMOUNT_OTHER_DIGITS),
        ("9" * 100_000, Reason.AMOUNT_TOO_LARGE),
    ],
)
def test_each_wrong_amount_has_its_reason(text: str, reason: Reason) -> None:
    assert reason_of(text, Unit.DOLLARS) is reason
