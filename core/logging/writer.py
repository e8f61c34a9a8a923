"""A thread that writes the lines, so that no caller waits for the reader of the log."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator

from core.logging.formatter import LineFormatter

_COLLECT_S = 0.1
_AGAIN_AFTER_S = 0.05
_CLOSE_WITHIN_S = 1.0


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
        self._written = threading.Condition()
        self._is_writing = False
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

    def flush(self) -> None:
        """Wait until what was added is written, for a bounded time."""
        with self._written:
            self._written.wait_for(lambda: not (self._waiting or self._is_writing), _CLOSE_WITHIN_S)

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
            self._is_writing = True  # before anything is taken, or `flush` would not wait for it
            self._write("".join(self._take()).encode(errors="replace"))
            with self._written:
                self._is_writing = False
                self._written.notify_all()

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
