"""Logs: one line for each event, as JSON or for people, the same from every process.

A line never holds a secret, an e-mail or a stack trace: an error is named by its type, SQLSTATE and place. What
repeats itself within a second is counted.
"""

import atexit
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from core.credentials import email_digest
from core.database.connection import describe_error
from core.ids import IdKind, format_id
from core.messages import Allocation

NAMED_MAX = 20
"""Allocations that one line names; of the others it gives the number alone."""
SAME_PER_S_MAX = 10
_WAITING_MAX = 50_000
_COLLECT_S = 0.1
_AGAIN_AFTER_S = 0.05
_CLOSE_WITHIN_S = 1.0
_MESSAGE_CHARACTERS_MAX = 2_000
_OWN_PACKAGES = ("api", "core", "workers")
_ROOT = str(Path(__file__).resolve().parents[2]) + os.sep
_OWN_DIRECTORIES = tuple(f"{_ROOT}{each}{os.sep}" for each in _OWN_PACKAGES)
# The names of Celery's nodes look like e-mails.
_PRIVATE = re.compile(
    r"[sp]k_(?:live|test)_\w+|\b[0-9A-Fa-f]{64}\b|(?<=://)[^/\s@]+(?=@)"
    r"|(?<![\w.+%-])(?!(?:worker|batches|celery)(?:-\d+)?@)[\w.+%-]+(?:@|%40)[\w-]+(?:\.[\w-]+)+"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_encoder = msgspec.json.Encoder()


def hide_secrets(text: str) -> str:
    """Return a text without what looks like an API key, a hash, a password in a URL or an e-mail."""
    return _PRIVATE.sub("…", text)


def holds_secret(text: str) -> bool:
    """Tell whether something in a text looks like an API key, a hash, a password in a URL or an e-mail."""
    return _PRIVATE.search(text) is not None


def about(
    *,
    error: BaseException | None = None,
    allocations: Iterable[Allocation] | None = None,
    hash_secret: bytes | None = None,
    always: bool = False,
    **fields: object,
) -> dict[str, Any]:
    """Return what a logger's call takes as `extra`: fields of a line.

    Of allocations, the first ones are named, with the ids of their requests; with the hash secret, their users are
    told apart by digests. `always` is for lines that are written however many are alike.
    """
    if error is not None:
        fields["error"] = describe_error(error)
        fields["place"] = place_of(error.__traceback__)
    if allocations is not None:
        fields.update(name_allocations(allocations))
        if hash_secret is not None:
            named = list(allocations)[:NAMED_MAX]
            fields["users"] = sorted({email_digest(hash_secret, each.email) for each in named})
    return {"fields": fields, "always": always}


def name_allocations(allocations: Iterable[Allocation]) -> dict[str, object]:
    """Return the ids of allocations and of their requests, of the first ones, and how many there are."""
    every = list(allocations)
    named = every[:NAMED_MAX]
    return {
        "allocations": len(every),
        "allocation_ids": [format_id(IdKind.TRANSACTION, each.id) for each in named],
        "request_ids": list(dict.fromkeys(each.request_id or each.id.hex for each in named)),
    }


def place_of(trace: TracebackType | None) -> str | None:
    """Return where an error was raised: file, line and function, of our own code where it came by."""
    place = None
    is_own = False
    while trace is not None:
        code = trace.tb_frame.f_code
        own = code.co_filename.startswith(_OWN_DIRECTORIES)
        if own or not is_own:
            file = code.co_filename.removeprefix(_ROOT) if own else "/".join(Path(code.co_filename).parts[-2:])
            place = f"{file}:{trace.tb_lineno} in {code.co_name}"
            is_own = is_own or own
        trace = trace.tb_next
    return place


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
        return self.line(record.created, record.levelname, record.name, _message_of(record), fields)

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


def _message_of(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 (a library's arguments that do not fit are no reason to fail)
        message = str(record.msg)
    if record.name.partition(".")[0] not in _OWN_PACKAGES:
        if record.name == "celery.app.trace" and isinstance(data := getattr(record, "data", None), dict):
            message = f"{data.get('name')} ended with an error"  # the library's text quotes the error's
        elif record.name == "asyncio":
            message = message.partition("(")[0]  # behind it stand arguments
        # Only the first line: stack traces come behind it.
        message = message.lstrip("\n").partition("\n")[0].rstrip(" :")
    return _CONTROL.sub(_escape, hide_secrets(message[:_MESSAGE_CHARACTERS_MAX]))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class Repeats(logging.Filter):
    """Lets through a few lines a second of those that are alike, and counts the others."""

    def __init__(self, handle: Callable[[logging.LogRecord], object], *, per_s_max: int = SAME_PER_S_MAX) -> None:
        super().__init__()
        self._handle = handle
        self._per_s_max = per_s_max
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is written: all below warnings are."""
        if record.levelno < logging.WARNING or getattr(record, "always", False):
            return True
        kind = (record.name, record.levelno, str(record.msg)[:200])
        with self._lock:
            count = self._seen.get(kind, 0)
            self._seen[kind] = count + 1
            if count == 0:
                timer = threading.Timer(1.0, self._end_second, [kind, record])
                timer.daemon = True
                timer.start()
        return count < self._per_s_max

    def _end_second(self, kind: tuple[str, int, str], like: logging.LogRecord) -> None:
        with self._lock:
            left_out = self._seen.pop(kind) - self._per_s_max
        if left_out > 0:
            text = "%d more lines like this within a second: %s"
            record = logging.LogRecord(like.name, like.levelno, "", 0, text, (left_out, _message_of(like)), None)
            record.fields = {"left_out": left_out}
            record.always = True
            self._handle(record)


class LineWriter:
    """Writes lines in a thread, so that nobody waits for the reader of the log. Beyond a limit they are dropped.

    Lines are made by whoever adds them: a thread that does more than write takes the interpreter away from callers.
    """

    def __init__(self, formatter: LineFormatter, descriptor: int, *, waiting_max: int) -> None:
        self.formatter = formatter
        self._descriptor = descriptor
        self._waiting: deque[str] = deque()
        self._waiting_max = waiting_max
        self._dropped = 0
        self._something = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def add(self, line: str) -> None:
        """Have a line written soon."""
        if len(self._waiting) >= self._waiting_max:
            self._dropped += 1
            return
        self._waiting.append(line)
        if not self._something.is_set():
            self._something.set()

    def close(self) -> None:
        """Write what waits, for a bounded time."""
        self._closing.set()
        self._something.set()
        self._thread.join(_CLOSE_WITHIN_S)

    def _work(self) -> None:
        while not (self._closing.is_set() and not self._waiting):
            self._something.wait()
            self._closing.wait(_COLLECT_S)
            self._something.clear()
            self._write("".join(self._take()).encode(errors="replace"))

    def _take(self) -> Iterator[str]:
        for _ in range(len(self._waiting)):
            yield self._waiting.popleft()
            yield "\n"
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            text = f"{dropped} lines were dropped, because whoever reads the log was too slow"
            yield self.formatter.line(time.time(), "WARNING", __name__, text, {"dropped": dropped}) + "\n"

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                time.sleep(_AGAIN_AFTER_S)
            except OSError:
                return  # nobody reads any more


class _BackgroundHandler(logging.Handler):
    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the line over to the writer's thread."""
        self._writer.add(self.format(record))


class _DirectHandler(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the library's name)
        """Do nothing: the library would print a stack trace."""


class Logs:
    """How this process logs; `configure` sets it up, once."""

    @classmethod
    def configure(cls, process: str, *, log_format: str, log_level: str) -> LineFormatter:
        """Send all of the process's logs to standard error, and only there; other libraries' too."""
        formatter = LineFormatter(process, as_json=_is_json(log_format))
        cls._install(_DirectHandler(sys.__stderr__), formatter, log_level)
        return formatter

    @classmethod
    def configure_in_background(cls, process: str, *, log_format: str, log_level: str) -> LineWriter:
        """Do so from a thread of its own, which also writes what is no record."""
        formatter = LineFormatter(process, as_json=_is_json(log_format))
        writer = LineWriter(formatter, (sys.__stderr__ or sys.stderr).fileno(), waiting_max=_WAITING_MAX)
        atexit.register(writer.close)
        cls._install(_BackgroundHandler(writer), formatter, log_level)
        return writer

    @classmethod
    def configure_command(cls, log_format: str) -> None:
        """Log from a command of an administrator: warnings only, unless whoever called us logs already."""
        if not logging.getLogger().handlers:
            cls.configure("payouts", log_format=log_format or "auto", log_level="warning")

    @staticmethod
    def _install(handler: logging.Handler, formatter: LineFormatter, log_level: str) -> None:
        handler.setFormatter(formatter)
        handler.addFilter(Repeats(handler.handle))
        root = logging.getLogger()
        root.handlers[:] = [handler]
        root.setLevel(log_level.upper())
        for name, logger in logging.root.manager.loggerDict.items():
            if isinstance(logger, logging.Logger) and logger.handlers:
                logger.handlers[:] = []
                logger.propagate = name != "uvicorn.access"
        logging.captureWarnings(capture=True)
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda arguments: _log_uncaught(
            arguments.exc_type, arguments.exc_value, arguments.exc_traceback
        )
        sys.unraisablehook = lambda unraisable: _log_uncaught(
            unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback
        )


def _is_json(log_format: str) -> bool:
    if log_format == "auto":
        return sys.__stderr__ is None or not sys.__stderr__.isatty()
    return log_format == "json"


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    about_it = {"error": describe_error(error) if error else kind.__name__, "place": place_of(trace)}
    logging.getLogger(__name__).error("an error that nobody expected", extra={"fields": about_it})
