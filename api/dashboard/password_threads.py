"""The threads in which passwords are hashed: few, since each hash takes 64 MiB and a twentieth of a second."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from api.web.errors import TooManyWaitingError
from core.database.connection import Database

Found = TypeVar("Found")

_THREADS = 2
_WAITING_MAX = 20
_TIMEOUT_S = 10.0


class PasswordThreads:
    """Carries out what hashes passwords, and how many may wait for it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="passwords")
        self._waiting = 0

    async def run(self, carry_out: Callable[[Database], Found]) -> Found:
        """Carry something out that takes the database, and hashes between its transactions.

        Raises:
            TooManyWaitingError: nothing was begun.
            TimeoutError: it took too long.

        """
        if self._waiting >= _WAITING_MAX:
            raise TooManyWaitingError
        self._waiting += 1
        try:
            work = asyncio.get_running_loop().run_in_executor(self._executor, carry_out, self._database)
            return await asyncio.wait_for(work, _TIMEOUT_S)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let go of the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)
