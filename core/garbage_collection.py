"""Garbage collection in long-running processes."""

import gc

_GEN0_OBJECTS = 20_000


def freeze_startup_objects() -> None:
    """Take everything that exists now out of later collections, and collect less often; call it once, after start.

    A full collection walks every module's objects: in an API process it stopped all callers for 100 ms, several
    times a minute. What calls leave behind is freed by reference counting; few cycles are left to collect.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GEN0_OBJECTS, 10, 10)
