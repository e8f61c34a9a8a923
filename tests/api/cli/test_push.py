"""`payouts push`: files good and bad, and pushes to a running server, some through a proxy that breaks calls."""

import csv
import json
import os
import pty
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from api.batches.files import PushFile, PushLimits, PushRow, read_file, split
from api.batches.reader.amounts import Unit
from api.batches.reader.options import Options
from api.cli.main import main
from api.cli.push import run_push
from api.cli.push_server import RESULT_COLUMNS
from core.batches import payment, payout_batch, reading
from core.credentials import payout_hash
from core.errors import UserError
from core.parties import businesses
from tests.polling import wait_until
from tests.servers import HASH_SECRET, Account, System, open_account, verify_books

PAYOUTS = str(Path(sys.executable).with_name("payouts"))
NOWHERE = "http://127.0.0.1:1"
KEY = "sk_live_" + "k" * 40
CENTS, DOLLARS = Options(), Options(unit=Unit.DOLLARS)
FAST = PushLimits(rows_max=3, poll_s=0.02, patience_s=0.3)
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background are started without
from pathlib import Path
from api.cli.push import run_push
from api.batches.files import PushLimits
from core.errors import UserError
try:
    run_push(Path(sys.argv[1]), sys.argv[2], sys.argv[3],
        limits=PushLimits(rows_max=3, poll_s=0.02, idle_notice_s=0.1))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@dataclass
class Result:
    exit_code: int
    stdout: str
    stderr: str

    def assert_refused(self, *texts: str) -> None:
        """Exit code 1, and one line that says why."""
        assert self.exit_code == 1, self
        (line,) = self.stderr.splitlines()
        assert all(text in line for text in texts), self


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PAYOUTS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `payouts push` in this process, whose standard input is no terminal."""

    def run_main(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["payouts", "push", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code is None or isinstance(ended.value.code, int)
        return Result(ended.value.code or 0, *capsys.readouterr())

    return run_main


@pytest.fixture
def push(system: System, account: Account, capsys: pytest.CaptureFixture[str]) -> Run:
    """Push to the running server with small limits, as the command would."""

    def run(path: Path, url: str = system.base_url, key: str = account.secret_key, **options: Any) -> Result:
        capsys.readouterr()
        error, exit_code = "", 0
        try:
            exit_code = run_push(path, url, key, **{"limits": FAST} | options)
        except UserError as raised:
            error, exit_code = str(raised), raised.exit_code
        except SystemExit as raised:
            exit_code = raised.code if isinstance(raised.code, int) else 0
        out, err = capsys.readouterr()
        return Result(exit_code, out, err + error)

    return run


def write(directory: Path, content: str | bytes, name: str = "payouts.csv") -> Path:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_rows(directory: Path, count: int, cents: int = 100, name: str = "payouts.csv") -> Path:
    rows = "".join(f"user{number}@example.com,{cents},ref-{number}\n" for number in range(count))
    return write(directory, "email,amount,reference\n" + rows, name)


def batches_of(system: System, account: Account) -> list[payout_batch.PayoutBatch]:
    """Return a business's batches, newest first."""
    with system.database.transaction() as connection:
        return reading.list_batches(connection, account.business.id, limit=100)


def read_results(path: Path) -> list[dict[str, str]]:
    with path.with_name(f"{path.name}.results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def outcomes(path: Path) -> list[str]:
    return [row["outcome"] for row in read_results(path)]


def fund(system: System, account: Account, cents: int) -> None:
    with system.database.transaction() as connection:
        businesses.fund_business(connection, account.business.id, cents)


# Files


def rows_of(path: Path, *, in_dollars: bool = False) -> list[tuple[str, int, str | None]]:
    return [(row.email, row.amount, row.reference) for row in read_file(path, DOLLARS if in_dollars else CENTS).rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "email,amount\nann@example.com,100\nbob@example.com,200\n"),
        ("a.CSV", "email,amount\nann@example.com,100\nbob@example.com,200"),
        ("a.txt", "email,amount\nann@example.com,100\nbob@example.com,200\n"),
        ("a.csv", "\ufeff Email , AMOUNT \r\n ANN@Example.com , 100 \r\nbob@example.com,200\r\n"),
        ("a.csv", "\n\namount,email\n\n0100,ann@example.com\n  \n200,bob@example.com\n\n"),
        ("a.csv", 'email,amount,reference\n"ann@example.com","100",""\nbob@example.com,200,  \n'),
        ("a.csv", '\ufeff"email","amount"\n"ann@example.com","100"\n"bob@example.com","200"\n'),
        ("a.ndjson", '{"email":"ann@example.com","amount":100}\n{"email":"bob@example.com","amount":200}\n'),
        ("a.jsonl", '\ufeff{"email":"ann@example.com","amount":100}\r\n\r\n{"amount":200,"email":"bob@example.com"}'),
        ("a", '\ufeff \n{"email":"ann@example.com","amount":100}\n{"email":"bob@example.com","amount":200}'),
        ("a.csv", '[{"email":"ann@example.com","amount":100},\n{"email":"bob@example.com","amount":200}]'),
        ("a.json",
            '{"allocations": [{"email":"ann@example.com","amount":100}, {"email":"bob@example.com","amount":200}]}'),
        ("a.NDJSON",
            '{"email":"ann@example.com","amount":100,"reference":null}\n{"email":"bob@example.com","amount":200}'),
        ("a.csv", "email;amount\r\nann@example.com;100\r\nbob@example.com;200\r\n"),
        ("a.csv", '"email"\t"amount"\r"ann@example.com"\t"100"\r"bob@example.com"\t"200"\r'),
        ("a.tsv", "sep=\t\nemail\tamount\nann@example.com\t100\nbob@example.com\t200\n\t\n"),
        ("a.json",
            '{"email":"ann@example.com","amount":100}\n{"email":"bob@example.com","amount":200,"reference":" "}'),
    ],
)  # fmt: skip
def test_file_is_read_however_it_is_written(tmp_path: Path, name: str, content: str) -> None:
    expected = [("ann@example.com", 100, None), ("bob@example.com", 200, None)]
    assert rows_of(write(tmp_path, content, name)) == expected


def test_file_may_be_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_text, args=('{"email":"ann@example.com","amount":1}\n',))
    writer.start()
    assert rows_of(pipe) == [("ann@example.com", 1, None)]
    writer.join()


def test_reference_is_taken_as_it_is_but_for_white_space_around_it(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'email,reference,amount\na@example.com," Doe, Jane ""JD"" é",1\n"a@example.com","","\n1"\n\n'
        "a@example.com,x  y ,1\n",
    )
    assert [row[2] for row in rows_of(path)] == ['Doe, Jane "JD" é', None, "x  y"]
    assert read_file(path, CENTS).lines == [2, 3, 6]


@pytest.mark.parametrize(
    ("text", "cents"),
    [("10.50", 1050), ("10.5", 1050), ("10", 1000), ("10.", 1000), (".01", 1), ("0.29", 29), ("1.15", 115),
        ("999999.99", 99_999_999), ("1000000.00", 100_000_000), ("+8.20", 820), (" 0010.07 ", 1007)],
)  # fmt: skip
def test_dollars_become_cents_exactly(tmp_path: Path, text: str, cents: int) -> None:
    ((_, amount, _),) = rows_of(write(tmp_path, f"email,amount\na@example.com,{text}\n"), in_dollars=True)
    assert amount == cents
    json_text = text.strip().lstrip("+0").rstrip(".")
    if not json_text.startswith("."):
        content = f'{{"email":"a@example.com","amount":{json_text}}}'
        ((_, amount, _),) = rows_of(write(tmp_path, content, "a.ndjson"), in_dollars=True)
        assert amount == cents


CSV_MISTAKES: list[tuple[str | bytes, str]] = [
    ("", "The file is empty"),
    ("\n \n", "The file is empty"),
    ("\ufeff", "The file is empty"),
    ("email,amount\n", "The file has no rows"),
    ("email,amount\n\n\n", "The file has no rows"),
    ("email\na@example.com\n", "Line 1 does not name the column amount; it names 'email'."),
    ("amount,reference\n1,x\n", "Line 1 does not name the column email; it names"),
    ("\nemail,amount,note\n", "Line 2 names an unknown column, 'note'"),
    ("a@example.com,100\nb@example.com,100\n", "Line 1 names no columns: it has an e-mail address."),
    ("email,amount,Email\n", "Line 1 names the column email twice."),
    ("email|amount\na@example.com|1\n", "Line 1 separates columns by bars; use commas, semicolons or tabs."),
    (b"email,amount\na@example.com,1\n\xff@example.com,1\n",
        "Line 3 is not valid UTF-8; it is probably Windows-1252. Save"),
    ("email,amount\na@example.com,1\n".encode("utf-16-be"), "it is probably UTF-16. Save"),
    ('email,amount\na@example.com,1\n"b@example.com,1\nc@example.com,1\n', "Line 3 is not CSV: "),
    ("email,amount\na@example.com,1\nb@example.com,1,x\n", "Line 3 has 3 cells, and there are 2 columns."),
    ("email,amount,reference\na@example.com,1,\n,,x\n", "Line 3: the email is missing; the amount is missing."),
    ("email,amount\na@example.com,0\n", "Line 2: the amount '0' is not from 1 to 100000000 cents."),
    ("email,amount\na@example.com,-5\n", "Line 2: the amount '-5' is not from 1 to 100000000 cents."),
    ("email,amount\na@example.com,100000001\n", "Line 2: the amount '100000001' is not from 1 to"),
    (f"email,amount\na@example.com,{'9' * 5000}\n", "Line 2: the amount '9999"),
    ("email,amount\n\na@example.com,10.50\n",
        "Line 3: the amount '10.50' is not whole cents, written without a point: in cents $10.50 is 1050; if"),
    ("email,amount\na@example.com,10.0\n",
        "if these are cents, write 10; if these are dollars ($10.00), use --decimal."),
    ("email,amount\na@example.com,$10\n",
        "if these are cents, write 10; if these are dollars ($10.00), use --decimal and write 10: a point"),
    ("email,amount\na@example.com,1e3\n", "Line 2: the amount '1e3' has an exponent: write it out: 1000."),
    ('email,amount\na@example.com,"1,000"\n', "Line 2: the amount '1,000' has more than two decimals, or is 1000 with"),
    ("email,amount\na@example.com,١٢\n", "write it with the digits 0 to 9 alone."),
    ("email,amount\na@example.com,+5\n", "Line 2: the amount '+5' is not a number: write digits alone."),
    ("email,amount\na@example,1\n", "Line 2: 'a@example' is not a valid e-mail address."),
    (f"email,amount,reference\na@example.com,1,{'x' * 256}\n", "Line 2: the reference is longer than 255 characters."),
    ("email,amount,reference\na@example.com,1,x\0y\n",
        "Line 2: the reference has control characters, such as a line end."),
    ('email,reference,amount\na@example.com,"","\n1"\nb@example.com,z,1\nc@example.com,z,1\n',
        "Line 5: the reference 'z' is on lines 4 and 5; a reference pays once."),
]  # fmt: skip
NDJSON_MISTAKES = [
    ("\n", "The file is empty"),
    ('{"email":"a@example.com","amount":1}\n\n{"email"', "Line 3 is not JSON: write one JSON object a line."),
    ('[{"email":"a@example.com","amount":1},\n7]', "Line 2: it is not a JSON object."),
    ('[["email","a@example.com"]]', "Line 1: it is not a JSON object."),
    ('[{"email":"a@example.com","amount":1},\n{"email"]', "Line 2 is not JSON"),
    ('{"email":"a@example.com","amount":1}\n["a@example.com",1]', "Line 2: it is not a JSON object."),
    ('{"email":"a@example.com"}', "Line 1: the amount is missing."),
    ('{"amount":1}', "Line 1: the email is missing."),
    (
        '{"email":"a@example.com","amount":1,"refrence":"x"}',
        "Line 1: the field 'refrence' is unknown; the fields are email, amount and reference, in lower",
    ),
    ('{"email":"a@example.com","amount":1,"amount":2}', "Line 1: it names the field amount twice."),
    ('{"email":"a@example.com","amount":1,"Amount":2}', "Line 1: the field 'Amount' is unknown"),
    (
        '{"email":"a@example.com","amount":1.0}',
        "written without a point: if these are cents, write 1; if these are dollars",
    ),
    (
        '{"email":"a@example.com","amount":"1"}',
        "Line 1: the amount '1' is text: it must be an integer, without quotes.",
    ),
    ('{"email":"a@example.com","amount":1e3}', "Line 1: the amount '1e3' has an exponent: write it out: 1000."),
    ('{"email":"a@example.com","amount":true}', "Line 1: the amount 'true' is not a number"),
    ('{"email":"a@example.com","amount":NaN}', "Line 1 is not JSON"),
    ('{"email":["a@example.com"],"amount":1}', "Line 1: 'an array or an object' is not a valid e-mail address."),
    ('{"email":"\\ud800@example.com","amount":1}', "Line 1 is not JSON"),
    ('{"email":"a@example.com","amount":1,"reference":"\\ud800"}', "Line 1 is not JSON"),
    (
        '{"email":"a@example.com","amount":1,"reference":{}}',
        "Line 1: the reference 'an array or an object' is not text",
    ),
    ("[" * 100_000, "Line 1 is not JSON"),
]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [("a.csv", *each) for each in CSV_MISTAKES] + [("a.ndjson", *each) for each in NDJSON_MISTAKES],
)
def test_mistake_is_named_with_its_line_and_nothing_is_sent(
    command: Run, tmp_path: Path, name: str, content: str | bytes, text: str
) -> None:
    refused = command(write(tmp_path, content, name), "--key", KEY, "--url", NOWHERE)
    assert (refused.exit_code, refused.stdout) == (1, "")
    mistake, end = refused.stderr.splitlines()
    assert mistake.startswith("Error: ")
    assert text in mistake
    assert len(mistake) < 300
    assert end == "Error: Nothing was sent."


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("1.005", "more than two decimals"),
        ("1.000", "more than two decimals"),
        ("0.00", "not from 0.01 to 1000000.00"),
        ("1000000.01", "not from 0.01 to 1000000.00"),
        ("10,50", "has a decimal comma: write 10.50: a point, no thousands separators, no currency."),
        ("1,234.56", "has thousands separators: write 1234.56: a point, no thousands separators, no currency."),
        ("1.2.3", "not a number"),
        ("-1.00", "is negative"),
        ("$1", "has a currency"),
        ("1e3", "write it out: 1000"),
    ],
)
def test_wrong_amount_in_dollars_is_named_with_its_line(command: Run, tmp_path: Path, amount: str, text: str) -> None:
    path = write(tmp_path, f'email,amount\na@example.com,1\na@example.com,"{amount}"\n')
    refused = command(path, "--key", KEY, "--url", NOWHERE, "--decimal")
    assert refused.exit_code == 1
    assert f"Line 3: the amount {amount!r} " in refused.stderr
    assert text in refused.stderr


def test_twenty_mistakes_are_shown_and_the_others_counted(command: Run, tmp_path: Path) -> None:
    rows = "".join(f"a@example.com,{number % 2}\n" for number in range(46))
    lines = command(write(tmp_path, "email,amount\n" + rows), "--key", KEY, "--url", NOWHERE).stderr.splitlines()
    assert [line.split(":")[1] for line in lines[:20]] == [f" Line {2 + 2 * number}" for number in range(20)]
    assert lines[20:] == ["Error: and 3 more", "Error: Nothing was sent."]


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_file_that_cannot_be_read_is_one_line(command: Run, tmp_path: Path, name: str) -> None:
    command(tmp_path / name, "--key", KEY, "--url", NOWHERE).assert_refused("cannot be read: ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--email-column", "Mail"], "Line 1 names no column 'Mail'; it names 'email', 'amount', 'note'."),
        (["--reference-column", "reference"], "Line 1 names no column 'reference'; it names"),
        (["--ignore-columns", "note,foo"], "Line 1 names no column 'foo'; it names"),
        (
            ["--reference-column", "email", "--ignore-columns", "note"],
            "The column 'email' cannot be two things at once.",
        ),
        (["--ignore-columns", "note", "--expect", "1.01"], "The rows come to $1.00, and --expect says $1.01."),
        (["--ignore-columns", "note", "--expect", "1,00"], "--expect must be dollars, such as 1404.78."),
        (["--ignore-columns", "note", "--expect", "100"], "The rows come to $1.00, and --expect says $100.00."),
    ],
)
def test_option_that_does_not_fit_the_file_sends_nothing(
    command: Run, tmp_path: Path, arguments: list[str], text: str
) -> None:
    path = write(tmp_path, "email,amount,note\na@example.com,100,x\n")
    refused = command(path, "--key", KEY, "--url", NOWHERE, *arguments)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert text in refused.stderr
    assert "Nothing was sent." in refused.stderr


def test_expected_sum_is_sent(system: System, account: Account, command: Run, tmp_path: Path) -> None:
    path = write(tmp_path, "email,amount\na@example.com,100\nb@example.com,140378\n")
    done = command(path, "--key", account.secret_key, "--url", system.base_url, "--expect", "1404.78")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Amounts are read as cents: the smallest is $1.00, the largest $1,403.78." in done.stdout
    assert system.read_paid(account) == (2, 140_478)


# Parts


def make_rows(count: int) -> list[PushRow]:
    return [PushRow(f"user{number}@example.com", 100 + number, f"ref-{number}") for number in range(count)]


def bounds(rows: list[PushRow], **limits: int) -> list[tuple[int, int]]:
    return [(part.first, part.end) for part in split(rows, PushLimits(**limits))]


def test_rows_are_shared_out_by_number_and_by_size() -> None:
    rows = make_rows(7)
    size_bytes = len(json.dumps({"email": rows[0].email, "amount": 100, "reference": "ref-0"}, separators=(",", ":")))
    assert bounds(rows, rows_max=7) == [(0, 7)]
    assert bounds(rows, rows_max=3) == [(0, 3), (3, 6), (6, 7)]
    assert bounds(rows, body_max_bytes=2 * (size_bytes + 1)) == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert bounds(rows, body_max_bytes=2 * (size_bytes + 1) - 1) == [(index, index + 1) for index in range(7)]


def test_keys_are_made_of_the_rows_alone(tmp_path: Path) -> None:
    one = write(tmp_path, "email,amount\na@example.com,100\nb@example.com,200\n")
    same = write(tmp_path, '{"email":"A@Example.com","amount":1}\n{"email":"b@example.com","amount":2.00}', "a.ndjson")
    other = write(tmp_path, "email,amount\nb@example.com,200\na@example.com,100\n", "other.csv")
    files: list[PushFile] = [read_file(one, CENTS), read_file(same, DOLLARS)]
    files.append(read_file(other, CENTS))
    first, again, reordered = ([part.idempotency_key for part in split(file.rows, FAST)] for file in files)
    assert first == again != reordered
    keys = [part.idempotency_key for part in split(files[0].rows, PushLimits(rows_max=1))]
    assert len({*keys, *first}) == 3


# Pushing


def test_push_pays_every_row_and_writes_the_results(
    system: System, account: Account, push: Run, tmp_path: Path
) -> None:
    content = (
        'email,amount,reference\nann@example.com,100,"a, ""b"" é"\n\nBOB@Example.com,250,\nann@example.com,5,=1+1\n'
    )
    path = write(tmp_path, content)
    done = push(path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "payouts.csv: 3 rows for 2 payout users, $3.55 in 1 batch" in done.stdout
    assert "Payout balance: $10,000.00 now, $9,996.45 after" in done.stdout
    assert f"3 of 3 rows allocated. Results: {path}.results.csv" in done.stdout
    assert "3 of 3 rows, " in done.stdout
    assert "\x1b" not in done.stdout
    rows = read_results(path)
    hashes = {email: payout_hash(HASH_SECRET.encode(), account.business.id, email) for email in
        ("ann@example.com", "bob@example.com")}  # fmt: skip
    assert [list(row) for row in rows] == [RESULT_COLUMNS] * 3
    assert [list(row.values())[:-1] for row in rows] == [
        ["0", "ann@example.com", "100", "1.00", 'a, "b" é', "allocated", hashes["ann@example.com"]],
        ["1", "bob@example.com", "250", "2.50", "", "allocated", hashes["bob@example.com"]],
        ["2", "ann@example.com", "5", "0.05", "'=1+1", "allocated", hashes["ann@example.com"]],
    ]
    assert len({row["transaction"] for row in rows}) == 3
    results = tmp_path / "payouts.csv.results.csv"
    assert sorted(tmp_path.iterdir()) == [path, results]
    assert stat.S_IMODE(results.stat().st_mode) == 0o600
    assert system.read_paid(account) == (3, 355)
    assert verify_books(system.database).balanced


def test_command_takes_key_and_url_from_its_environment(
    system: System, account: Account, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYOUTS_KEY", account.secret_key)
    monkeypatch.setenv("PAYOUTS_URL", system.base_url)
    done = command(write(tmp_path, "email,amount\na@example.com,10.50\n"), "--decimal")
    assert (done.exit_code, done.stderr) == (0, "")
    assert system.read_paid(account) == (1, 1050)
    assert account.secret_key not in done.stdout


def test_several_batches_are_numbered_through(system: System, account: Account, push: Run, tmp_path: Path) -> None:
    path = write_rows(tmp_path, 8)
    done = push(path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "$8.00 in 3 batches" in done.stdout
    assert "Batch 3 of 3 (lines 8 to 9) is accepted" in done.stdout
    rows = read_results(path)
    assert [row["row"] for row in rows] == [str(number) for number in range(8)]
    assert [row["reference"] for row in rows] == [f"ref-{number}" for number in range(8)]
    assert [batch.total for batch in batches_of(system, account)] == [2, 3, 3]
    assert system.read_paid(account) == (8, 800)


def test_dry_run_shows_and_sends_nothing(system: System, account: Account, command: Run, tmp_path: Path) -> None:
    path = write_rows(tmp_path, 2)
    done = command(path, "--key", account.secret_key, "--url", system.base_url, "--dry-run")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "2 rows for 2 payout users, $2.00 in 1 batch" in done.stdout
    assert "$10,000.00 now, $9,998.00 after" in done.stdout
    assert "nothing was sent" in done.stdout
    assert batches_of(system, account) == []
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("options", [{}, {"is_dry_run": True}])
def test_balance_that_does_not_suffice_sends_nothing(
    system: System, account: Account, push: Run, tmp_path: Path, options: dict[str, bool]
) -> None:
    refused = push(write_rows(tmp_path, 6, 200_000), **options)
    refused.assert_refused("$10,000.00, which is $2,000.00 too little", "Nothing was sent.")
    assert batches_of(system, account) == []


def test_pushing_again_pays_once_even_with_nothing_left(system: System, push: Run, tmp_path: Path) -> None:
    account = open_account(system.database, funds_cents=800)
    path = write_rows(tmp_path, 8)
    assert push(path, key=account.secret_key).exit_code == 0
    before = (tmp_path / "payouts.csv.results.csv").read_bytes()
    again = push(path, key=account.secret_key)
    assert (again.exit_code, again.stderr) == (3, "")
    assert "Nothing new to pay: every row was paid before." in again.stdout
    assert again.stdout.count("was accepted by an earlier run: bat_") == 3
    assert again.stdout.count("was accepted by an earlier run, and is not paid again") == 3
    assert (tmp_path / "payouts.csv.results.csv").read_bytes() == before
    assert system.read_paid(account) == (8, 800)
    other = write_rows(tmp_path, 8, 101, "other.csv")
    other.write_text(other.read_text().replace("ref-", "other-"))
    push(other, key=account.secret_key).assert_refused("$0.00, which is $8.08 too little")


def test_disabled_payouts_are_one_line(system: System, push: Run, tmp_path: Path) -> None:
    account = open_account(system.database, payouts_enabled=False)
    refused = push(write_rows(tmp_path, 2), key=account.secret_key)
    refused.assert_refused("Payouts are currently disabled", "in Settings. Nothing was sent.")
    assert batches_of(system, account) == []


@contextmanager
def disable_on_acceptance(system: System, account: Account) -> Iterator[None]:
    """Have payouts disabled by the transaction that accepts a batch."""
    with system.database.transaction() as connection:
        connection.execute(sa.text(
            "CREATE FUNCTION disable_payouts() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "UPDATE businesses SET payouts_enabled = false WHERE id = NEW.business_id; RETURN NEW; END $$"
        ))  # fmt: skip
        connection.execute(sa.text(
            "CREATE TRIGGER disable_payouts AFTER INSERT ON payout_batches FOR EACH ROW "
            f"WHEN (NEW.business_id = '{account.business.id}') EXECUTE FUNCTION disable_payouts()"
        ))  # fmt: skip
    try:
        yield
    finally:
        with system.database.transaction() as connection:
            connection.execute(sa.text("DROP FUNCTION disable_payouts CASCADE"))


@contextmanager
def start(path: Path, url: str, account: Account) -> Iterator[subprocess.Popen[str]]:
    """Run a push as a process of its own, which Ctrl-C reaches."""
    with subprocess.Popen(
        [sys.executable, "-u", "-c", INTERRUPTIBLE, str(path), url, account.secret_key],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.stderr.read() if process.stderr else "")


def test_batch_that_waits_and_is_cancelled_is_told(system: System, account: Account, push: Run, tmp_path: Path) -> None:
    path = write_rows(tmp_path, 2)
    with disable_on_acceptance(system, account), start(path, system.base_url, account) as process:
        read_until(process, "Perhaps payouts are disabled")
        (batch,) = batches_of(system, account)
        with system.database.transaction() as connection:
            payment.cancel(connection, account.business.id, batch.id)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 4
    (line,) = error.splitlines()
    assert "2 rows of 2 not paid: cancelled: Batch 1 of 1 (lines 2 to 3) (bat_" in line
    assert [(row["outcome"], row["hash"], row["transaction"]) for row in read_results(path)] == [
        ("cancelled", "", ""),
        ("cancelled", "", ""),
    ]
    assert system.read_paid(account) == (0, 0)
    with system.database.transaction() as connection:
        businesses.set_payouts_enabled(connection, account.business.id, enabled=True)
    assert push(path).exit_code == 0
    assert system.read_paid(account) == (2, 200)


# Behind a proxy that breaks calls


class Proxy(ThreadingHTTPServer):
    """Stands before the real server, and breaks the first POSTs and the first GETs of results as their lists say.

    A number is a status to answer with in place of a call; `drop` and `lose` close the connection before or after the
    call; `cut` sends half of the answer; `hold` sends none until the end; None lets the call by.
    """

    def __init__(self, target: str, posts: list[int | str | None], results: list[int | str | None]) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.client = httpx.Client(base_url=target, timeout=30)
        self.posts, self.results = posts, results
        self.keys: list[str] = []
        self.is_holding, self.end = Event(), Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self._handle(self.server.results if "/results" in self.path else [])

    def do_POST(self) -> None:
        if self.path.endswith("/preview"):
            self._handle([])
            return
        self.server.keys.append(self.headers["Idempotency-Key"])
        self._handle(self.server.posts)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base's)
        """Say nothing."""

    def _handle(self, breakages: list[int | str | None]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        breakage = breakages.pop(0) if breakages else None
        if isinstance(breakage, int):
            self._answer(breakage, {"Retry-After": "0"}, json.dumps({"error": self.headers["Authorization"]}).encode())
        elif breakage != "drop":
            sent = {name: self.headers[name] for name in ("Authorization", "Idempotency-Key", "Content-Type", "Accept")
                if name in self.headers}  # fmt: skip
            real = self.server.client.request(self.command, self.path, content=body, headers=sent)
            if breakage == "hold":
                self.server.is_holding.set()
                self.server.end.wait(60)
            elif breakage != "lose":
                kept = {name: value for name, value in real.headers.items() if name.startswith("idempotent")}
                self._answer(real.status_code, kept, real.content, cut=breakage == "cut")

    def _answer(self, status_code: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response(status_code)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)


@contextmanager
def run_proxy(system: System, *posts: int | str | None, results: tuple[int | str | None, ...] = ()) -> Iterator[Proxy]:
    with Proxy(system.base_url, list(posts), list(results)) as proxy, proxy.client:
        thread = Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.end.set()
            proxy.shutdown()
            thread.join()


@pytest.mark.parametrize("breakage", ["drop", "lose", "cut", 429, 503])
def test_call_that_breaks_pays_once(
    system: System, account: Account, push: Run, tmp_path: Path, breakage: int | str
) -> None:
    path = write_rows(tmp_path, 4)
    with run_proxy(system, breakage, None, breakage, results=(None, breakage)) as proxy:
        done = push(path, proxy.url, limits=PushLimits(rows_max=3, poll_s=0.02))
        assert (proxy.posts, proxy.results) == ([], [])
    assert (done.exit_code, done.stderr) == (0, "")
    assert [proxy.keys[0] == proxy.keys[1], proxy.keys[2] == proxy.keys[3], len(set(proxy.keys))] == [True, True, 2]
    assert [row["row"] for row in read_results(path)] == ["0", "1", "2", "3"]
    assert system.read_paid(account) == (4, 400)
    assert account.secret_key not in done.stdout


def test_killed_push_is_run_again_and_pays_once(system: System, account: Account, push: Run, tmp_path: Path) -> None:
    path = write_rows(tmp_path, 4)
    with run_proxy(system, None, "hold") as proxy, start(path, proxy.url, account) as process:
        assert proxy.is_holding.wait(30)
        process.kill()
    done = push(path)
    assert (done.exit_code in {0, 3}, done.stderr) == (True, "")  # 3 where all was paid by then
    assert done.stdout.count("is not paid again: bat_") == 2
    assert outcomes(path) == ["allocated"] * 4
    assert system.read_paid(account) == (4, 400)


def test_interrupted_push_says_how_to_go_on_and_pays_once(
    system: System, account: Account, push: Run, tmp_path: Path
) -> None:
    path = write_rows(tmp_path, 4)
    with run_proxy(system, "hold") as proxy, start(path, proxy.url, account) as process:
        assert proxy.is_holding.wait(30)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Run the same command with the same, unchanged file to go on: nothing is paid twice." in error
    assert "Traceback" not in error
    assert account.secret_key not in output + error
    done = push(path)
    assert done.exit_code == 0
    assert done.stdout.count("is not paid again: bat_") == 1
    assert system.read_paid(account) == (4, 400)


def test_push_that_lost_its_money_halfway_goes_on_after_a_top_up(system: System, push: Run, tmp_path: Path) -> None:
    account = open_account(system.database, funds_cents=600)
    path = write_rows(tmp_path, 6)
    with run_proxy(system, None, *["drop"] * 99) as proxy:
        push(path, proxy.url, account.secret_key).assert_refused(
            "Gave up after 0.3 s: no answer", "Run the same command"
        )
    with system.client() as client:
        assert system.pay(client, account, "else@example.com", 100).status_code == 201
    refused = push(path, key=account.secret_key)
    refused.assert_refused("The payout balance is $2.00, which is $1.00 too little. Nothing was sent.")
    assert "Batch 1 of 2 (lines 2 to 4) was accepted by an earlier run: bat_" in refused.stdout
    fund(system, account, 100)
    assert push(path, key=account.secret_key).exit_code == 0
    assert outcomes(path) == ["allocated"] * 6
    assert system.read_paid(account) == (7, 700)
    assert verify_books(system.database).balanced


def test_server_that_refuses_rows_names_the_lines_of_the_file(system: System, push: Run, tmp_path: Path) -> None:
    class Stricter(_ProxyHandler):
        def do_POST(self) -> None:
            if self.path.endswith("/preview"):
                self._handle([])
                return
            self.rfile.read(int(self.headers["Content-Length"]))
            texts = ["The allocations.1.email must be a valid email address."]
            errors = {"allocations.1.email": texts, "allocations": ["Too odd."]}
            self._answer(400, {}, json.dumps(errors).encode())

    path = write_rows(tmp_path, 3)
    with run_proxy(system) as proxy:
        proxy.RequestHandlerClass = Stricter
        refused = push(path, proxy.url)
    assert refused.exit_code == 1
    assert refused.stderr.splitlines() == [
        "Line 3: The email must be a valid email address.",
        "Batch 1 of 1 (lines 2 to 4): Too odd.",
    ]


# Errors before anything is sent


def test_server_that_is_not_there_is_one_line(push: Run, tmp_path: Path) -> None:
    refused = push(write_rows(tmp_path, 1), NOWHERE)
    refused.assert_refused("no answer from http://127.0.0.1:1 (ConnectError)", "Nothing was sent.")


@pytest.mark.parametrize("key", ["sk_live_" + "A" * 40, "pk_live_" + "A" * 40])
def test_key_that_is_refused_is_one_line(push: Run, tmp_path: Path, key: str) -> None:
    refused = push(write_rows(tmp_path, 1), key=key)
    refused.assert_refused("Unauthorized", "Nothing was sent.")
    assert key not in refused.stdout + refused.stderr


@pytest.mark.parametrize("key", ["", "sk_live_secret\n", "sk_live_secret é", "sk live_secret"])
def test_malformed_key_is_refused_without_being_shown(command: Run, tmp_path: Path, key: str) -> None:
    refused = command(write_rows(tmp_path, 1), "--key", key, "--url", NOWHERE)
    refused.assert_refused("--key must be an API key")
    assert "secret" not in refused.stderr


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host", "http://", "http://u:p@host", "http://a:b", "http://a:0", "http://a:65536"],
)
def test_malformed_url_is_one_line(command: Run, tmp_path: Path, url: str) -> None:
    command(write_rows(tmp_path, 1), "--key", KEY, "--url", url).assert_refused("--url must be that of a server")


def test_missing_key_is_wrong_usage(command: Run, tmp_path: Path) -> None:
    refused = command(write_rows(tmp_path, 1))
    assert refused.exit_code == 2
    assert "--key" in refused.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_directory_that_cannot_be_written_sends_nothing(push: Run, tmp_path: Path) -> None:
    path = write_rows(tmp_path, 1)
    tmp_path.chmod(0o500)
    push(path).assert_refused("The results could not be written", "Nothing was sent.")


def test_results_that_cannot_be_written_are_told_after_paying(
    system: System, account: Account, push: Run, tmp_path: Path
) -> None:
    path = write_rows(tmp_path, 1)
    (tmp_path / "payouts.csv.results.csv").mkdir()
    push(path).assert_refused("All batches are finished, but the results cannot be written", "Run the same command")
    assert system.read_paid(account) == (1, 100)
    assert len(list(tmp_path.iterdir())) == 2


# On a terminal


def type_at_the_prompt(path: Path, system: System, account: Account, answer: bytes) -> tuple[int, str]:
    """Push on a terminal, answer its question, and return exit code and screen."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"PAYOUTS_KEY": account.secret_key, "PAYOUTS_URL": system.base_url, "TERM": "xterm"}
    arguments = [PAYOUTS, "push", str(path)]
    with subprocess.Popen(
        arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        screen = b""
        is_answered = False
        try:
            while part := os.read(ours, 65536):
                screen += part
                if b"[y/N]" in screen and not is_answered:
                    os.write(ours, answer)
                    is_answered = True
        except OSError:  # the other side is closed
            pass
        os.close(ours)
    return process.returncode, screen.decode()


def test_terminal_asks_and_draws_a_bar(system: System, account: Account, tmp_path: Path) -> None:
    exit_code, screen = type_at_the_prompt(write_rows(tmp_path, 5), system, account, b"y\n")
    assert exit_code == 0, screen
    assert "5 of 5 rows" in screen
    assert "━" in screen
    assert "/s" in screen
    assert "5 of 5 rows allocated. Results: " in screen
    assert account.secret_key not in screen
    assert system.read_paid(account) == (5, 500)


def test_terminal_that_says_no_sends_nothing(system: System, account: Account, tmp_path: Path) -> None:
    exit_code, screen = type_at_the_prompt(write_rows(tmp_path, 5), system, account, b"\n")
    assert exit_code == 1
    assert "Not confirmed; nothing was sent." in screen
    assert batches_of(system, account) == []


# What was paid before


def pay_by_post(system: System, account: Account, rows: list[dict[str, Any]], key: str = "by-post") -> str:
    with system.client() as client:
        headers = account.headers | {"Idempotency-Key": key}
        answer = client.post("/payout/batches", json={"allocations": rows}, headers=headers)
    assert answer.status_code == 202, answer.text
    wait_until(lambda: all(batch.finished_at for batch in batches_of(system, account)))
    return str(answer.json()["id"])


UNNAMED = "email,amount\nann@example.com,100\nbob@example.com,200\n"
UNNAMED_ROWS = [{"email": "ann@example.com", "amount": 100}, {"email": "bob@example.com", "amount": 200}]


def test_yesterdays_file_with_one_line_more_pays_one_line(
    system: System, account: Account, push: Run, tmp_path: Path
) -> None:
    assert push(write_rows(tmp_path, 4)).exit_code == 0
    path = write_rows(tmp_path, 5, name="today.csv")
    done = push(path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "4 of 5 rows already paid" in done.stdout
    assert "To pay now: 1 row, $1.00." in done.stdout
    assert "5 of 5 rows allocated, 4 of them before this file." in done.stdout
    assert outcomes(path) == ["already_paid"] * 4 + ["allocated"]
    assert system.read_paid(account) == (5, 500)
    sorted_otherwise = path.read_text().splitlines(keepends=True)
    path.write_text("".join([sorted_otherwise[0], *sorted_otherwise[:0:-1]]))
    again = push(path)
    assert (again.exit_code, system.read_paid(account)) == (3, (5, 500))
    assert "Nothing new to pay" in again.stdout


def test_a_cancelled_batch_is_finished_by_pushing_its_file_again(
    system: System, account: Account, push: Run, tmp_path: Path
) -> None:
    path = write_rows(tmp_path, 2)
    with disable_on_acceptance(system, account), start(path, system.base_url, account) as process:
        read_until(process, "Perhaps payouts are disabled")
        with system.database.transaction() as connection:
            payment.cancel(connection, account.business.id, batches_of(system, account)[0].id)
        process.communicate(timeout=30)
    assert process.returncode == 4
    with system.database.transaction() as connection:
        businesses.set_payouts_enabled(connection, account.business.id, enabled=True)
    done = push(path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "was cancelled; what it did not pay is paid now." in done.stdout
    assert outcomes(path) == ["allocated"] * 2
    assert system.read_paid(account) == (2, 200)
    assert push(path).exit_code == 3
    assert system.read_paid(account) == (2, 200)


def test_of_a_cancelled_batch_without_references_the_results_pay_the_rest(
    system: System, account: Account, push: Run, tmp_path: Path
) -> None:
    path = write(tmp_path, UNNAMED)
    with disable_on_acceptance(system, account), start(path, system.base_url, account) as process:
        read_until(process, "Perhaps payouts are disabled")
        with system.database.transaction() as connection:
            payment.cancel(connection, account.business.id, batches_of(system, account)[0].id)
        process.communicate(timeout=30)
    with system.database.transaction() as connection:
        businesses.set_payouts_enabled(connection, account.business.id, enabled=True)
    again = push(path)
    assert again.exit_code == 4
    assert f"push the results to pay the rest: {path}.results.csv" in again.stderr
    assert system.read_paid(account) == (0, 0)


def test_a_reference_of_another_payment_is_refused_by_line(
    system: System, account: Account, push: Run, tmp_path: Path
) -> None:
    push(write_rows(tmp_path, 3))
    refused = push(write_rows(tmp_path, 2, 101, "other.csv"))
    assert refused.exit_code == 1
    assert refused.stderr.splitlines() == [
        "Line 2: The reference was already used for another payment.",
        "Line 3: The reference was already used for another payment.",
        "Nothing was sent.",
    ]
    assert system.read_paid(account) == (3, 300)


def test_rows_without_references_that_were_paid_before_need_again(
    system: System, account: Account, push: Run, tmp_path: Path
) -> None:
    batch_id = pay_by_post(system, account, UNNAMED_ROWS)
    path = write(tmp_path, UNNAMED)
    for options in ({}, {"is_confirmed": True}, {"is_dry_run": True}):
        refused = push(path, **options)
        assert refused.exit_code == (0 if "is_dry_run" in options else 1)
        said = refused.stdout
        assert "2 of 2 rows without a reference equal earlier payments." in said
        assert (
            f"The whole file was handed in before: {batches_of(system, account)[0].created_at:%Y-%m-%d %H:%M}" in said
        )
        assert f"through POST /payout/batches by key …{account.secret_key[-4:]}, {batch_id}" in said
        assert "Line 2: paid " in said
        if "is_dry_run" not in options:
            assert "2 rows may be paid a second time. Nothing was sent." in refused.stderr
    assert system.read_paid(account) == (2, 300)
    assert push(path, is_again=True).exit_code == 0
    assert system.read_paid(account) == (4, 600)
    # The same push again is the same payment, with or without the option.
    assert push(path, is_again=True).exit_code == 3
    assert push(path).exit_code == 3
    assert system.read_paid(account) == (4, 600)


def test_some_rows_that_equal_earlier_payments_are_counted(
    system: System, account: Account, push: Run, tmp_path: Path
) -> None:
    with system.client() as client:
        assert system.pay(client, account, "ann@example.com", 100).status_code == 201
    path = write(tmp_path, UNNAMED + "cyd@example.com,300\n")
    refused = push(path)
    assert "1 of 3 rows without a reference equals an earlier payment." in refused.stdout
    assert "UTC through POST /payout/create" in refused.stdout
    assert "The whole file" not in refused.stdout
    refused.assert_refused("1 row may be paid a second time", "--again", "references")


def test_equal_rows_within_a_file_are_named_by_line_and_paid(
    system: System, account: Account, push: Run, tmp_path: Path
) -> None:
    path = write(tmp_path, "email,amount\na@example.com,100\nb@example.com,1\na@example.com,100\na@example.com,100\n")
    done = push(path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Lines 2, 4 and 5 are equal: each is paid." in done.stdout
    assert system.read_paid(account) == (4, 301)


def test_a_terminal_is_asked_about_equal_rows(system: System, account: Account, tmp_path: Path) -> None:
    pay_by_post(system, account, UNNAMED_ROWS)
    exit_code, screen = type_at_the_prompt(write(tmp_path, UNNAMED), system, account, b"n\n")
    assert exit_code == 1
    assert "Pay 2 rows, 2 of them equal to earlier payments?" in screen
    assert system.read_paid(account) == (2, 300)
    exit_code, _ = type_at_the_prompt(write(tmp_path, UNNAMED), system, account, b"y\n")
    assert exit_code == 0
    assert system.read_paid(account) == (4, 600)
