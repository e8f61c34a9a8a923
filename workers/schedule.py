"""Sending the periodic tasks: what cannot be sent is one line in the log, and is sent the next time."""

import logging
from typing import Any

from celery.beat import ScheduleEntry, Scheduler

logger = logging.getLogger(__name__)


class PeriodicTasks(Scheduler):  # type: ignore[misc]
    """Celery's scheduler without a file; its own logs stack traces while the broker is gone."""

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        """Send a task that is due."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
            logger.warning("%s could not be sent: %s", entry.task, type(error).__name__)
