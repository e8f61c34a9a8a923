"""One attempt to accept a payout batch, in a thread, and the call that waits for it: one of them decides the answer."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from typing import TypeVar

Found = TypeVar("Found")


class Attempt:
    """Says how long an attempt may take, and whether its caller may still be answered 202."""

    def __init__(self, timeout_s: float) -> None:
        self._deadline = time.monotonic() + timeout_s
        self._lock = threading.Lock()
        self._may_accept: bool | None = None

    def check_time(self) -> None:
        """End the attempt when its time is over, or nobody waits for it: a thread would go on to accept.

        Raises:
            TimeoutError: it is to end.

        """
        if time.monotonic() >= self._deadline or self._may_accept is False:
            raise TimeoutError

    def decide_to_accept(self) -> bool:
        """Have the caller answered 202 from here on, unless it is answered 500 already; tell which."""
        return self._decide(may_accept=True)

    def abandon(self) -> bool:
        """Have the caller answered 500, unless it is decided that it gets 202; tell which."""
        return not self._decide(may_accept=False)

    def _decide(self, *, may_accept: bool) -> bool:
        with self._lock:
            if self._may_accept is None:
                self._may_accept = may_accept
            return self._may_accept


async def carry_out(executor: Executor, attempt: Attempt, work: Callable[[Attempt], Found]) -> Found:
    """Make an attempt in a thread and return its answer, also where the server stops after it was decided."""
    # In the call's context, so that its trace goes on in the thread.
    running = asyncio.get_running_loop().run_in_executor(executor, copy_context().run, work, attempt)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if attempt.abandon():
            running.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio logs it
            raise
        return await running
