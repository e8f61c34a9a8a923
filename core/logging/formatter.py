"""A log line is made: as JSON or for people, without stack traces and without what libraries quote."""

import logging
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from core.database.connection import describe_error
from core.logging.fields import OWN_PACKAGES, place_of
from core.logging.masking import hide_secrets

_MESSAGE_CHARACTERS_MAX = 2_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_encoder = msgspec.json.Encoder()


def format_time(seconds: float) -> str:
    """Write a time for a line: RFC 3339, in UTC, to the millisecond."""
    return f"{_format_second(int(seconds))}.{int(seconds % 1 * 1000):03}Z"


@lru_cache(8)
def _format_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class LineFormatter(logging.Formatter):
    """Makes one line of a record, without stack traces and without what other libraries quote."""

    def __init__(self, process: str, *, as_json: bool) -> None:
        super().__init__()
        self.process = process
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        fields: dict[str, object] = dict(getattr(record, "fields", {}))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            fields.setdefault("error", describe_error(error))
            fields.setdefault("place", place_of(error.__traceback__))
        return self.line(record.created, record.levelname, record.name, message_of(record), fields)

    def line(self, created: float, level: str, logger: str, message: str, fields: Mapping[str, object]) -> str:
        """Return a line made of its parts."""
        if self.as_json:
            own = {
                "time": format_time(created),
                "level": level.lower(),
                "process": self.process,
                "pid": os.getpid(),
                "logger": logger,
                "message": message,
            }
            return _encoder.encode(own | {key: each for key, each in fields.items() if each is not None}).decode()
        shown = " ".join(f"{key}={_show(each)}" for key, each in fields.items() if each not in (None, []))
        end = f"  [{shown}]" if shown else ""
        return f"{format_time(created)} {level:<7} {logger}: {message}{end}"


def _show(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def message_of(record: logging.LogRecord) -> str:
    """Return the message of a record: one line, without secrets and control characters."""
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 (a library's arguments that do not fit are no reason to fail)
        message = str(record.msg)
    if record.name.partition(".")[0] not in OWN_PACKAGES:
        if record.name == "celery.app.trace" and isinstance(data := getattr(record, "data", None), dict):
            message = f"{data.get('name')} ended with an error"  # the library's text quotes the error's
        elif record.name == "asyncio":
            message = message.partition("(")[0]  # behind it stand arguments
        # Only the first line: stack traces come behind it.
        message = message.lstrip("\n").partition("\n")[0].rstrip(" :")
    return _CONTROL.sub(_escape, hide_secrets(message[:_MESSAGE_CHARACTERS_MAX]))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
