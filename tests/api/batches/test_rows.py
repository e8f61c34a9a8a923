"""Reading the rows of a payout batch: three formats say the same, and what is wrong is named with its row or line."""

import csv
import gzip
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api.batches.reader.amounts import Unit
from api.batches.reader.columns import Mapping
from api.batches.reader.doors import Door
from api.batches.reader.files import FileFormat
from api.batches.reader.json_rows import parse_pairs
from api.batches.reader.mistakes import Fault, Reason
from api.batches.reader.options import Options
from api.batches.reader.payments import read_payments
from api.batches.reader.row_check import RowCheck
from api.batches.reader.words import write_mistakes
from api.batches.rows import ROWS_REPORTED_MAX, find_body_format, parse_rows
from api.web.csv_cells import escape_cell
from api.web.validation import FieldErrors, NotAnObject
from core.batches.payout_batch import REFERENCE_MAX_CHARACTERS, ROWS_MAX, BatchRow
from core.emails import normalise_email
from core.money import ALLOCATION_MAX_CENTS
from tests.api.web.test_validation import amount_literals, email_literals, field_literals

JSON, CSV, NDJSON = FORMATS = FileFormat.JSON, FileFormat.CSV, FileFormat.NDJSON
BOM = b"\xef\xbb\xbf"
REQUIRED = {"allocations": ["The allocations field is required."]}
EMPTY_CSV = {
    "allocations": ["The file is empty; its first line must name the columns: email,amount or email,amount,reference."]
}
TOO_MANY = {"allocations": [f"The allocations may not have more than {ROWS_MAX} items."]}
NO_ARRAY = "Line 1 is not JSON: write one JSON object a line, without brackets and commas around them."
UTF_16 = "Line 1 is not valid UTF-8; it is probably UTF-16. Save the file as UTF-8 (in Excel: Save As, CSV UTF-8)."
COLUMNS = "The columns are email, amount and, if wanted, reference"
WHOLE_CENTS = "The {}.amount must be whole cents, written without a point or an exponent."
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
    writer.writerows([escape_cell(row.email), row.amount_cents, escape_cell(row.reference or "")] for row in rows)
    return text.getvalue().encode()


def parse_csv(*lines: str) -> Parsed:
    return parse_rows("\n".join(lines).encode(), CSV)


def not_utf_8(line: int) -> str:
    cure = "Save the file as UTF-8 (in Excel: Save As, CSV UTF-8)."
    return f"Line {line} is not valid UTF-8; it is probably Windows-1252. {cure}"


def file_error(text: str) -> FieldErrors:
    return {"allocations": [text]}


def documents_of(rows: Sequence[BatchRow]) -> list[dict[str, Any]]:
    return [{"email": row.email, "amount": row.amount_cents, "reference": row.reference} for row in rows]


# Which format


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("", None),
        ("application/json", JSON),
        ("application/octet-stream", None),
        ("text/plain", None),
        ("text/csv", CSV),
        ("Text/CSV; charset=utf-8; header=present", CSV),
        (" text/csv ", CSV),
        ("text/csvx", None),
        ("application/x-ndjson", NDJSON),
        ("application/ndjson;charset=UTF-8", NDJSON),
        ("APPLICATION/JSONL", NDJSON),
        ("application/jsonlines", NDJSON),
    ],
)
def test_the_media_type_names_the_format(content_type: str, expected: FileFormat | None) -> None:
    assert find_body_format(content_type) is expected


# What is taken


def test_the_three_formats_are_read_alike() -> None:
    expected = [
        BatchRow("a@example.com", 1, "first"),
        BatchRow("b@xn--bcher-kva.example", ALLOCATION_MAX_CENTS, "with, a comma"),
        BatchRow("a@example.com", 2),
    ]
    as_json = [
        {"email": " A@Example.com\t", "amount": 1, "reference": " first "},
        {"email": "b@bücher.example", "amount": 10**8, "reference": "with, a comma"},
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
        (CSV, b"email;amount\na@example.com;1"),
        (CSV, b"email\tamount\na@example.com\t1"),
        (CSV, b'"email";"amount"\n"a@example.com";"1"'),
        (CSV, b"sep=;\nemail;amount\na@example.com;1"),
        (CSV, b"email,amount,\na@example.com,1,"),
        (CSV, b"\n \nemail,amount\n \n,\na@example.com,1\n,\n"),
        (CSV, "email,amount\na@example.com,1".encode("utf-16")),
        (CSV, gzip.compress(b"email,amount\na@example.com,1", mtime=0)),
        (CSV, b"email,amount\na@example.com,001"),
        (NDJSON, BOM + b'{"email":"a@example.com","amount":1}'),
        (NDJSON, b'\r\n \t\r\n{"email":"a@example.com","amount":1}\r\n\n'),
        (NDJSON, b' {"amount": 1, "email": "a@example.com"} '),
        (JSON, b'\r\n {"allocations" : [ {"email":"a@example.com","amount":1} ], "x": [[{}]]} \n'),
        (NDJSON, b'{"email":"a@example.com","amount":1}\r'),
        (NDJSON, '{"email":"a@example.com","amount":1}'.encode("utf-16")),
        (JSON, b'{"allocations":[{"email":"\\u0061@example.com","amo\\u0075nt":1,"reference":" "}]}'),
    ],
)
def test_one_row_may_be_spelled_in_many_ways(written_as: FileFormat, body: bytes) -> None:
    assert parse_rows(body, written_as) == [BatchRow(EMAIL, 1)]


def test_a_quoted_cell_may_hold_line_ends_and_quotes() -> None:
    parsed = parse_csv("reference,amount,email", '"a ""b""",1,"', "a@example.com", '"')
    assert parsed == [BatchRow(EMAIL, 1, 'a "b"')]


def test_one_email_may_come_many_times() -> None:
    assert parse_rows(write_json([ROW, ROW, ROW]), JSON) == [BatchRow(EMAIL, 1)] * 3


def test_a_reference_is_kept_as_it_is_but_for_white_space_around_it() -> None:
    references = [
        "both  sides",
        "ünïcode \U0001f600",
        "=cmd()",
        "x" * REFERENCE_MAX_CHARACTERS,
        "0",
        "\ud7ff\ufffe",
        "'=x",
    ]
    spaced = [BatchRow(EMAIL, 1, f" {reference}\t") for reference in references]
    rows = [BatchRow(EMAIL, 1, reference) for reference in references]
    assert parse_rows(write_json(documents_of(spaced)), JSON) == rows
    assert parse_rows(write_ndjson(documents_of(spaced)), NDJSON) == rows
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
        (b'{"allocations":[{"email":"\xff@example.com"}]}', file_error(not_utf_8(1))),
        (b'{\n"x":\n"\xc3"}', file_error(not_utf_8(3))),
        (
            b'{"allocations":[{"email":"a@example.com","amount":1}],"allocations":[]}',
            file_error("The allocations field must be given once."),
        ),
        (
            b'{"allocations":[{"email":"a@example.com","amount":1}],"all\\u006fcations":[]}',
            file_error("The allocations field must be given once."),
        ),
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
        (b"[" * 100_000, file_error(NO_ARRAY)),
        (b'{"email":"a@example.com","amount":1,"reference":"\\udfff"}', file_error("Line 1 is not JSON.")),
        (b'[{"email":"a@example.com","amount":1},\n{"email":"b@example.com","amount":1}]', file_error(NO_ARRAY)),
        (b'{}\n{"email":"\xe4@example.com"}', file_error(not_utf_8(2))),
        ('{"email":"a@example.com"}'.encode("utf-16-le"), file_error(UTF_16)),
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
        (b"email", file_error(f"Line 1 does not name the column amount; it names 'email'. {COLUMNS}.")),
        (
            b"\namount,reference\n1,x",
            file_error(f"Line 2 does not name the column email; it names 'amount', 'reference'. {COLUMNS}."),
        ),
        (
            b"E-mail,Sum\na@example.com,1",
            file_error(f"Line 1 does not name the columns email and amount; it names 'E-mail', 'Sum'. {COLUMNS}."),
        ),
        (
            b"#TYPE x\nemail,amount\na@example.com,1",
            file_error("Line 1 is no header: the columns are named on line 2. Delete what stands above it."),
        ),
        (b"email,amount,amount\na@example.com,1,1", file_error("Line 1 names the column amount twice.")),
        (b"email,amount, EMAIL\n", file_error("Line 1 names the column email twice.")),
        (
            b"email,amount,notes\na@example.com,1,x",
            file_error("Line 1 names an unknown column, 'notes'; the columns are email, amount and reference."),
        ),
        (
            b",email,amount\n0,a@example.com,1",
            file_error("Column 1 has no name, and has '0' in line 2. Name it, or leave it out."),
        ),
        (
            b"a@example.com,100\nb@example.com,100",
            file_error(
                "Line 1 names no columns: it has an e-mail address. Put the names of the columns above it: "
                "email,amount or email,amount,reference."
            ),
        ),
        (
            b"email,amount," + b"n" * 1000,
            file_error(f"Line 1 names an unknown column, '{'n' * 40}…'; the columns are email, amount and reference."),
        ),
        (
            b"email|amount|reference\n",
            file_error("Line 1 separates columns by bars; use commas, semicolons or tabs."),
        ),
        (
            b"email,amount\na@example.com,1\nb@example.com;2",
            file_error("Line 3 has 1 cell, and there are 2 columns."),
        ),
        (
            b"email,amount\n\na@example.com,1,x",
            file_error("Line 3 has 3 cells, and there are 2 columns."),
        ),
        (
            b'email,amount,reference\na@example.com,1,"two\nlines"\nb@example.com,1',
            file_error("Line 4 has 2 cells, and there are 3 columns."),
        ),
        (b"email,amount\n(0 rows)\n", file_error("Line 2 has 1 cell, and there are 2 columns.")),
        (
            b"email|amount,x\na@example.com|1,x",
            file_error(f"Line 1 does not name the columns email and amount; it names 'email|amount', 'x'. {COLUMNS}."),
        ),
        (
            b"sep=|\nemail|amount\n",
            file_error("Line 1 says that '|' separates columns; use commas, semicolons or tabs."),
        ),
        (b'email,amount\n"a@example.com,1', file_error("Line 2 is not CSV: a quote is opened and never closed.")),
        (
            b'email,amount\n"a@example.com"x,1',
            file_error("Line 2 is not CSV: after a closing quote comes neither a separator nor the end of the line."),
        ),
        (
            b"email,amount\na@example.com,1\n" + b"x" * 200_000,
            file_error(
                "Line 3 is not CSV: a cell is longer than 131,072 characters, perhaps for a quote that is never closed."
            ),
        ),
        (b"email,amount\na@example.com,1\n\xe9@example.com,1", file_error(not_utf_8(3))),
        (b"email,amount\na@example.com,\xed\xa0\x80", file_error(not_utf_8(2))),
        ("email,amount\n".encode("utf-16-le"), file_error(UTF_16)),
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
        *(
            (
                {"email": EMAIL, "amount": 1, "reference": reference},
                {"reference": ["The {}.reference may not contain control characters."]},
            )
            for reference in ("a\0b", "a\nb", "a\x7fb", "a\x85b")
        ),
        ({"email": EMAIL, "amount": "100"}, {"amount": ["The {}.amount must be an integer."]}),
        ({"email": EMAIL, "amount": 100.0}, {"amount": ["The {}.amount must be an integer.", WHOLE_CENTS]}),
        ({"email": EMAIL, "amount": 1, "currency": "EUR"}, {"currency": ["The {}.currency field is not known."]}),
        (
            {"Email": EMAIL, "amount": 1},
            {"Email": ["The {}.Email field is not known."], "email": ["The {}.email field is required."]},
        ),
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


INTEGER = "The {} must be an integer."


@pytest.mark.parametrize(
    ("amount", "texts"),
    [
        (
            "10.50",
            [
                INTEGER,
                "Line 3: the amount '10.50' is not whole cents, written without a point: in cents $10.50 is 1050.",
            ],
        ),
        (
            "10.00",
            [
                INTEGER,
                (
                    "Line 3: the amount '10.00' is not whole cents, written without a point: if these are "
                    "cents, write 10; "
                    "if these are dollars ($10.00), write 1000."
                ),
            ],
        ),
        ("1e3", [INTEGER, "Line 3: the amount '1e3' has an exponent: write it out: 1000."]),
        (
            "$5",
            [
                INTEGER,
                (
                    "Line 3: the amount '$5' has a currency or a word; amounts are in US dollars: if these "
                    "are cents, write 5; "
                    "if these are dollars ($5.00), write 500."
                ),
            ],
        ),
        (
            '"1,000"',
            [
                INTEGER,
                (
                    "Line 3: the amount '1,000' has more than two decimals, or is 1000 with a thousands separator: "
                    "write 1000 or 1."
                ),
            ],
        ),
        (
            "1 000",
            [
                INTEGER,
                (
                    "Line 3: the amount '1 000' has thousands separators: if these are cents, write 1000; "
                    "if these are dollars ($1,000.00), write 100000."
                ),
            ],
        ),
        (
            "1_000",
            [
                INTEGER,
                (
                    "Line 3: the amount '1_000' has thousands separators: if these are cents, write 1000; "
                    "if these are dollars ($1,000.00), write 100000."
                ),
            ],
        ),
        ("\uff11", [INTEGER, "Line 3: the amount '\uff11' has other digits: write it with the digits 0 to 9 alone."]),
        ("+1", [INTEGER, "Line 3: the amount '+1' is not a number: write digits alone."]),
        ("true", [INTEGER, "Line 3: the amount 'true' is not a number: write digits alone."]),
        ("NaN", [INTEGER, "Line 3: the amount 'NaN' is not a number: write digits alone."]),
        ("1\x1a", [INTEGER, "Line 3: the amount '1\ufffd' is not a number: write digits alone."]),
        ("(5)", [INTEGER, "Line 3: the amount '(5)' is negative: a payout is a positive amount."]),
        ("", ["The {} field is required."]),
        ("  ", ["The {} field is required."]),
        ("0", ["The {} must be at least 1."]),
        ("-5", ["The {} must be at least 1."]),
        ("100000001", ["The {} may not be greater than 100000000."]),
        ("9" * 30, ["The {} may not be greater than 100000000."]),
        ("9" * 20_000, ["The {} may not be greater than 100000000."]),
    ],
)
def test_an_amount_in_csv_is_digits_and_its_line_is_named(amount: str, texts: list[str]) -> None:
    name = "allocations.1.amount"
    parsed = parse_csv("email,amount", f"{EMAIL},1", f"{EMAIL},{amount}", f"{EMAIL},2")
    assert parsed == {name: [text.replace("{}", name) for text in texts]}


def test_rows_are_counted_without_blank_lines() -> None:
    expected = {"allocations.1.amount": ["The allocations.1.amount must be an integer."]}
    parsed = parse_csv("email,amount", "", f"{EMAIL},1", "", "", f"{EMAIL},x")
    assert parsed == {
        name: [*texts, "Line 6: the amount 'x' is not a number: write digits alone."]
        for name, texts in expected.items()
    }
    assert parse_rows(b'\n{"email":"a@example.com","amount":1}\n\n{"email":"a@example.com","amount":"1"}', NDJSON) == (
        expected
    )


def test_a_reference_that_comes_twice_is_refused_in_every_format() -> None:
    rows = [BatchRow(EMAIL, 1, reference) for reference in ("x", "y", "x", "X", "x ", "x")]
    expected = {
        f"allocations.{row}.reference": [f"The allocations.{row}.reference has a duplicate value."] for row in (2, 4, 5)
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


@pytest.mark.parametrize("written_as", FORMATS)
def test_at_most_a_hundred_rows_are_reported(written_as: FileFormat) -> None:
    body = {
        JSON: write_json([ROW, *[{}] * 500]),
        NDJSON: write_ndjson([ROW, *[{}] * 500]),
        CSV: b"email,amount\na@example.com,1\n" + b"x,\n" * 500,
    }[written_as]
    errors = parse_rows(body, written_as)
    assert isinstance(errors, dict)
    expected = [
        f"allocations.{row}.{field}" for row in range(1, ROWS_REPORTED_MAX + 1) for field in ("email", "amount")
    ]
    assert list(errors) == expected


def test_what_is_wrong_with_the_file_counts_before_what_is_wrong_with_rows() -> None:
    assert parse_csv("email,amount", "nobody,0", "x") == file_error("Line 3 has 1 cell, and there are 2 columns.")
    assert parse_rows(b"{}\nx", NDJSON) == file_error("Line 2 is not JSON.")


def test_a_huge_number_or_a_deep_row_is_no_crash() -> None:
    huge = b'{"email":"a@example.com","amount":' + b"9" * 1_000_000 + b"}"
    too_large = {"allocations.0.amount": ["The allocations.0.amount may not be greater than 100000000."]}
    assert parse_rows(huge, NDJSON) == too_large
    assert parse_rows(b'{"allocations":[' + huge + b"]}", JSON) == too_large
    for amount in (b"1e999999999999999999", b"1.5e400", b"1e21"):
        no_integer = {
            name: ["The allocations.0.amount must be an integer.", *texts] for name, texts in too_large.items()
        }
        assert parse_rows(b'{"email":"a@example.com","amount":' + amount + b"}", NDJSON) == no_integer
    for depth in (100, 500, 900, 1_100, 50_000):
        deep = b'{"email":"a@example.com","amount":1,"x":' + b"[" * depth + b"]" * depth + b"}"
        unknown = {"allocations.0.x": ["The allocations.0.x field is not known."]}
        assert parse_rows(deep, NDJSON) in (unknown, file_error("Line 1 is not JSON."))
        assert parse_rows(b'{"allocations":[' + deep + b"]}", JSON) in (unknown, NotAnObject())


@pytest.mark.parametrize(
    ("pairs", "is_refused"),
    [
        (["12,50"], True),
        (["12,50", "7,25", "1000,00"], True),
        (["12,50", "7,5"], True),
        (["12,50", "7,255"], False),
        (["12,50", "7,"], False),
        (["12,5"], False),
        (["100,1", "100,2", "100,3"], False),
        (["100,10", "100,11"], False),
    ],
)
def test_a_comma_that_cuts_every_amount_in_two_is_refused(pairs: list[str], is_refused: bool) -> None:
    parsed = parse_csv("email,amount,reference", *(f"{EMAIL},{pair}" for pair in pairs))
    if is_refused:
        assert isinstance(parsed, dict)
        assert "The amounts look like decimal commas: line 2 may mean 12,50 instead of" in parsed["allocations"][0]
    else:
        assert parsed == [
            BatchRow(EMAIL, int(amount), reference or None)
            for amount, _, reference in (p.partition(",") for p in pairs)
        ]


# Properties

# Two digits may be the decimals of an amount that a comma has cut in two: see the test of these.
references = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda text: text == text.strip() != "" and not re.fullmatch("[0-9]{2}", text)
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
    quickly, closely = RowCheck(Unit.CENTS, Mapping()), RowCheck(Unit.CENTS, Mapping())
    for row in rows:
        quickly.add_json(0, row.encode())
        pairs = parse_pairs(row.encode())
        if pairs is None:
            closely.refuse(0, "", Fault(Reason.NOT_AN_OBJECT))
        else:
            closely._add_pairs(0, pairs)
    assert quickly.rows == closely.rows
    assert quickly.mistakes == closely.mistakes


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


@given(st.binary(), st.sampled_from(FORMATS))
@example(b"email,amount\n\0\n", CSV)
@example(b'{"allocations":[{"\\ud800":1}]}', JSON)
def test_no_bytes_raise(body: bytes, written_as: FileFormat) -> None:
    check_shape(parse_rows(body, written_as))


@given(
    good_rows,
    st.sampled_from(FORMATS),
    st.integers(0, 500),
    st.binary(max_size=3) | st.just(b"\0"),
    st.integers(0, 9),
)
def test_no_damaged_file_raises(
    rows: list[BatchRow], written_as: FileFormat, position: int, inserted: bytes, removed: int
) -> None:
    body = {
        JSON: write_json(documents_of(rows)),
        NDJSON: write_ndjson(documents_of(rows)),
        CSV: write_csv(rows),
    }[written_as]
    check_shape(parse_rows(body[:position] + inserted + body[position + removed :], written_as))


# The doors agree

cells = st.sampled_from(
    [
        "",
        " ",
        "a@example.com",
        "'+n@example.com",
        "x",
        "1",
        "007",
        "100.0",
        "1,5",
        '"1,234.56"',
        "-1",
        "NA",
        "'=1",
        "12",
    ]
)
headers = st.sampled_from(
    ["email,amount", "email,amount,reference", "amount;email", "email,amount,", "email,name,amount"]
)
tables = st.builds(
    lambda header, rows, end: end.join([header, *(("," if "," in header else ";").join(row) for row in rows)]),
    headers,
    st.lists(st.lists(cells, min_size=2, max_size=3), max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
)


@given(tables.map(str.encode), st.just(CSV))
def test_push_and_a_call_pay_the_same_rows_of_the_same_table_or_none(body: bytes, written_as: FileFormat) -> None:
    called = parse_rows(body, written_as)
    read = read_payments(body, Options())
    if isinstance(called, list):
        assert (read.rows, read.mistakes) == (called, [])
    else:
        assert read.mistakes


@given(st.lists(row_literals, min_size=1, max_size=5))
def test_push_and_a_call_pay_the_same_rows_of_ndjson_or_none(rows: list[str]) -> None:
    body = "\n".join(rows).encode()
    called = parse_rows(body, NDJSON)
    read = read_payments(body, Options())
    if isinstance(called, list):
        assert (read.rows, read.mistakes) == (called, [])
    elif body.lstrip().startswith(b"{"):
        assert read.mistakes


@given(st.binary() | tables.map(str.encode), st.sampled_from(Unit), st.sampled_from(Door))
@example(b"\x1f\x8b\x08", Unit.CENTS, Door.PUSH)
@example(b"PK\x03\x04", Unit.CENTS, Door.DASHBOARD)
@example(b"[" * 10_000, Unit.CENTS, Door.PUSH)
@example(b'[{"email":"a@example.com","amount":1,"amount":{"amount":[]}}]', Unit.DOLLARS, Door.PUSH)
@example(b"sep=", Unit.DOLLARS, Door.PUSH)
def test_whatever_a_file_is_it_is_read_or_refused_in_words(body: bytes, unit: Unit, door: Door) -> None:
    reading = read_payments(body, Options(unit=unit))
    texts = write_mistakes(reading, door)
    assert bool(texts) == bool(reading.mistakes)
    assert reading.mistakes or reading.rows or reading.paid_before
    for text in texts:
        assert text.endswith(".")
        assert "{" not in text or b"{" in body
