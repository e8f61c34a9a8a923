"""A line: its fields, its form, and what it never holds."""

import json
import os
import re

import psycopg
import pytest
import sqlalchemy as sa

from core.database.connection import Database
from core.logging.fields import about
from core.logging.formatter import LineFormatter
from tests.core.logging.records import EMAIL, JSON, allocations_of, make_record, raise_and_catch

TEXT = LineFormatter("web", as_json=False)


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
    assert re.fullmatch(r"logging/records.py:\d+ in raise_and_catch", line["place"])
    assert EMAIL not in str(line)


def test_an_sql_error_has_its_sqlstate_and_not_its_parameters(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught, database.transaction() as connection:
        connection.execute(sa.text("SELECT CAST(:text AS int)"), {"text": EMAIL})
    line = json.loads(JSON.format(make_record("it failed", **about(error=caught.value))))
    assert line["error"] == "DataError of InvalidTextRepresentation (SQLSTATE 22P02)"
    assert EMAIL not in str(line)
    assert isinstance(caught.value.orig, psycopg.Error)


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
