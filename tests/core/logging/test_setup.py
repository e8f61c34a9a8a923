"""Log lines: their shape, what is left out of them, and what a flood of them costs."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa

from core.credentials import email_digest
from core.database.connection import Database
from core.ids import new_id
from core.logging.setup import (
    NAMED_MAX,
    SAME_PER_S_MAX,
    LineFormatter,
    LineWriter,
    Repeats,
    about,
    hide_secrets,
    holds_secret,
    place_of,
)
from core.messages import Allocation
from tests.servers import ROOT

EMAIL = "somebody.private@example.com"
KEY = "sk_live_" + "A1" * 20
JSON = LineFormatter("web", as_json=True)
TEXT = LineFormatter("web", as_json=False)


def make_record(message: str, *args: object, name: str = "core.test", **extra: Any) -> logging.LogRecord:
    record = logging.LogRecord(name, logging.WARNING, "", 0, message, args, extra.pop("exc_info", None))
    record.__dict__.update(extra)
    return record


def raise_and_catch(error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def allocations_of(count: int, request_id: str = "") -> list[Allocation]:
    return [Allocation(new_id(), uuid4(), uuid4(), f"{n}{EMAIL}", 1, 0, None, request_id) for n in range(count)]


def test_a_json_line_has_the_fields_of_every_line() -> None:
    line = json.loads(JSON.format(make_record("%d of them", 3, **about(batch_id="bat_1", nothing=None))))
    assert list(line) == ["time", "level", "process", "pid", "logger", "message", "batch_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning",
        "process": "web",
        "pid": os.getpid(),
        "logger": "core.test",
        "message": "3 of them",
        "batch_id": "bat_1",
    }


def test_a_text_line_is_for_people() -> None:
    line = TEXT.format(make_record("gone", **about(allocations=allocations_of(2, "caller-1"))))
    assert re.fullmatch(
        r"\S+Z WARNING core.test: gone  \[allocations=2 allocation_ids=txn_\w{32},txn_\w{32} request_ids=caller-1\]",
        line,
    )


@pytest.mark.parametrize("formatter", [JSON, TEXT])
@pytest.mark.parametrize("message", ["first\nsecond", "\x1b[31mred", "\r\noverwritten", "\u2028", "\x00"])
def test_a_line_stays_one_line(formatter: LineFormatter, message: str) -> None:
    line = formatter.format(make_record(message))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert "\x00" not in line


def test_an_error_is_named_by_type_and_place_without_its_text() -> None:
    error = raise_and_catch(ValueError(f"a row of {EMAIL}"))
    line = json.loads(JSON.format(make_record("it failed", exc_info=(type(error), error, error.__traceback__))))
    assert line["message"] == "it failed"
    assert line["error"] == "ValueError"
    assert re.fullmatch(r"logging/test_setup.py:\d+ in raise_and_catch", line["place"])
    assert EMAIL not in str(line)


def test_the_place_of_an_error_is_in_our_own_code() -> None:
    with pytest.raises(sa.exc.OperationalError) as caught:
        Database("postgresql://nobody@127.0.0.1:1/none", transaction_timeout_s=None).read(lambda _: None)
    assert re.fullmatch(r"core/database/connection.py:\d+ in transaction", place_of(caught.tb) or "")


def test_an_sql_error_has_its_sqlstate_and_not_its_parameters(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught, database.transaction() as connection:
        connection.execute(sa.text("SELECT CAST(:text AS int)"), {"text": EMAIL})
    line = json.loads(JSON.format(make_record("it failed", **about(error=caught.value))))
    assert line["error"] == "DataError of InvalidTextRepresentation (SQLSTATE 22P02)"
    assert EMAIL not in str(line)
    assert isinstance(caught.value.orig, psycopg.Error)


def test_of_many_allocations_the_first_are_named() -> None:
    fields = about(allocations=allocations_of(500))["fields"]
    assert fields["allocations"] == 500
    assert len(fields["allocation_ids"]) == len(fields["request_ids"]) == NAMED_MAX


def test_a_request_id_of_ours_is_the_allocation_id() -> None:
    (allocation,) = allocations_of(1)
    fields = about(allocations=[allocation])["fields"]
    assert fields["request_ids"] == [allocation.id.hex]
    assert fields["allocation_ids"] == [f"txn_{allocation.id.hex}"]


def test_users_are_told_apart_by_digests_that_no_dictionary_finds() -> None:
    one, other = b"one secret, long enough for all of it", b"another secret, long enough for all"
    fields = about(allocations=allocations_of(3), hash_secret=one)["fields"]
    assert fields["users"] == sorted(email_digest(one, f"{n}{EMAIL}") for n in range(3))
    assert len(set(fields["users"])) == 3
    assert not set(fields["users"]) & {email_digest(other, f"{n}{EMAIL}") for n in range(3)}


@pytest.mark.parametrize(
    "text",
    [KEY, f"key {KEY}!", "a" * 64, "A" * 64, EMAIL, f"<{EMAIL}>", EMAIL.replace("@", "%40"), "redis://:word@host/0",
     "postgresql://me:word@host/name", "pk_test_x"],
)  # fmt: skip
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    assert holds_secret(text)
    hidden = hide_secrets(f"before {text} after")
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")
    assert not any(word in hidden for word in (KEY, "a" * 64, "A" * 64, "somebody", "word", "pk_test_x"))


@pytest.mark.parametrize("text", ["worker-123@host.example.com ready.", "txn_" + "a" * 32, "redis://host/0", "a@b"])
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert not holds_secret(text)
    assert hide_secrets(text) == text


def test_other_libraries_texts_are_cut_before_they_quote_anything() -> None:
    error = raise_and_catch(ValueError(EMAIL))
    data = {"name": "payouts.allocate", "exc": repr(error), "traceback": "Traceback …"}
    trace = make_record("Task %(name)s raised: %(exc)s\n%(traceback)s", name="celery.app.trace", data=data)
    assert json.loads(JSON.format(trace))["message"] == "payouts.allocate ended with an error"
    callback = make_record(f"Exception in callback f('{EMAIL}')\nhandle: <Handle>", name="asyncio")
    assert json.loads(JSON.format(callback))["message"] == "Exception in callback f"
    server = make_record("Exception in ASGI application\n", name="uvicorn.error", exc_info=(ValueError, error, None))
    assert json.loads(JSON.format(server))["message"] == "Exception in ASGI application"
    broken = make_record("%d %s", "not a number", name="kombu.x")
    assert json.loads(JSON.format(broken))["message"] == "%d %s"


def test_lines_that_are_alike_are_counted() -> None:
    written: list[str] = []
    repeats = Repeats(lambda record: written.append(record.getMessage()))
    passed = [repeats.filter(make_record("allocation %d failed", n)) for n in range(100)]
    assert passed == [True] * SAME_PER_S_MAX + [False] * (100 - SAME_PER_S_MAX)
    assert repeats.filter(make_record("something else"))
    assert repeats.filter(make_record("allocation %d failed", 7, **about(always=True)))
    wait_for(lambda: written)
    assert written == [f"{100 - SAME_PER_S_MAX} more lines like this within a second: allocation 0 failed"]
    assert repeats.filter(make_record("allocation %d failed", 8))


def test_a_reader_who_reads_nothing_blocks_nobody_and_is_told_how_much_was_dropped() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(JSON, writing, waiting_max=200)
    begun = time.monotonic()
    for number in range(100_000):
        writer.add(f"{number:>1000}")
    assert time.monotonic() - begun < 20
    os.set_blocking(reading, False)
    lines: list[str] = []
    rest = b""

    def read() -> bool:
        nonlocal rest
        try:
            rest += os.read(reading, 1 << 20)
        except BlockingIOError:
            return False
        *whole, rest = rest.split(b"\n")
        lines.extend(line.decode() for line in whole)
        return any("were dropped" in line for line in lines)

    wait_for(read)
    time.sleep(0.3)
    read()
    dropped = sum(json.loads(line)["dropped"] for line in lines if "were dropped" in line)
    kept = [int(line) for line in lines if line.strip().isdigit()]
    assert kept == sorted(kept)
    assert len(kept) + dropped == 100_000
    assert dropped > 0
    writer.close()
    os.close(reading)
    os.close(writing)


def test_a_reader_who_has_gone_is_no_reason_to_fail() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(JSON, writing, waiting_max=10)
    writer.add("a line")
    writer.close()
    os.close(writing)


SCRIPT = """
import asyncio, logging, sys, threading, warnings
from core.logging.setup import Logs
Logs.configure("test", log_format=sys.argv[1], log_level="info")
logging.getLogger("core.x").info("hello")
logging.getLogger("core.x").debug("unheard")
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()
async def fail(): raise KeyError("somebody.private@example.com")
async def main():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    task = asyncio.create_task(fail())
    await asyncio.sleep(0.01)
    del task
asyncio.run(main())
raise ValueError("somebody.private@example.com")
"""


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_whatever_breaks_in_a_process_is_a_line_of_json(log_format: str) -> None:
    result = run_script(log_format)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert {"hello", "an error that nobody expected"} <= {line["message"] for line in lines}
    assert [line["error"] for line in lines if "error" in line] == [
        "ZeroDivisionError", "ZeroDivisionError", "KeyError", "ValueError",
    ]  # fmt: skip
    assert "example.com" not in result.stderr
    assert "unheard" not in result.stderr


def test_on_request_it_is_a_line_of_text() -> None:
    result = run_script("text")
    assert re.search(r"^\S+Z INFO    core.x: hello$", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr
    assert "example.com" not in result.stderr


def run_script(log_format: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, log_format]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    return result


def wait_for(is_true: Callable[[], object], timeout_s: float = 20) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
