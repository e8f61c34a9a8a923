"""Celery's remote control: workers answer questions, and obey no orders.

Otherwise anybody who can write to the broker could shut workers down, or make them drop tasks or consume other queues.
The questions are those of Flower and `celery inspect ping`.
"""

import logging
from collections.abc import Mapping
from typing import Any

from celery.worker import pidbox
from celery.worker.consumer import control
from kombu.message import Message

from core import metrics

logger = logging.getLogger(__name__)

QUESTIONS = frozenset({"ping", "stats", "active_queues", "registered", "scheduled", "active", "reserved", "revoked"})


class _Pidbox(pidbox.Pidbox):  # type: ignore[misc]
    """A worker's mailbox that lets questions through, without their arguments."""

    def on_message(self, body: object, message: Message) -> None:
        method = body.get("method") if isinstance(body, Mapping) else None
        if not isinstance(method, str) or method not in QUESTIONS:
            _note_dropped("it is no question that a worker answers")
            return
        self._forward_clock()
        try:
            self.node.handle_message({**body, "arguments": {}}, message)  # type: ignore[dict-item]
        except Exception as error:  # noqa: BLE001 (no message may end the worker, and its content is not logged)
            _note_dropped(type(error).__name__)
            self.reset()


class Control(control.Control):  # type: ignore[misc]
    """The step of Celery's consumer that listens to the mailbox."""

    name = "Control"

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self.box = _Pidbox(consumer)
        self.start, self.stop, self.shutdown = self.box.start, self.box.stop, self.box.shutdown


def _note_dropped(reason: str) -> None:
    metrics.MESSAGES_DROPPED.inc()
    logger.error("a message of remote control was dropped: %s", reason)
