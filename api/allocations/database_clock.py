"""The database's time, as an API process knows it."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from core.database.connection import Database, describe_error, read_clock_us

logger = logging.getLogger(__name__)

REFRESH_S = 5.0


class DatabaseClock:
    """Deadlines are in the database's time, so that no other clock in the system needs to be right."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._offset_us = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="clock")

    def now_us(self) -> int:
        """Return microseconds since 1970 by the database's clock, to about half a round trip."""
        return time.monotonic_ns() // 1000 + self._offset_us

    def measure(self) -> None:
        """Ask the database for its time."""
        with self._database.transaction() as connection:
            before_us = time.monotonic_ns() // 1000
            database_us = read_clock_us(connection)
            after_us = time.monotonic_ns() // 1000
        self._offset_us = database_us - (before_us + after_us) // 2

    async def keep_fresh(self) -> None:
        """Measure every few seconds, for ever; without the database, the last offset holds."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await asyncio.get_running_loop().run_in_executor(self._executor, self.measure)
            except Exception as error:  # noqa: BLE001 (deadlines would get stale)
                logger.warning("the database's clock could not be read: %s", describe_error(error))
