"""How long a transaction waits for rows that others hold, where that is less than the connection allows."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

# `lock_timeout` limits each wait, and a transaction that is second in the queue for a row waits twice: the time for the
# lock as a whole is that of its statement.
_LIMIT_WAITS = """
    SELECT set_config('payouts.statement_timeout', current_setting('statement_timeout'), true),
        set_config('statement_timeout', %(wait_ms)s, true),
        set_config('lock_timeout', %(wait_ms)s, true)
"""
_END_LIMIT = "SELECT set_config('statement_timeout', current_setting('payouts.statement_timeout'), true)"


@contextmanager
def limited_wait(driver: psycopg.Connection, wait_s: float | None) -> Iterator[None]:
    """Give the statement that locks rows that long in all; after it, each lock of a row in the transaction that long.

    None: as long as the connection allows. In a pipeline, this costs no round trip.
    """
    if wait_s is None:
        yield
        return
    driver.execute(_LIMIT_WAITS, {"wait_ms": str(max(round(wait_s * 1000), 1))})
    yield
    driver.execute(_END_LIMIT)
