"""Setting up the logs of a process: one line for each event, the same from every process."""

import atexit
import logging
import sys
import threading
from types import TracebackType
from typing import Any

from core.database.connection import describe_error
from core.logging.fields import place_of
from core.logging.formatter import LineFormatter
from core.logging.repeats import Repeats
from core.logging.writer import LineWriter

_WAITING_MAX = 50_000


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

    _writer: LineWriter | None = None

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
        cls._writer = writer
        cls._install(_BackgroundHandler(writer), formatter, log_level)
        return writer

    @classmethod
    def flush(cls) -> None:
        """Wait until what this process logged so far is written."""
        if cls._writer is not None:
            cls._writer.flush()

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
