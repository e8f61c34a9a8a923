"""Parsing bodies: the fast and the slow way agree, and no bytes break either."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.web.validation import FieldErrors, NotAnObject, PayoutRequest, _parse_slowly, parse_payout_request
from core.emails import normalise_email
from core.money import ALLOCATION_MAX_CENTS

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
# JSON's own grammar of a number, with far more digits than any type of ours holds.
number_literals = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,22})?", fullmatch=True)
spaces = st.text(" \t\r\n\u00a0\u2003", max_size=3)
addresses = st.one_of(
    st.emails(),
    st.sampled_from(["user@example.com", "USER@Example.com", "user@localhost", "usér@bücher.example", "user@", "@"]),
    st.from_regex(r"[a-zA-Z0-9.@+ ]{0,40}", fullmatch=True),
)
padded_addresses = st.builds("{}{}{}".format, spaces, addresses, spaces)
email_literals = st.one_of(padded_addresses.map(json.dumps), values.map(json.dumps), number_literals)
amount_literals = st.one_of(
    number_literals,
    st.integers(-2, ALLOCATION_MAX_CENTS + 2).map(str),
    values.map(json.dumps),
)
field_literals = st.one_of(
    email_literals.map('"email": {}'.format),
    amount_literals.map('"amount": {}'.format),
    st.builds("{}: {}".format, st.text().map(json.dumps), amount_literals),
)
bodies = st.lists(field_literals, max_size=4).map(lambda fields: ("{" + ", ".join(fields) + "}").encode())


def check_shape(parsed: PayoutRequest | FieldErrors | NotAnObject) -> None:
    if isinstance(parsed, PayoutRequest):
        assert normalise_email(parsed.email) == parsed.email
        assert type(parsed.amount) is int
        assert 1 <= parsed.amount <= ALLOCATION_MAX_CENTS
    elif isinstance(parsed, dict):
        assert parsed.keys() <= {"email", "amount"}
        assert all(parsed.values())
    else:
        assert isinstance(parsed, NotAnObject)


@given(bodies)
def test_fast_and_slow_agree_on_objects(body: bytes) -> None:
    parsed = parse_payout_request(body)
    check_shape(parsed)
    assert parsed == _parse_slowly(body)


@given(padded_addresses.map(json.dumps), number_literals)
def test_fast_and_slow_agree_on_amounts(email: str, amount: str) -> None:
    body = f'{{"email": {email}, "amount": {amount}}}'.encode()
    parsed = parse_payout_request(body)
    check_shape(parsed)
    assert parsed == _parse_slowly(body)


@given(values)
def test_fast_and_slow_agree_on_any_document(document: Any) -> None:
    body = json.dumps(document).encode()
    assert parse_payout_request(body) == _parse_slowly(body)


@given(st.binary())
def test_no_bytes_raise(body: bytes) -> None:
    check_shape(parse_payout_request(body))


@given(bodies, st.integers(0, 200), st.binary(max_size=3), st.integers(0, 2))
def test_no_damaged_document_raises(body: bytes, position: int, inserted: bytes, removed: int) -> None:
    damaged = body[:position] + inserted + body[position + removed :]
    parsed = parse_payout_request(damaged)
    check_shape(parsed)
    assert parsed == _parse_slowly(damaged)


@given(st.text(), st.text())
def test_no_address_raises(local: str, domain: str) -> None:
    for email in (local, f"{local}@{domain}", f"user@{domain}", f"{local}@example.com"):
        check_shape(parse_payout_request(json.dumps({"email": email, "amount": 1}, ensure_ascii=False).encode()))


@given(st.integers())
def test_integers_pass_exactly_within_the_bounds(amount: int) -> None:
    parsed = parse_payout_request(f'{{"email": "user@example.com", "amount": {amount}}}'.encode())
    assert isinstance(parsed, PayoutRequest) == (1 <= amount <= ALLOCATION_MAX_CENTS)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"email":', b'{"amount": ['])
@pytest.mark.parametrize("depth", [500, 1000, 5000, 10_000])
def test_deep_nesting_does_not_raise(opening: bytes, depth: int) -> None:
    check_shape(parse_payout_request(opening * depth))
    closing = {b"[": b"]", b"{": b"}"}
    body = opening * depth + b"1" + b"".join(closing[bytes([byte])] for byte in opening[::-1] if byte in b"[{") * depth
    check_shape(parse_payout_request(body))


@pytest.mark.parametrize("digits", [4300, 4301, 60_000])
def test_more_digits_than_python_reads_are_too_large(digits: int) -> None:
    for literal in ("9" * digits, "9" * digits + ".5", "0." + "9" * digits, "9" * digits + "e-" + str(digits)):
        check_shape(parse_payout_request(f'{{"email": "user@example.com", "amount": {literal}}}'.encode()))
