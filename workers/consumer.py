"""Receiving messages: what is not ours is dropped, whatever is wrong with it, and its content stays out of the log."""

import logging
from collections.abc import Callable
from typing import Any

from celery.worker import consumer
from kombu.message import Message

from core import metrics

logger = logging.getLogger(__name__)


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Celery's consumer; its own logs bodies, and ends the worker over a body that it cannot unpack."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Wrap Celery's handler of one message."""
        handle = super().create_task_handler(*args, **kwargs)

        def handle_or_drop(message: Message) -> None:
            try:
                handle(message)
            except (*self.connection_errors, *self.channel_errors):
                raise  # Celery connects again
            except Exception as error:  # noqa: BLE001 (no message may end the worker)
                self._drop(message, type(error).__name__)

        return handle_or_drop

    def on_unknown_message(self, body: object, message: Message) -> None:  # noqa: ARG002
        """Drop what is no task."""
        self._drop(message, "it is no task")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002
        """Drop a task that we do not have."""
        self._drop(message, "its task is unknown")

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002
        """Drop a task whose content type or arguments are refused."""
        self._drop(message, type(exc).__name__)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Drop what cannot be decoded."""
        self._drop(message, type(exc).__name__)

    def _drop(self, message: Message, reason: str) -> None:
        logger.error("a message was dropped: %s", reason)
        metrics.MESSAGES_DROPPED.inc()
        if not message.acknowledged:
            message.reject_log_error(logger, self.connection_errors)  # type: ignore[no-untyped-call]
