"""The database's time, as an API process knows it."""

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from core.database.connection import Database, describe_error
from core.ledger.resolution import read_deadline_clock_us

logger = logging.getLogger(__name__)

REFRESH_S = 5.0
_REFRESH_AGAIN_AFTER_S = 0.1
_SET_BACK_AFTER = 4
"""Measurements: calls that got their deadlines from a clock that was then set back are all resolved by then."""


class DatabaseClock:
    """Deadlines are in the database's time, so that no other clock in the system needs to be right.

    When that is set back, deadlines follow it only after a while: until then, calls with later deadlines may raise
    the fence of a business above those of its new calls, which would be refused for it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._offset_us = 0
        self._offsets_us: deque[int] = deque(maxlen=_SET_BACK_AFTER)
        self._doubted = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="clock")

    def now_us(self) -> int:
        """Return microseconds since 1970 by the database's clock, to about half a round trip."""
        return time.monotonic_ns() // 1000 + self._offset_us

    def measure(self) -> None:
        """Ask the database for its time."""
        with self._database.transaction() as connection:
            before_us = time.monotonic_ns() // 1000
            database_us = read_deadline_clock_us(connection)
            after_us = time.monotonic_ns() // 1000
        self._offsets_us.append(database_us - (before_us + after_us) // 2)
        self._offset_us = max(self._offsets_us)

    def doubt(self) -> None:
        """Have it measured soon: a worker found a deadline passed."""
        self._doubted.set()

    async def keep_fresh(self) -> None:
        """Measure every few seconds, for ever; without the database, the last offset holds."""
        while True:
            await asyncio.sleep(_REFRESH_AGAIN_AFTER_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._doubted.wait(), REFRESH_S - _REFRESH_AGAIN_AFTER_S)
            self._doubted.clear()
            try:
                await asyncio.get_running_loop().run_in_executor(self._executor, self.measure)
            except Exception as error:  # noqa: BLE001 (deadlines would get stale)
                logger.warning("the database's clock could not be read: %s", describe_error(error))
