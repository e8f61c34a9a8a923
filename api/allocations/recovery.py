"""Finishing what other processes, or an earlier life of this one, left in doubt."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from core import metrics
from core.database.connection import describe_error
from core.in_doubt.finishing import Finisher

logger = logging.getLogger(__name__)

EVERY_S = 5.0


class Recovery:
    """Finishes the installation's records in doubt, at the start and every few seconds."""

    def __init__(self, finisher: Finisher) -> None:
        self._finisher = finisher
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="recovery")

    async def keep_finishing(self) -> None:
        """Finish them for ever; while the database is out of reach, they stay recorded."""
        while True:
            try:
                result = await asyncio.get_running_loop().run_in_executor(self._executor, self._finisher.work)
            except Exception as error:  # noqa: BLE001 (the next time tries again)
                logger.warning("records in doubt are not finished for now: %s", describe_error(error))
            else:
                if result.reversed:
                    metrics.REVERSALS.inc(len(result.reversed))
                if result.finished:
                    logger.warning(
                        "%d records in doubt are finished, %d are left", len(result.finished), len(result.left)
                    )
            await asyncio.sleep(EVERY_S)

    def close(self) -> None:
        """Let go of the thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)
