"""Sealing the history: a periodic task, which any number of workers may carry out at once."""

import logging

from celery import Celery

from core.chain.sealer import Sealer
from core.database.connection import Database, describe_error
from workers.app import SEAL_TASK

logger = logging.getLogger(__name__)

SEALING_TIMEOUT_S = 60.0
_TASK_S = 2.0


class HistorySealer:
    """Seals what was added, in short transactions."""

    def __init__(self, database: Database, hash_secret: bytes, *, task_s: float = _TASK_S) -> None:
        self._sealer = Sealer(database, hash_secret)
        self._task_s = task_s

    def work(self) -> None:
        """Seal for a while; what is left is for the next time."""
        try:
            self._sealer.work(self._task_s)
        except Exception as error:  # noqa: BLE001 (the next time tries again)
            logger.warning("the history is not sealed for now: %s", describe_error(error))


def register_seal_task(celery: Celery, sealer: HistorySealer) -> None:
    """Make the task known to the worker."""

    @celery.task(name=SEAL_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def seal() -> None:
        sealer.work()
