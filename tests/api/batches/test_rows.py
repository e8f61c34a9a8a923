"""Reading the rows of a payout batch: three formats say the same, and what is wrong is named with its row or line."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api.batches.rows import ROWS_REPORTED_MAX, BatchFormat, RowChecker, find_format, parse_rows
from api.web.validation import FieldErrors, NotAnObject, parse_object
from core.batches.payout_batch import REFERENCE_MAX_CHARACTERS, ROWS_MAX, BatchRow
from core.emails import normalise_email
from core.money import ALLOCATION_MAX_CENTS
from tests.api.web.test_validation import amount_literals, email_literals, field_literals

JSON, CSV, NDJSON = BatchFormat.JSON, BatchFormat.CSV, BatchFormat.NDJSON
BOM = b"\xef\xbb\xbf"
REQUIRED = {"allocations": ["The allocations field is required."]}
EMPTY_CSV = {
    "allocations": ["The file is empty; its first line must name the columns: email,amount or email,amount,reference."]
}
TOO_MANY = {"allocations": [f"The allocations may not have more than {ROWS_MAX} items."]}
EMAIL = "a@example.com"
ROW = {"email": EMAIL, "amount": 1}

Parsed = list[BatchRow] | FieldErrors | NotAnObject


def write_json(rows: Sequence[Any]) -> bytes:
    return json.dumps({"allocations": rows}).encode()


def write_ndjson(rows: Sequence[Any], *, ensure_ascii: bool = True, end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=ensure_ascii) + end for row in rows).encode()


def write_csv(rows: Sequence[BatchRow], *, end: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["email", "amount", "reference"])
    writer.writerows([row.email, row.amount_cents, row.reference or ""] for row in rows)
    return text.getvalue().encode()


def parse_csv(*lines: str) -> Parsed:
    return parse_rows("\n".join(lines).encode(), CSV)


def file_error(text: str) -> FieldErrors:
    return {"allocations": [text]}


def documents_of(rows: Sequence[BatchRow]) -> list[dict[str, Any]]:
    return [{"email": row.email, "amount": row.amount_cents, "reference": row.reference} for row in rows]


# Which format


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("", JSON),
        ("application/json", JSON),
        ("application/octet-stream", JSON),
        ("text/plain", JSON),
        ("text/csv", CSV),
        ("Text/CSV; charset=utf-8; header=present", CSV),
        (" text/csv ", CSV),
        ("text/csvx", JSON),
        ("application/x-ndjson", NDJSON),
        ("application/ndjson;charset=UTF-8", NDJSON),
        ("APPLICATION/JSONL", NDJSON),
        ("application/jsonlines", NDJSON),
    ],
)
def test_the_media_type_names_the_format(content_type: str, expected: BatchFormat) -> None:
    assert find_format(content_type) is expected


# What is taken


def test_the_three_formats_are_read_alike() -> None:
    expected = [
        BatchRow("a@example.com", 1, "first"),
        BatchRow("b@xn--bcher-kva.example", ALLOCATION_MAX_CENTS, "with, a comma"),
        BatchRow("a@example.com", 2),
    ]
    as_json = [
        {"email": " A@Example.com\t", "amount": 1, "reference": "first", "unknown": [1]},
        {"email": "b@bücher.example", "amount": 1e8, "reference": "with, a comma"},
        {"email": "a@example.com", "amount": 2, "reference": None},
    ]
    as_csv = 'email,amount,reference\n A@Example.com\t, 1 ,first\nb@bücher.example,100000000,"with, a comma"\n'
    assert parse_rows(write_json(as_json), JSON) == expected
    assert parse_rows(write_ndjson(as_json), NDJSON) == expected
    assert parse_rows(f"{as_csv}a@example.com,2,\n".encode(), CSV) == expected


@pytest.mark.parametrize(
    ("written_as", "body"),
    [
        (CSV, BOM + b"email,amount\na@example.com,1\n"),
        (CSV, b"email,amount\r\na@example.com,1\r\n"),
        (CSV, b"email,amount\ra@example.com,1"),
        (CSV, b"email,amount\n\n\r\na@example.com,1\n\n\n"),
        (CSV, b'"email","amount"\n"a@example.com","1"'),
        (CSV, b" Email , AMOUNT \n a@example.com , 1 "),
        (CSV, b"amount,email\n1,a@example.com"),
        (CSV, b"amount,reference,email\n1,,a@example.com"),
        (CSV, b"email,amount\na@example.com,+1"),
        (CSV, b"email,amount\na@example.com,001"),
        (NDJSON, BOM + b'{"email":"a@example.com","amount":1}'),
        (NDJSON, b'\r\n \t\r\n{"email":"a@example.com","amount":1}\r\n\n'),
        (NDJSON, b' {"amount": 1, "email": "a@example.com"} '),
        (JSON, b'\r\n {"allocations" : [ {"email":"a@example.com","amount":1} ], "x": [[{}]]} \n'),
        (JSON, b'{"allocations":[{"email":"a@example.com","amount":1.0}]}'),
        (JSON, b'{"allocations":[{"email":"b@example.com","amount":5,"email":"a@example.com","amount":1}]}'),
        (JSON, b'{"allocations":[{"email":"\\u0061@example.com","amount":10e-1,"reference":" "}]}'),
    ],
)
def test_one_row_may_be_spelled_in_many_ways(written_as: BatchFormat, body: bytes) -> None:
    assert parse_rows(body, written_as) == [BatchRow(EMAIL, 1)]


def test_a_quoted_cell_may_hold_line_ends_and_quotes() -> None:
    parsed = parse_csv("reference,email,amount", '"a ""b""', 'c",a@example.com,1')
    assert parsed == [BatchRow(EMAIL, 1, 'a "b"\nc')]


def test_one_email_may_come_many_times() -> None:
    assert parse_rows(write_json([ROW, ROW, ROW]), JSON) == [BatchRow(EMAIL, 1)] * 3


def test_a_reference_is_kept_as_it_is() -> None:
    references = [" both sides ", "ünïcode \U0001f600", "=cmd()", "x" * REFERENCE_MAX_CHARACTERS, "0", "\ud7ff\ufffe"]
    rows = [BatchRow(EMAIL, 1, reference) for reference in references]
    assert parse_rows(write_json(documents_of(rows)), JSON) == rows
    assert parse_rows(write_ndjson(documents_of(rows)), NDJSON) == rows
    assert parse_rows(write_csv(rows), CSV) == rows


@pytest.mark.parametrize("blank", [None, "", "  ", "\t\u2003"])
def test_a_blank_reference_is_none_and_no_duplicate(blank: str | None) -> None:
    row = ROW | {"reference": blank}
    assert parse_rows(write_json([row, row, ROW]), JSON) == [BatchRow(EMAIL, 1)] * 3
    assert parse_csv("email,amount,reference", f"{EMAIL},1,{blank or ''}", f"{EMAIL},1,") == [BatchRow(EMAIL, 1)] * 2


def test_as_many_rows_as_allowed_are_taken_and_one_more_is_not() -> None:
    line = b'{"email":"a@example.com","amount":1}\n'
    rows = parse_rows(line * ROWS_MAX, NDJSON)
    assert isinstance(rows, list)
    assert len(rows) == ROWS_MAX
    assert parse_rows(line * (ROWS_MAX + 1), NDJSON) == TOO_MANY
    csv_line = b"a@example.com,1\n"
    assert parse_rows(b"email,amount\n" + csv_line * (ROWS_MAX + 1), CSV) == TOO_MANY
    joined = b",".join([line.strip()] * (ROWS_MAX + 1))
    assert parse_rows(b'{"allocations":[' + joined + b"]}", JSON) == TOO_MANY


# What is wrong with the file as a whole


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", NotAnObject()),
        (b"null", NotAnObject()),
        (b"[]", NotAnObject()),
        (b'[{"email":"a@example.com","amount":1}]', NotAnObject()),
        (b'"allocations"', NotAnObject()),
        (b'{"allocations":[{"email":"a@example.com","amount":1}', NotAnObject()),
        (b'{"allocations":[{"email":"a@example.com","amount":1}]} x', NotAnObject()),
        (b'{"allocations":[{"email":"a@example.com","amount":NaN}]}', NotAnObject()),
        (b'{"allocations":[{"email":"a@example.com","amount":1,"reference":"\\ud800"}]}', NotAnObject()),
        (BOM + b'{"allocations":[]}', NotAnObject()),
        (b"email,amount\na@example.com,1", NotAnObject()),
        (b'{"allocations":' + b"[" * 100_000 + b"]" * 100_000 + b"}", NotAnObject()),
        (b'{"x":' + b'{"x":' * 100_000 + b"1" + b"}" * 100_001, NotAnObject()),
        (b"{}", REQUIRED),
        (b'{"allocations":null}', REQUIRED),
        (b'{"allocations":[]}', REQUIRED),
        (b'{"Allocations":[{"email":"a@example.com","amount":1}]}', REQUIRED),
        (b'{"allocations":{}}', file_error("The allocations must be an array.")),
        (b'{"allocations":"email,amount"}', file_error("The allocations must be an array.")),
        (b'{"allocations":0}', file_error("The allocations must be an array.")),
        (b'{"allocations":[{"email":"\xff@example.com"}]}', file_error("Line 1 is not valid UTF-8.")),
        (b'{\n"x":\n"\xc3"}', file_error("Line 3 is not valid UTF-8.")),
    ],
)
def test_json_that_holds_no_rows_is_refused(body: bytes, expected: Parsed) -> None:
    assert parse_rows(body, JSON) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", REQUIRED),
        (BOM, REQUIRED),
        (b"\n \r\n\t\n", REQUIRED),
        (b'{"email":"a@example.com","amount":1}\n{"email":"b@exa', file_error("Line 2 is not JSON.")),
        (b'\n\n{"email":"a@example.com","amount":1},\n', file_error("Line 3 is not JSON.")),
        (b'{"email":\n"a@example.com","amount":1}', file_error("Line 1 is not JSON.")),
        (b'{"email":"a@example.com","amount":1}{}', file_error("Line 1 is not JSON.")),
        (b"NaN", file_error("Line 1 is not JSON.")),
        (b"email,amount\na@example.com,1", file_error("Line 1 is not JSON.")),
        (b"[" * 100_000, file_error("Line 1 is not JSON.")),
        (b'{"email":"a@example.com","amount":1,"reference":"\\udfff"}', file_error("Line 1 is not JSON.")),
        (b'{}\n{"email":"\xe4@example.com"}', file_error("Line 2 is not valid UTF-8.")),
        ('{"email":"a@example.com"}'.encode("utf-16"), file_error("Line 1 is not valid UTF-8.")),
    ],
)
def test_ndjson_with_a_line_that_is_no_json_is_refused_with_the_line(body: bytes, expected: Parsed) -> None:
    assert parse_rows(body, NDJSON) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", EMPTY_CSV),
        (BOM, EMPTY_CSV),
        (b"email,amount", REQUIRED),
        (b"email,amount,reference\r\n\r\n\r\n", REQUIRED),
        (b"email", file_error("Line 1 does not name the column amount.")),
        (b"amount,reference\n1,x", file_error("Line 1 does not name the column email.")),
        (b"\nemail,amount\na@example.com,1", file_error("Line 1 does not name the column email.")),
        (b"email,amount,amount\na@example.com,1,1", file_error("Line 1 names the column amount twice.")),
        (b"email,amount, EMAIL\n", file_error("Line 1 names the column email twice.")),
        (
            b"email,amount,notes\na@example.com,1,x",
            file_error("Line 1 names an unknown column, 'notes'; the columns are email, amount and reference."),
        ),
        (
            b"email,amount,\na@example.com,1,",
            file_error("Line 1 names an unknown column, ''; the columns are email, amount and reference."),
        ),
        (
            b"a@example.com,100\nb@example.com,100",
            file_error("Line 1 names an unknown column, 'a@example.com'; the columns are email, amount and reference."),
        ),
        (
            b"email,amount," + b"n" * 1000,
            file_error(f"Line 1 names an unknown column, '{'n' * 40}'; the columns are email, amount and reference."),
        ),
        (
            b"email;amount\na@example.com;1",
            file_error("Line 1 separates columns by semicolons; CSV separates them by commas."),
        ),
        (
            b"email\tamount\na@example.com\t1",
            file_error("Line 1 separates columns by tabs; CSV separates them by commas."),
        ),
        (
            b"email|amount|reference\n",
            file_error("Line 1 separates columns by bars; CSV separates them by commas."),
        ),
        (
            b"email,amount\na@example.com,1\nb@example.com;2",
            file_error("Line 3 has 1 cells, and the first line names 2 columns."),
        ),
        (
            b"email,amount\n\na@example.com,1,x",
            file_error("Line 3 has 3 cells, and the first line names 2 columns."),
        ),
        (
            b'email,amount,reference\na@example.com,1,"two\nlines"\nb@example.com,1',
            file_error("Line 4 has 2 cells, and the first line names 3 columns."),
        ),
        (b"email,amount\n \n", file_error("Line 2 has 1 cells, and the first line names 2 columns.")),
        (b'email,amount\n"a@example.com,1', file_error("Line 2 is not CSV: unexpected end of data.")),
        (b'email,amount\n"a@example.com"x,1', file_error("Line 2 is not CSV: ',' expected after '\"'.")),
        (
            b"email,amount\na@example.com,1\n" + b"x" * 200_000,
            file_error("Line 3 is not CSV: field larger than field limit (131072)."),
        ),
        (b"email,amount\na@example.com,1\n\xe9@example.com,1", file_error("Line 3 is not valid UTF-8.")),
        (b"email,amount\na@example.com,\xed\xa0\x80", file_error("Line 2 is not valid UTF-8.")),
        ("email,amount\n".encode("utf-16"), file_error("Line 1 is not valid UTF-8.")),
    ],
)
def test_csv_that_is_no_table_of_ours_is_refused_with_the_line(body: bytes, expected: Parsed) -> None:
    assert parse_rows(body, CSV) == expected


def test_a_file_that_breaks_off_in_a_row_is_not_taken_for_a_shorter_one() -> None:
    rows = [{"email": f"user{number}@example.com", "amount": 1_000 + number} for number in range(3)]
    whole = write_json(rows)
    assert all(not isinstance(parse_rows(whole[:end], JSON), list) for end in range(len(whole)))
    lines = write_ndjson(rows)
    line_ends = {end for end, byte in enumerate(lines) if byte == ord("\n")}
    for end in range(1, len(lines)):
        if end not in line_ends and end - 1 not in line_ends:
            assert not isinstance(parse_rows(lines[:end], NDJSON), list)


# What is wrong with rows


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({}, {"email": ["The {}.email field is required."], "amount": ["The {}.amount field is required."]}),
        (
            {"email": None, "amount": None, "reference": None},
            {"email": ["The {}.email field is required."], "amount": ["The {}.amount field is required."]},
        ),
        (
            {"email": " \t", "amount": " "},
            {"email": ["The {}.email field is required."], "amount": ["The {}.amount field is required."]},
        ),
        (
            {"email": 5, "amount": "100"},
            {
                "email": ["The {}.email must be a string.", "The {}.email must be a valid email address."],
                "amount": ["The {}.amount must be an integer."],
            },
        ),
        (
            {"email": "x@" + "y" * 254, "amount": 1},
            {
                "email": [
                    "The {}.email must be a valid email address.",
                    "The {}.email may not be greater than 255 characters.",
                ]
            },
        ),
        ({"email": "a@localhost", "amount": 1}, {"email": ["The {}.email must be a valid email address."]}),
        ({"email": "\0a@example.com", "amount": 1}, {"email": ["The {}.email must be a valid email address."]}),
        ({"email": EMAIL, "amount": True}, {"amount": ["The {}.amount must be an integer."]}),
        ({"email": EMAIL, "amount": [1]}, {"amount": ["The {}.amount must be an integer."]}),
        ({"email": EMAIL, "amount": 10.5}, {"amount": ["The {}.amount must be an integer."]}),
        ({"email": EMAIL, "amount": 0}, {"amount": ["The {}.amount must be at least 1."]}),
        ({"email": EMAIL, "amount": -(2**63)}, {"amount": ["The {}.amount must be at least 1."]}),
        (
            {"email": EMAIL, "amount": 0.5},
            {"amount": ["The {}.amount must be an integer.", "The {}.amount must be at least 1."]},
        ),
        (
            {"email": EMAIL, "amount": ALLOCATION_MAX_CENTS + 1},
            {"amount": ["The {}.amount may not be greater than 100000000."]},
        ),
        ({"email": EMAIL, "amount": 10**400}, {"amount": ["The {}.amount may not be greater than 100000000."]}),
        ({"email": EMAIL, "amount": 1, "reference": 5}, {"reference": ["The {}.reference must be a string."]}),
        ({"email": EMAIL, "amount": 1, "reference": {}}, {"reference": ["The {}.reference must be a string."]}),
        ({"email": EMAIL, "amount": 1, "reference": "a\0b"}, {"reference": ["The {}.reference must be a string."]}),
        (
            {"email": EMAIL, "amount": 1, "reference": "x" * 256},
            {"reference": ["The {}.reference may not be greater than 255 characters."]},
        ),
    ],
)
def test_each_broken_rule_of_a_row_is_said_in_its_words(row: dict[str, Any], texts: dict[str, list[str]]) -> None:
    name = "allocations.1"
    expected = {f"{name}.{field}": [text.format(name) for text in each] for field, each in texts.items()}
    assert parse_rows(write_json([ROW, row]), JSON) == expected
    assert parse_rows(write_ndjson([ROW, row]), NDJSON) == expected


@pytest.mark.parametrize("row", [None, 1, "text", [], [EMAIL, 1], True])
def test_a_row_that_is_no_object_is_refused(row: Any) -> None:
    expected = {"allocations.1": ["The allocations.1 must be an object."]}
    assert parse_rows(write_json([ROW, row]), JSON) == expected
    assert parse_rows(write_ndjson([ROW, row]), NDJSON) == expected


@pytest.mark.parametrize(
    ("amount", "texts"),
    [
        ("10.50", ["The {} must be an integer."]),
        ("10.00", ["The {} must be an integer."]),
        ("1e3", ["The {} must be an integer."]),
        ("$5", ["The {} must be an integer."]),
        ('"1,000"', ["The {} must be an integer."]),
        ("1 000", ["The {} must be an integer."]),
        ("1_000", ["The {} must be an integer."]),
        ("\uff11", ["The {} must be an integer."]),
        ("true", ["The {} must be an integer."]),
        ("NaN", ["The {} must be an integer."]),
        ("1\x1a", ["The {} must be an integer."]),
        ("", ["The {} field is required."]),
        ("  ", ["The {} field is required."]),
        ("0", ["The {} must be at least 1."]),
        ("-5", ["The {} must be at least 1."]),
        ("100000001", ["The {} may not be greater than 100000000."]),
        ("9" * 30, ["The {} may not be greater than 100000000."]),
        ("9" * 20_000, ["The {} may not be greater than 100000000."]),
    ],
)
def test_an_amount_in_csv_is_an_integer_of_cents(amount: str, texts: list[str]) -> None:
    name = "allocations.1.amount"
    parsed = parse_csv("email,amount", f"{EMAIL},1", f"{EMAIL},{amount}", f"{EMAIL},2")
    assert parsed == {name: [text.format(name) for text in texts]}


def test_rows_are_counted_without_blank_lines() -> None:
    expected = {"allocations.1.amount": ["The allocations.1.amount must be an integer."]}
    assert parse_csv("email,amount", "", f"{EMAIL},1", "", "", f"{EMAIL},x") == expected
    assert parse_rows(b'\n{"email":"a@example.com","amount":1}\n\n{"email":"a@example.com","amount":"1"}', NDJSON) == (
        expected
    )


def test_a_reference_that_comes_twice_is_refused_in_every_format() -> None:
    rows = [BatchRow(EMAIL, 1, reference) for reference in ("x", "y", "x", "X", "x ", "x")]
    expected = {
        f"allocations.{row}.reference": [f"The allocations.{row}.reference has a duplicate value."] for row in (2, 5)
    }
    assert parse_rows(write_json(documents_of(rows)), JSON) == expected
    assert parse_rows(write_ndjson(documents_of(rows)), NDJSON) == expected
    assert parse_rows(write_csv(rows), CSV) == expected


def test_a_reference_that_a_wrong_row_has_is_taken_too() -> None:
    wrong = {"email": "nobody", "amount": 1, "reference": "x"}
    assert parse_rows(write_json([wrong, ROW | {"reference": "x"}]), JSON) == {
        "allocations.0.email": ["The allocations.0.email must be a valid email address."],
        "allocations.1.reference": ["The allocations.1.reference has a duplicate value."],
    }


@pytest.mark.parametrize("written_as", BatchFormat)
def test_at_most_a_hundred_rows_are_reported(written_as: BatchFormat) -> None:
    body = {
        JSON: write_json([ROW, *[{}] * 500]),
        NDJSON: write_ndjson([ROW, *[{}] * 500]),
        CSV: b"email,amount\na@example.com,1\n" + b",\n" * 500,
    }[written_as]
    errors = parse_rows(body, written_as)
    assert isinstance(errors, dict)
    expected = [
        f"allocations.{row}.{field}" for row in range(1, ROWS_REPORTED_MAX + 1) for field in ("email", "amount")
    ]
    assert list(errors) == expected


def test_what_is_wrong_with_the_file_counts_before_what_is_wrong_with_rows() -> None:
    assert parse_csv("email,amount", "nobody,0", "x") == file_error(
        "Line 3 has 1 cells, and the first line names 2 columns."
    )
    assert parse_rows(b"{}\nx", NDJSON) == file_error("Line 2 is not JSON.")


def test_a_huge_number_or_a_deep_row_is_no_crash() -> None:
    huge = b'{"email":"a@example.com","amount":' + b"9" * 1_000_000 + b"}"
    too_large = {"allocations.0.amount": ["The allocations.0.amount may not be greater than 100000000."]}
    assert parse_rows(huge, NDJSON) == too_large
    assert parse_rows(b'{"allocations":[' + huge + b"]}", JSON) == too_large
    assert parse_rows(b'{"email":"a@example.com","amount":1e999999999999999999}', NDJSON) == too_large
    for depth in (100, 500, 900, 1_100, 50_000):
        deep = b'{"email":"a@example.com","amount":1,"x":' + b"[" * depth + b"]" * depth + b"}"
        assert parse_rows(deep, NDJSON) in ([BatchRow(EMAIL, 1)], file_error("Line 1 is not JSON."))
        assert parse_rows(b'{"allocations":[' + deep + b"]}", JSON) in ([BatchRow(EMAIL, 1)], NotAnObject())


# Properties

references = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)
emails = st.sampled_from(
    ["a@example.com", "o'neil+x@mail.example.org", "é@example.com", "x.y@xn--bcher-kva.example", '"q,q"@example.com']
).filter(lambda email: normalise_email(email) == email)
good_rows = st.lists(
    st.builds(BatchRow, emails, st.integers(1, ALLOCATION_MAX_CENTS), st.none() | references),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row.reference or id(row),
)
row_literals = st.one_of(
    st.builds('{{"email": {}, "amount": {}, "reference": {}}}'.format, email_literals, amount_literals, email_literals),
    st.lists(field_literals, max_size=4).map(lambda fields: "{" + ", ".join(fields) + "}"),
    amount_literals,
)


@given(good_rows, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_json_csv_and_ndjson_of_the_same_rows_parse_alike(
    rows: list[BatchRow], ensure_ascii: bool, end: str, has_bom: bool
) -> None:
    bom = BOM if has_bom else b""
    documents = documents_of(rows)
    assert parse_rows(write_json(documents), JSON) == rows
    assert parse_rows(bom + write_ndjson(documents, ensure_ascii=ensure_ascii, end=end), NDJSON) == rows
    assert parse_rows(bom + write_csv(rows, end=end), CSV) == rows


@given(st.lists(row_literals, min_size=1, max_size=5))
def test_json_and_ndjson_of_any_rows_parse_alike(rows: list[str]) -> None:
    as_json = parse_rows(f'{{"allocations": [{", ".join(rows)}]}}'.encode(), JSON)
    as_ndjson = parse_rows("\n".join(rows).encode(), NDJSON)
    if isinstance(as_json, NotAnObject):
        assert isinstance(as_ndjson, dict)  # which names the line
    else:
        assert as_ndjson == as_json


@given(st.lists(row_literals, min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_quick_look_at_rows_and_a_close_one_agree(rows: list[str]) -> None:
    parsed = parse_rows(f'{{"allocations": [{", ".join(rows)}]}}'.encode(), JSON)
    if isinstance(parsed, NotAnObject):
        return
    closely = RowChecker()
    for row in rows:
        fields = parse_object(row.encode())
        checked = closely._check(None if isinstance(fields, NotAnObject) else fields)
        closely.count += 1
        if checked is not None:
            closely.rows.append(checked)
    assert parsed == (closely.errors or closely.rows)


def check_shape(parsed: Parsed) -> None:
    if isinstance(parsed, list):
        assert parsed
        for row in parsed:
            assert normalise_email(row.email) == row.email
            assert 1 <= row.amount_cents <= ALLOCATION_MAX_CENTS
            assert type(row.amount_cents) is int
            assert row.reference is None or 0 < len(row.reference) <= REFERENCE_MAX_CHARACTERS
    elif isinstance(parsed, dict):
        assert parsed
        assert all(parsed.values())
    else:
        assert isinstance(parsed, NotAnObject)


@given(st.binary(), st.sampled_from(BatchFormat))
@example(b"email,amount\n\0\n", CSV)
@example(b'{"allocations":[{"\\ud800":1}]}', JSON)
def test_no_bytes_raise(body: bytes, written_as: BatchFormat) -> None:
    check_shape(parse_rows(body, written_as))


@given(
    good_rows,
    st.sampled_from(BatchFormat),
    st.integers(0, 500),
    st.binary(max_size=3) | st.just(b"\0"),
    st.integers(0, 9),
)
def test_no_damaged_file_raises(
    rows: list[BatchRow], written_as: BatchFormat, position: int, inserted: bytes, removed: int
) -> None:
    body = {
        JSON: write_json(documents_of(rows)),
        NDJSON: write_ndjson(documents_of(rows)),
        CSV: write_csv(rows),
    }[written_as]
    check_shape(parse_rows(body[:position] + inserted + body[position + removed :], written_as))
