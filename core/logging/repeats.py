"""Lines that repeat themselves within a second are counted, not written."""

import logging
import threading
from collections.abc import Callable

from core.logging.formatter import message_of

SAME_PER_S_MAX = 10


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
            record = logging.LogRecord(like.name, like.levelno, "", 0, text, (left_out, message_of(like)), None)
            record.fields = {"left_out": left_out}
            record.always = True
            self._handle(record)
