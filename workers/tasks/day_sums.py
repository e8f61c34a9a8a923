"""Keeping the history's sums by day: a periodic task, which any number of workers may carry out at once."""

import logging
import time
from uuid import UUID

from celery import Celery

from core.database.connection import Database, describe_error
from core.ledger import day_sums
from workers.app import SUM_DAYS_TASK

logger = logging.getLogger(__name__)

_TASK_S = 2.0
_FIRST = UUID(int=0)


class DaySummer:
    """Sums what was added to the histories, in short transactions."""

    def __init__(self, database: Database, *, task_s: float = _TASK_S) -> None:
        self._database = database
        self._task_s = task_s
        self._go_on_after = _FIRST

    def work(self) -> None:
        """Sum for a while; what is left is for the next time, which goes on with the next businesses."""
        give_up_at = time.monotonic() + self._task_s
        try:
            is_last_round = self._go_on_after == _FIRST
            while time.monotonic() < give_up_at:
                with self._database.transaction() as connection:
                    due = day_sums.list_due(connection, self._go_on_after)
                if due.few:
                    with self._database.transaction() as connection:
                        day_sums.sum_together(connection, due.few)
                if not self._sum(due.many, give_up_at):
                    return
                self._go_on_after = due.last or _FIRST
                if due.last is None:
                    if is_last_round:
                        return
                    is_last_round = True
        except Exception as error:  # noqa: BLE001 (the next time tries again)
            logger.warning("the sums by day are not kept for now: %s", describe_error(error))

    def _sum(self, business_ids: list[UUID], give_up_at: float) -> bool:
        """Sum the rows of businesses in steps; return whether time was enough for all."""
        for business_id in business_ids:
            is_more = True
            while is_more:
                if time.monotonic() >= give_up_at:
                    return False
                self._go_on_after = business_id
                with self._database.transaction() as connection:
                    is_more = day_sums.sum_next(connection, business_id)
        return True


def register_day_sum_tasks(celery: Celery, summer: DaySummer) -> None:
    """Make the task known to the worker."""

    @celery.task(name=SUM_DAYS_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def sum_days(*_: object, **__: object) -> None:
        summer.work()
