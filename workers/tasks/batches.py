"""Working payout batches off: a task pays chunk after chunk for a moment, then hands on to the next task.

Chunks are transactions of their own. A task names the row at which it begins: where another one has been there, it
does nothing, so that copies of a message die out.
"""

import logging
import time
from uuid import UUID

import redis
from celery import Celery

from core import metrics
from core.batches import payment, reading
from core.database.connection import Database, describe_error, is_lock_timeout
from core.ids import IdKind, format_id, parse_id
from core.logging.fields import about
from workers.app import FIND_STALLED_TASK, PAY_CHUNK_TASK, PERIODIC_RUN_KEY, periodic_run_noted_s, send_chunk
from workers.locks import BusinessLocks
from workers.patience import Patience

logger = logging.getLogger(__name__)

CHUNK_ROWS = 500
CHUNK_ROWS_WHILE_OTHERS_WAIT = 250
_TASK_S = 1.0
_ROWS_END = 1 << 31
"""No batch has as many rows; PostgreSQL's numbers of rows end there."""


class StalledSearchError(Exception):
    """The database could not be asked for stalled payout batches."""


class PayoutBatchWorker:
    """Pays payout batches, and lets synchronous calls of the same business go first."""

    def __init__(self, celery: Celery, database: Database, locks: BusinessLocks, patience: Patience) -> None:
        self._celery = celery
        self._database = database
        self._locks = locks
        self._patience = patience

    def work(self, business_id: UUID, batch_id: UUID, first: int) -> str:
        """Pay chunks for about a second, then send the task for the rest; say, for Flower, how far it got."""
        give_up_at = time.monotonic() + _TASK_S
        position: int | None = first
        while position is not None and time.monotonic() < give_up_at:
            with self._locks.hold_politely(business_id):
                rows_max = CHUNK_ROWS_WHILE_OTHERS_WAIT if self._locks.others_waited else CHUNK_ROWS
                position = self._pay(business_id, batch_id, position, rows_max)
        if position is None:
            return "ends here"
        send_chunk(self._celery, business_id, batch_id, position)
        return f"goes on from row {position}"

    def find_stalled(self, idle_s: float) -> str:
        """Send the tasks of batches on which nobody has worked for a while: theirs were lost.

        Raises:
            StalledSearchError: the database cannot be asked; the next one will find them.

        """
        try:
            with self._database.transaction() as connection:
                stalled = reading.find_stalled(connection, idle_s)
        except Exception as error:  # noqa: BLE001 (its text is not for a log, nor for Flower)
            problem = describe_error(error)
            logger.warning("stalled payout batches cannot be looked for: %s", problem)
            raise StalledSearchError(problem) from None
        for business_id, batch_id, first in stalled:
            name = format_id(IdKind.BATCH, batch_id)
            logger.info("%s goes on from row %d", name, first, extra=about(batch_id=name))
            send_chunk(self._celery, business_id, batch_id, first)
            metrics.PAYOUT_BATCHES_RESUMED.inc()
        return f"{len(stalled)} stalled"

    def _pay(self, business_id: UUID, batch_id: UUID, first: int, rows_max: int) -> int | None:
        wait_s = self._patience.wait_for(business_id)
        try:
            with metrics.SQL_SECONDS.labels("chunk").time(), self._database.pipeline() as connection:
                paid = payment.pay_chunk(connection, business_id, batch_id, first, rows_max, wait_s=wait_s)
        except Exception as error:  # noqa: BLE001 (whatever broke, the periodic task tries again)
            metrics.SQL_FAILURES.labels("chunk").inc()
            if is_lock_timeout(error):  # so that the batches of other businesses go on
                self._patience.note_vain_wait(business_id)
            name, business = format_id(IdKind.BATCH, batch_id), format_id(IdKind.BUSINESS, business_id)
            extra = about(error=error, batch_id=name, business_id=business)
            logger.warning("%s stops at row %d: %s", name, first, describe_error(error), extra=extra)
            return None
        self._patience.note_success(business_id)
        metrics.PAYOUT_BATCH_ROWS_PAID.inc(paid.rows)
        if paid.rows and paid.next_first is None:
            metrics.PAYOUT_BATCHES_COMPLETED.inc()
        return paid.next_first


def note_periodic_run(client: redis.Redis, idle_s: float) -> None:
    """Leave word that the periodic task ran; it ends by itself when it has not for a while."""
    try:
        client.set(PERIODIC_RUN_KEY, 1, px=round(periodic_run_noted_s(idle_s) * 1000))
    except redis.RedisError as error:
        logger.warning("the periodic task's run could not be noted: %s", type(error).__name__)


def register_batch_tasks(
    celery: Celery, worker: PayoutBatchWorker, idle_s: float, client: redis.Redis | None = None
) -> None:
    """Make the tasks known to the worker; `client` is where it is noted that the periodic one ran."""

    @celery.task(name=PAY_CHUNK_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def pay_chunk(*arguments: object, **_: object) -> str:
        chunk = _read_chunk(arguments)
        if chunk is None:
            logger.error("a message was dropped: it names no payout batch")
            metrics.MESSAGES_DROPPED.inc()
            return "dropped"
        return worker.work(*chunk)

    # An error that Celery expects is no stack trace in the log.
    @celery.task(name=FIND_STALLED_TASK, ignore_result=True, throws=(StalledSearchError,))  # type: ignore[untyped-decorator]
    def find_stalled(*_: object, **__: object) -> str:
        if client is not None:
            note_periodic_run(client, idle_s)
        return worker.find_stalled(idle_s)


def _read_chunk(arguments: tuple[object, ...]) -> tuple[UUID, UUID, int] | None:
    """Read business, batch and row of a message, which may be anybody's: it can only start work that is due."""
    match arguments:
        case (str(business), str(batch), int(first)) if 0 <= first < _ROWS_END:
            business_id, batch_id = parse_id(IdKind.BUSINESS, business), parse_id(IdKind.BATCH, batch)
            return (business_id, batch_id, first) if business_id and batch_id else None
    return None
