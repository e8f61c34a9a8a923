"""The last step of taking a payout batch in: what is answered 202 is released to the workers.

What is answered 500 never is.
"""

import logging
import time
from uuid import UUID

from celery import Celery

from core.batches import release
from core.batches.payout_batch import PayoutBatch
from core.database.connection import DATABASE_ERRORS, Database, describe_error
from core.ids import IdKind, format_id
from core.in_doubt.records import Doubt, InDoubt
from core.logging.fields import about
from workers.app import send_chunk
from workers.in_doubt import InDoubtRecords, NotRecordedError

logger = logging.getLogger(__name__)

FIND_OUT_WITHIN_S = 20.0
AGAIN_AFTER_S = 0.2


class CancelledMeanwhileError(Exception):
    """A payout batch was cancelled before its caller was answered; none of it was paid."""


class BatchReleaser:
    """Releases batches that were seen to be committed."""

    def __init__(self, database: Database, celery: Celery, records: InDoubtRecords) -> None:
        self._database = database
        self._celery = celery
        self._records = records

    def release(self, batch: PayoutBatch) -> PayoutBatch:
        """Let workers pay a batch that will be answered 202.

        Where the database is out of reach, it is recorded, and released by any process once it is back.

        Raises:
            CancelledMeanwhileError: somebody cancelled it.

        """
        give_up_at = time.monotonic() + FIND_OUT_WITHIN_S
        while True:
            try:
                with self._database.transaction() as connection:
                    released = release.release(connection, batch.business_id, batch.id)
                break
            except DATABASE_ERRORS as error:
                if time.monotonic() >= give_up_at:
                    name = format_id(IdKind.BATCH, batch.id)
                    text = "%s is answered 202, and is not released to the workers yet: %s"
                    logger.error(text, name, describe_error(error), extra=about(batch_id=name, always=True))
                    self._record(Doubt.BATCH_ACCEPTED, batch.business_id, batch.id)
                    return batch
                time.sleep(AGAIN_AFTER_S)
        if released is None:
            raise CancelledMeanwhileError
        self._tell_workers(released)
        return released

    def refuse(self, business_id: UUID, batch_id: UUID) -> None:
        """Have a batch cancelled whose caller is answered 500, should it be committed: it is not released."""
        name = format_id(IdKind.BATCH, batch_id)
        text = "%s may be accepted, and is answered 500; it is cancelled as soon as that is known"
        logger.error(text, name, extra=about(batch_id=name, always=True))
        self._record(Doubt.BATCH_FAILED, business_id, batch_id)

    def _record(self, doubt: Doubt, business_id: UUID, batch_id: UUID) -> None:
        try:
            self._records.add([InDoubt(doubt, business_id, batch_id, answered_at_s=int(time.time()))])
        except NotRecordedError:
            name = format_id(IdKind.BATCH, batch_id)
            text = "%s is in doubt and cannot be recorded outside this process: do not stop it"
            logger.error(text, name, extra=about(batch_id=name, always=True))

    def _tell_workers(self, batch: PayoutBatch) -> None:
        """Send the first chunk's task; where that fails, the periodic task finds the batch."""
        try:
            send_chunk(self._celery, batch.business_id, batch.id, 0)
        except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
            logger.warning("a payout batch waits for the periodic task: %s", type(error).__name__)
