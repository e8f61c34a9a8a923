"""What is read from forms, and what is drawn, without a server."""

from contextlib import suppress
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dashboard.chart import draw_days
from api.dashboard.forms import ForeignFormError, FormError, parse_upload, read_dollars
from api.dashboard.sign_in_tries import network_of
from core.ledger.overview import DayAllocated
from core.money import BALANCE_MAX_CENTS, format_decimal, format_dollars


@given(st.integers(0, BALANCE_MAX_CENTS))
def test_amounts_are_read_as_they_are_shown(cents: int) -> None:
    for text in (format_dollars(cents), format_decimal(cents), format_dollars(cents)[1:]):
        assert read_dollars(text, least=0, most=BALANCE_MAX_CENTS) == cents


@pytest.mark.parametrize(("text", "cents"), [("5", 500), ("5.", 500), ("5.1", 510), ("$ 1,000", 100_000), ("007", 700)])
def test_amounts_may_be_typed_in_short(text: str, cents: int) -> None:
    assert read_dollars(text, least=1, most=10**9) == cents


@pytest.mark.parametrize("text", ["", "1,2", "1.2.3", "1 000", "-1", "+1", "0x1", "1e2", "NaN", "½", "1.001", "5\n6"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(FormError):
        read_dollars(text, least=0, most=10**9)


@given(st.lists(st.tuples(st.integers(-(10**9), 10**17), st.integers(0, 10**9)), min_size=1, max_size=30))
def test_bars_stay_inside_the_picture(amounts: list[tuple[int, int]]) -> None:
    first = date(2026, 1, 1)
    chart = draw_days([DayAllocated(first + timedelta(index), *reversed(each)) for index, each in enumerate(amounts)])
    assert len(chart.bars) == len(amounts)
    for bar in chart.bars:
        assert 0 <= bar.y <= bar.y + bar.height <= chart.bottom + 0.02
        assert chart.left <= bar.x <= bar.x + bar.width <= chart.right
    assert 2 <= len(chart.lines) <= 6
    assert all(0 <= line.y <= chart.bottom for line in chart.lines)


def test_a_file_is_read_byte_by_byte() -> None:
    content = bytes(range(256)) * 3 + b"\r\n--boundar\r\n"
    body = (
        b'--boundary\r\nContent-Disposition: form-data; name="unit"\r\n\r\ncents\r\n'
        b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="a \xc3\xa9.csv"\r\n'
        b"Content-Type: text/csv\r\n\r\n" + content + b"\r\n--boundary--\r\n"
    )
    sent = parse_upload(body, "multipart/form-data; boundary=boundary")
    assert sent.values == {"unit": "cents"}
    assert sent.files == {"file": content}
    assert sent.file_names == {"file": "a é.csv"}
    with pytest.raises(ForeignFormError):
        parse_upload(body[:-20], "multipart/form-data; boundary=boundary")


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_tries_are_counted_by_what_one_place_has(address: str, network: str) -> None:
    assert network_of(address) == network


@given(st.binary(max_size=300))
def test_whatever_is_sent_is_read_or_refused(body: bytes) -> None:
    for prefix in (b"", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'):
        with suppress(ForeignFormError):
            parse_upload(prefix + body, "multipart/form-data; boundary=x")
