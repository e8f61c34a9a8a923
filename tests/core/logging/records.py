"""Records and allocations to be logged."""

import logging
from typing import Any
from uuid import uuid4

import pytest

from core.ids import new_id
from core.logging.formatter import LineFormatter
from core.messages import Allocation

EMAIL = "somebody.private@example.com"
JSON = LineFormatter("web", as_json=True)


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
