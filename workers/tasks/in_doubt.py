"""Finishing what API processes left in doubt: a periodic task, for when no API process is there to do it."""

import logging

from celery import Celery

from core.batches import release
from core.database.connection import Database, describe_error
from core.ids import IdKind, format_id
from core.in_doubt.finishing import Finisher
from core.in_doubt.records import Doubt
from core.logging.fields import about
from workers.app import FINISH_IN_DOUBT_TASK
from workers.in_doubt import InDoubtRecords

logger = logging.getLogger(__name__)

ABANDONED_AFTER_S = 300.0
"""A batch that nobody released for so long belongs to a process that died before it answered."""


class InDoubtWorker:
    """Finishes records, and cancels payout batches that were accepted and never answered."""

    def __init__(
        self,
        database: Database,
        records: InDoubtRecords,
        *,
        overdue_after_s: float,
        abandoned_after_s: float = ABANDONED_AFTER_S,
    ) -> None:
        self._database = database
        self._records = records
        self._finisher = Finisher(database, records, overdue_after_s=overdue_after_s)
        self._abandoned_after_s = abandoned_after_s

    def work(self) -> str:
        """Do what can be done now; say, for Flower, how much that was."""
        try:
            result = self._finisher.work()
            cancelled = self._cancel_abandoned()
        except Exception as error:  # noqa: BLE001 (the next time tries again)
            problem = describe_error(error)
            logger.warning("records in doubt are not finished for now: %s", problem)
            return problem
        return f"{len(result.finished)} finished, {len(result.left)} left, {cancelled} batches cancelled"

    def _cancel_abandoned(self) -> int:
        """Cancel what nobody will release; without Redis, which tells what was answered 202, nothing."""
        with self._database.transaction() as connection:
            abandoned = release.list_unreleased(connection, self._abandoned_after_s)
        if not abandoned:
            return 0
        records = self._records.read()
        if self._records.problems:
            return 0
        accepted_ids = {record.id for record in records if record.doubt is Doubt.BATCH_ACCEPTED}
        count = 0
        for batch in abandoned:
            if batch.id in accepted_ids:
                continue
            with self._database.transaction() as connection:
                cancelled = release.cancel_unreleased(connection, batch.business_id, batch.id)
            if cancelled is not None:
                count += 1
                name = format_id(IdKind.BATCH, batch.id)
                text = "%s was accepted by a process that died before it answered; it is cancelled, none of it was paid"
                logger.error(text, name, extra=about(batch_id=name, always=True))
        return count


def register_in_doubt_task(celery: Celery, worker: InDoubtWorker) -> None:
    """Make the task known to the worker."""

    @celery.task(name=FINISH_IN_DOUBT_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def finish_in_doubt() -> str:
        return worker.work()
