"""Waiting for something to become true: the one loop of all tests."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_until(
    find: Callable[[], Found],
    what: str | Callable[[], object] = "",
    timeout_s: float = 20,
    *,
    pause_s: float = 0.02,
    passing: tuple[type[Exception], ...] = (),
) -> Found:
    """Return what `find` returns once it is true; fail with `what` where it is not in time.

    Errors in `passing` count as not yet.
    """
    give_up_at = time.monotonic() + timeout_s
    while True:
        try:
            if found := find():
                return found
        except passing:
            pass
        assert time.monotonic() < give_up_at, f"not within {timeout_s:g} s: {what() if callable(what) else what}"
        time.sleep(pause_s)
