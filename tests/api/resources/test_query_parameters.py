"""What a list may be asked for: one spelling of each cursor, moments without doubt, all errors at once."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.resources.query_parameters import LIMIT_DEFAULT, LIMIT_MAX, Parameters, history_cursor, users_cursor
from api.resources.transactions import FILTERS
from core.ids import IdKind, format_id
from core.ledger.history import Position, TransactionType

LIMIT_INTEGER = "The limit must be an integer."
LIMIT_TOO_SMALL = "The limit must be at least 1."
LIMIT_TOO_LARGE = "The limit may not be greater than 100."
CURSOR_INVALID = "The cursor is invalid."
EMAIL_INVALID = "The email must be a valid email address."
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

# A row's time is a transaction's start.
moments = st.datetimes(datetime(2000, 1, 1), datetime(3000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
positions = st.builds(Position, moments, st.uuids())
offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
READERS: dict[str, list[Callable[[Parameters], Any]]] = {
    "limit": [Parameters.limit],
    "cursor": [Parameters.users_cursor, Parameters.history_cursor],
    "email": [Parameters.email],
    "type": [Parameters.type],
    "user": [Parameters.user],
    "from": [Parameters.since],
    "to": [Parameters.until],
    "reference": [Parameters.reference],
    "idempotency_key": [Parameters.idempotency_key],
    "min_amount": [lambda parameters: parameters.amount("min_amount")],
    "max_amount": [lambda parameters: parameters.amount("max_amount")],
}


KNOWN = {*READERS, "email", "other", *FILTERS}


def query(text: str) -> Parameters:
    return Parameters.from_query(parse_qsl(text, keep_blank_values=True), KNOWN)


def asked(name: str, value: Any) -> Parameters:
    return Parameters({name: value})


def check_refused(name: str, value: Any, read: Callable[[Parameters], Any], text: str) -> None:
    parameters = asked(name, value)
    read(parameters)
    assert parameters.errors == {name: [text]}


def test_a_parameter_that_is_not_known_is_refused_by_name() -> None:
    assert query("form=2026-11-01&limit=5&form=x").errors == {"form": ["The form parameter is not known."]}
    assert query("Limit=5").errors == {"Limit": ["The Limit parameter is not known."]}


# Filters


def test_references_and_keys_are_looked_for_as_they_are() -> None:
    parameters = query("reference=+a+b+&idempotency_key=order-1&min_amount=0&max_amount=100000000")
    assert parameters.reference() == "a b"
    assert parameters.idempotency_key() == "order-1"
    assert (parameters.amount("min_amount"), parameters.amount("max_amount")) == (0, 100_000_000)
    assert parameters.errors == {}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("reference", "x" * 256, "The reference may not be greater than 255 characters."),
        ("reference", "a\0b", "The reference may not contain control characters."),
        ("reference", " ", "The reference may not be empty."),
        ("idempotency_key", "", "The idempotency_key must be 1 to 255 visible ASCII characters."),
        ("idempotency_key", "a b", "The idempotency_key must be 1 to 255 visible ASCII characters."),
        ("min_amount", "", "The min_amount must be an integer."),
        ("min_amount", "12.00", "The min_amount must be an integer."),
        ("max_amount", "-1", f"The max_amount must be between 0 and {10**18}."),
        ("max_amount", "9" * 30, f"The max_amount must be between 0 and {10**18}."),
    ],
)
def test_a_filter_that_can_match_nothing_is_refused(name: str, value: str, text: str) -> None:
    for read in READERS[name]:
        check_refused(name, value, read, text)


# Limits


def test_a_page_has_25_rows_where_nothing_is_said() -> None:
    for parameters in (query(""), asked("limit", None)):
        assert parameters.limit() == LIMIT_DEFAULT == 25
        assert parameters.errors == {}


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        ("1", 1),
        ("100", LIMIT_MAX),
        ("007", 7),
        (Decimal(1), 1),
        (Decimal("100.0"), 100),
        (Decimal("1E+1"), 10),
        (Decimal("0.5E1"), 5),
    ],
)
def test_a_limit_from_1_to_100_is_taken(value: Any, limit: int) -> None:
    parameters = asked("limit", value)
    assert parameters.limit() == limit
    assert type(parameters.limit()) is int
    assert parameters.errors == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", LIMIT_TOO_SMALL),
        ("-0", LIMIT_TOO_SMALL),
        ("-1", LIMIT_TOO_SMALL),
        ("-" + "9" * 18, LIMIT_TOO_SMALL),
        ("101", LIMIT_TOO_LARGE),
        ("9" * 18, LIMIT_TOO_LARGE),
        ("", LIMIT_INTEGER),
        (" ", LIMIT_INTEGER),
        ("-", LIMIT_INTEGER),
        ("x", LIMIT_INTEGER),
        ("1.0", LIMIT_INTEGER),
        ("1e1", LIMIT_INTEGER),
        ("+5", LIMIT_INTEGER),
        (" 5", LIMIT_INTEGER),
        ("5 ", LIMIT_INTEGER),
        ("5\n", LIMIT_INTEGER),
        ("1_0", LIMIT_INTEGER),
        ("0x10", LIMIT_INTEGER),
        ("NaN", LIMIT_INTEGER),
        ("Infinity", LIMIT_INTEGER),
        ("\u0665", LIMIT_INTEGER),
        ("\u00b2", LIMIT_INTEGER),
        ("5\0", LIMIT_INTEGER),
        (Decimal(0), LIMIT_TOO_SMALL),
        (Decimal("-1E+999999"), LIMIT_TOO_SMALL),
        (Decimal("1E+999999"), LIMIT_TOO_LARGE),
        (Decimal("1.5"), LIMIT_INTEGER),
        (Decimal("1E-999999"), LIMIT_INTEGER),
        (True, LIMIT_INTEGER),
        ([Decimal(5)], LIMIT_INTEGER),
        ({"limit": Decimal(5)}, LIMIT_INTEGER),
    ],
)
def test_any_other_limit_is_refused(value: Any, text: str) -> None:
    check_refused("limit", value, Parameters.limit, text)


@pytest.mark.parametrize("value", ["9" * 19, "9" * 10_000, "-" + "9" * 10_000])
def test_an_absurd_limit_is_refused(value: str) -> None:
    parameters = asked("limit", value)
    parameters.limit()
    assert [len(texts) for texts in parameters.errors.values()] == [1]


# Cursors


@given(st.uuids())
@settings(deadline=None)
def test_a_cursor_of_users_can_be_read(last: UUID) -> None:
    parameters = query(f"cursor={users_cursor(last)}")
    assert parameters.users_cursor() == last
    assert parameters.errors == {}


@given(positions)
@settings(deadline=None)
def test_a_cursor_of_the_history_can_be_read_to_the_microsecond(last: Position) -> None:
    parameters = query(f"cursor={history_cursor(last)}")
    assert parameters.history_cursor() == last
    assert parameters.errors == {}


@given(positions, positions)
@settings(deadline=None)
def test_two_places_have_two_cursors(first: Position, second: Position) -> None:
    assert (history_cursor(first) == history_cursor(second)) == (first == second)


def test_no_cursor_is_the_first_page() -> None:
    for parameters in (query(""), asked("cursor", None)):
        assert parameters.users_cursor() is None
        assert parameters.history_cursor() is None
        assert parameters.errors == {}


@given(st.uuids(), positions)
@settings(deadline=None)
def test_a_cursor_of_the_other_list_is_refused(user: UUID, place: Position) -> None:
    check_refused("cursor", history_cursor(place), Parameters.users_cursor, CURSOR_INVALID)
    check_refused("cursor", users_cursor(user), Parameters.history_cursor, CURSOR_INVALID)


def valid_cursors() -> list[tuple[Callable[[Parameters], Any], str]]:
    return [
        (Parameters.users_cursor, users_cursor(uuid4())),
        (Parameters.history_cursor, history_cursor(Position(datetime.now(UTC), uuid4()))),
    ]


def test_a_cursor_that_was_cut_or_grew_is_refused() -> None:
    for read, cursor in valid_cursors():
        cut = [cursor[:length] for length in range(len(cursor))] + [cursor[1:], cursor[:5] + cursor[6:]]
        grown = [cursor + more for more in ("A", "AA", "AAA", "AAAA", "=", "==", "====", " ", "\n", "\0", "%")]
        for text in (*cut, *grown, " " + cursor, "\n" + cursor, cursor[:4] + "\n" + cursor[4:], cursor + cursor):
            check_refused("cursor", text, read, CURSOR_INVALID)


def test_a_cursor_has_one_spelling() -> None:
    for read, cursor in valid_cursors():
        padding = "=" * (-len(cursor) % 4)
        payload = base64.urlsafe_b64decode(cursor + padding)
        # The last character may have bits to spare, which base64 ignores.
        others = [cursor[:-1] + last for last in ALPHABET if last != cursor[-1]]
        others = [text for text in others if base64.urlsafe_b64decode(text + padding) == payload]
        assert bool(others) == bool(padding)
        for text in others:
            check_refused("cursor", text, read, CURSOR_INVALID)
        if padding:
            check_refused("cursor", cursor + padding, read, CURSOR_INVALID)


def test_a_cursor_in_the_other_base64_alphabet_is_refused() -> None:
    cursor = users_cursor(UUID(int=2**128 - 1))
    assert "_" in cursor
    check_refused("cursor", cursor.replace("_", "/"), Parameters.users_cursor, CURSOR_INVALID)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "1",
        "x",
        "null",
        "é",
        "\u0665" * 23,
        "\ud800",
        "dQ",
        "aA",
        "=",
        "-" * 23,
        Decimal(5),
        True,
        [],
        {},
        ["x"],
    ],
)
def test_what_is_no_cursor_is_refused(value: Any) -> None:
    check_refused("cursor", value, Parameters.users_cursor, CURSOR_INVALID)
    check_refused("cursor", value, Parameters.history_cursor, CURSOR_INVALID)


@given(st.binary(min_size=16, max_size=32))
@settings(deadline=None)
def test_a_cursor_that_we_never_wrote_is_refused_or_means_a_time_that_we_know(payload: bytes) -> None:
    for content in (payload, b"\xff" * len(payload), b"\x80" + b"\0" * (len(payload) - 1)):
        parameters = asked("cursor", base64.urlsafe_b64encode(b"h" + content).rstrip(b"=").decode())
        place = parameters.history_cursor()
        if parameters.errors:
            assert (place, parameters.errors) == (None, {"cursor": [CURSOR_INVALID]})
        else:
            assert place is not None
            assert place.created_at.tzinfo is UTC


# Dates


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2024-02-29", datetime(2024, 2, 29, tzinfo=UTC)),
        ("0001-01-01", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31", datetime(9999, 12, 31, tzinfo=UTC)),
        ("2026-03-01T10:20:30Z", datetime(2026, 3, 1, 10, 20, 30, tzinfo=UTC)),
        ("2026-03-01t10:20:30z", datetime(2026, 3, 1, 10, 20, 30, tzinfo=UTC)),
        ("2026-03-01 10:20:30Z", datetime(2026, 3, 1, 10, 20, 30, tzinfo=UTC)),
        ("2026-03-01T10:20:30+02:00", datetime(2026, 3, 1, 8, 20, 30, tzinfo=UTC)),
        ("2026-03-01T10:20:30 02:00", datetime(2026, 3, 1, 8, 20, 30, tzinfo=UTC)),
        ("2026-03-01T10:20:30-05:45", datetime(2026, 3, 1, 16, 5, 30, tzinfo=UTC)),
        ("2026-03-01T10:20:30-00:00", datetime(2026, 3, 1, 10, 20, 30, tzinfo=UTC)),
        ("2026-03-01T10:20:30.5Z", datetime(2026, 3, 1, 10, 20, 30, 500_000, tzinfo=UTC)),
        ("2026-03-01T10:20:30.000001Z", datetime(2026, 3, 1, 10, 20, 30, 1, tzinfo=UTC)),
        ("2026-03-01T10:20:30.123456 02:00", datetime(2026, 3, 1, 8, 20, 30, 123_456, tzinfo=UTC)),
        ("2026-03-01T10:20:30.123456789Z", datetime(2026, 3, 1, 10, 20, 30, 123_456, tzinfo=UTC)),
    ],
)
def test_a_date_is_midnight_in_utc_and_a_time_is_a_moment(text: str, moment: datetime) -> None:
    parameters = asked("from", text)
    assert parameters.since() == moment
    assert parameters.errors == {}


def test_a_plus_that_was_not_encoded_is_still_a_plus() -> None:
    moment = datetime(2026, 3, 1, 8, 20, 30, tzinfo=UTC)
    for sent in ("2026-03-01T10:20:30+02:00", "2026-03-01T10:20:30%2B02:00", "2026-03-01T10%3A20%3A30%2b02%3A00"):
        parameters = query(f"from={sent}&to={sent}")
        assert parameters.since() == parameters.until() == moment
        assert parameters.errors == {}


@given(st.datetimes(timezones=offsets), st.sampled_from("Tt "), st.booleans())
@settings(deadline=None)
def test_every_moment_can_be_asked_for(moment: datetime, separator: str, plus_lost: bool) -> None:
    text = moment.isoformat(separator)
    if plus_lost:
        text = text.replace("+", " ")
    parameters = Parameters({"from": text, "to": text})
    assert parameters.since() == parameters.until() == moment
    assert parameters.errors == {}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01", datetime(2026, 3, 2, tzinfo=UTC)),
        ("2024-02-28", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2025-12-31", datetime(2026, 1, 1, tzinfo=UTC)),
        ("9999-12-30", datetime(9999, 12, 31, tzinfo=UTC)),
        ("9999-12-31", None),
        ("2026-03-01T00:00:00Z", datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
def test_a_date_as_to_takes_the_whole_day_in(text: str, moment: datetime | None) -> None:
    parameters = asked("to", text)
    assert parameters.until() == moment
    assert parameters.errors == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "now",
        "1772323200",
        "2026",
        "2026-03",
        "2026-3-1",
        "20260301",
        "2026-W10-1",
        "2026-060",
        "2026/03/01",
        "01-03-2026",
        "0000-01-01",
        "10000-01-01",
        "-2026-03-01",
        "2026-00-01",
        "2026-13-01",
        "2026-03-00",
        "2026-02-30",
        "2025-02-29",
        " 2026-03-01",
        "2026-03-01 ",
        "2026-03-01\n",
        "2026-03-01Z",
        "2026-03-01T",
        "\u0662\u0660\u0662\u0666-03-01",
        "2026-03-01T10:20:30",
        "2026-03-01T10:20:30.5",
        "2026-03-01T10:20Z",
        "2026-03-01T10Z",
        "2026-03-01T102030Z",
        "20260301T102030Z",
        "2026-03-01T10:20:60Z",
        "2016-12-31T23:59:60Z",
        "2026-03-01T25:00:00Z",
        "2026-03-01T10:60:00Z",
        "2026-02-30T10:20:30Z",
        "0000-01-01T00:00:00Z",
        "2026-03-01T10:20:30.Z",
        "2026-03-01T10:20:30,5Z",
        "2026-03-01T10:20:30.1234567890Z",
        "2026-03-01T10:20:30+02",
        "2026-03-01T10:20:30+0200",
        "2026-03-01T10:20:30+24:00",
        "2026-03-01T10:20:30  02:00",
        "2026-03-01T10:20:30ZZ",
        "2026-03-01T10:20:30Z\n",
        "2026-03-01T10:20:30Z\0",
        "2026-03-01_10:20:30Z",
        "2026-03-01T::::::::Z",
        "----------T10:20:30Z",
    ],
)
def test_any_other_date_is_refused(text: str) -> None:
    check_refused("from", text, Parameters.since, "The from is not a valid date.")
    check_refused("to", text, Parameters.until, "The to is not a valid date.")


# E-mails, types and users


@pytest.mark.parametrize(
    ("text", "email"),
    [
        ("user@example.com", "user@example.com"),
        (" \tUSER@Example.COM\n", "user@example.com"),
        ("user@bücher.example", "user@xn--bcher-kva.example"),
        ("User@XN--BCHER-KVA.Example", "user@xn--bcher-kva.example"),
        ("use\u0301r@example.com", "us\u00e9r@example.com"),
        ("=cmd@example.com", "=cmd@example.com"),
    ],
)
def test_an_email_is_looked_for_in_any_spelling(text: str, email: str) -> None:
    parameters = asked("email", text)
    assert parameters.email() == email
    assert parameters.errors == {}


@pytest.mark.parametrize("text", ["", " ", "x", "@", "a@b", "a b@example.com", "a\0@example.com", "\ud800@example.com"])
def test_what_is_no_email_is_refused(text: str) -> None:
    check_refused("email", text, Parameters.email, EMAIL_INVALID)


def test_an_email_that_is_too_long_is_refused() -> None:
    check_refused("email", f"{'a' * 64}@{'b' * 60 + '.'}{'c' * 63}.{'d' * 63}.com", Parameters.email, EMAIL_INVALID)


@pytest.mark.parametrize("type_", TransactionType)
def test_every_type_can_be_asked_for(type_: TransactionType) -> None:
    assert asked("type", str(type_)).type() is type_


@pytest.mark.parametrize("text", ["", "x", "ALLOCATION", "allocation ", "allocations", "allocation' OR 1=1 --", "\0"])
def test_an_unknown_type_is_refused(text: str) -> None:
    check_refused("type", text, Parameters.type, "The selected type is invalid.")


def test_a_user_is_asked_for_by_id() -> None:
    id_ = UUID("0199abcd-ef01-7abc-8def-0123456789ab")
    assert asked("user", format_id(IdKind.PAYOUT_USER, id_)).user() == id_
    other = format_id(IdKind.TRANSACTION, id_)
    for text in ("", "x", id_.hex, str(id_), f"usr_{id_}", f"usr_{id_.hex} ", f"usr_{id_.hex.upper()}", other, "\0"):
        check_refused("user", text, Parameters.user, "The selected user is invalid.")


# All of them


@pytest.mark.parametrize("name", READERS)
def test_a_parameter_may_be_given_only_once(name: str) -> None:
    for read in READERS[name]:
        parameters = query(f"{name}=1&other=1&{name}=1&{name}=2&other=2")
        read(parameters)
        assert parameters.errors == {name: [f"The {name} may be given only once."]}


def test_every_wrong_field_is_reported_at_once() -> None:
    parameters = query("limit=0&cursor=x&type=x&user=x&from=x&to=x&email=x&other=x")
    for readers in READERS.values():
        readers[0](parameters)
    assert parameters.errors == {
        "limit": [LIMIT_TOO_SMALL],
        "cursor": [CURSOR_INVALID],
        "email": [EMAIL_INVALID],
        "type": ["The selected type is invalid."],
        "user": ["The selected user is invalid."],
        "from": ["The from is not a valid date."],
        "to": ["The to is not a valid date."],
    }


def test_what_is_not_read_is_not_checked() -> None:
    parameters = query("limit=5&cursor=x&cursor=y")
    assert parameters.limit() == 5
    assert parameters.errors == {}


def test_a_field_of_the_body_counts_more_than_the_query() -> None:
    cursor = users_cursor(uuid4())
    parameters = query(f"limit=7&limit=8&cursor={cursor}").under({"limit": Decimal(9), "other": None})
    assert parameters.limit() == 9
    assert users_cursor(parameters.users_cursor() or UUID(int=0)) == cursor
    assert parameters.errors == {}


anything = st.recursive(
    st.none() | st.booleans() | st.text(st.characters()) | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(anything)
@settings(deadline=None)
def test_no_value_in_a_body_breaks_a_history_page(value: Any) -> None:
    for name, read in (("limit", Parameters.limit), ("cursor", Parameters.history_cursor)):
        parameters = Parameters({}).under({name: value})
        found = read(parameters)
        if name == "limit":
            assert type(found) is int
        assert parameters.errors.keys() <= {name}


nearly_moments = st.from_regex(r"[0-9-]{10}[Tt ][0-9:]{8}(\.[0-9]{1,10})?([Zz]|[-+ ][0-9]{2}:[0-9]{2})", fullmatch=True)
nearly_dates = st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]", fullmatch=True)
nearly_cursors = st.binary(max_size=40).map(lambda payload: base64.urlsafe_b64encode(payload).rstrip(b"=").decode())
own_cursors = st.builds(
    lambda kind, payload: base64.urlsafe_b64encode(kind + payload).rstrip(b"=").decode(),
    st.sampled_from([b"u", b"h"]),
    st.binary(min_size=16, max_size=16) | st.binary(min_size=24, max_size=24),
)
texts = st.text(st.characters()) | nearly_moments | nearly_dates | nearly_cursors | own_cursors


@given(st.sampled_from(sorted(READERS)), texts)
@settings(deadline=None, max_examples=500)
def test_no_text_breaks_a_reader(name: str, text: str) -> None:
    for read in READERS[name]:
        parameters = Parameters.from_query([(name, text)], KNOWN)
        found = read(parameters)
        assert parameters.errors.keys() <= {name}
        if parameters.errors and name != "limit":
            assert found is None
