"""Receiving messages: what is not ours is dropped, whatever is wrong with it, and its content stays out of the log."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from celery.exceptions import WorkerShutdown
from celery.worker import consumer
from celery.worker.consumer.delayed_delivery import DelayedDelivery
from kombu.message import Message

from core import metrics
from core.logging.fields import NAMED_MAX
from core.logging.masking import holds_secret
from workers.app import NAMES_HEADER
from workers.broker.remote_control import Control
from workers.startup import describe_refusal

logger = logging.getLogger(__name__)

_CONNECT_AGAIN_AFTER_S = 1.0


_TASK_ID = re.compile(r"api-[0-9a-f]{16}-[0-9a-f]{32}\Z")
_ALLOCATION_ID = re.compile(r"txn_[0-9a-f]{32}\Z")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:=;/+@-]{1,128}\Z")


def names_in(headers: object) -> dict[str, Any]:
    """Return what a message's headers say of its allocations; they may be anybody's, so only what looks like ours."""
    if not isinstance(headers, Mapping):
        return {}
    names = headers.get(NAMES_HEADER)
    names = names if isinstance(names, Mapping) else {}
    task_id, count = headers.get("id"), names.get("allocations")
    return {
        "task_id": task_id if _fits(_TASK_ID, task_id) else None,
        "allocations": count if isinstance(count, int) else None,
        "allocation_ids": _those_that_fit(_ALLOCATION_ID, names.get("allocation_ids")),
        "request_ids": _those_that_fit(_REQUEST_ID, names.get("request_ids")),
    }


def _those_that_fit(pattern: re.Pattern[str], values: object) -> list[object]:
    return [each for each in values if _fits(pattern, each)][:NAMED_MAX] if isinstance(values, list) else []


def _fits(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.match(value) is not None and not holds_secret(value)


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Celery's consumer; its own logs bodies, and ends the worker over a body that it cannot unpack."""

    class Blueprint(consumer.Consumer.Blueprint):  # type: ignore[misc]
        """Celery's steps, without the one that makes 28 queues for tasks with a time, and with our remote control."""

        default_steps = tuple(
            Control if step.endswith(f":{Control.__name__}") else step
            for step in consumer.Consumer.Blueprint.default_steps
            if not step.endswith(f":{DelayedDelivery.__name__}")
        )

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, trying again every second, not less and less often; end where trying again cannot help."""
        ensure_connection = conn.ensure_connection

        def ensure(errback: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
            def report(error: BaseException, interval_s: float) -> None:
                _end_if_refused(error)
                errback(error, interval_s)

            return ensure_connection(report, *args, interval_start=_CONNECT_AGAIN_AFTER_S, interval_step=0, **kwargs)

        conn.ensure_connection = ensure
        try:
            return super().ensure_connected(conn)
        except Exception as error:
            _end_if_refused(error)
            raise

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Wrap Celery's handler of one message."""
        handle = super().create_task_handler(*args, **kwargs)

        def handle_or_drop(message: Message) -> None:
            if getattr(message, "was_delivered_before", False):
                # It may have been carried out, and a refusal of it been answered. Whoever sent it sends it again.
                self._drop(message, "it was delivered before")
                return
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
        metrics.MESSAGES_DROPPED.inc()
        logger.error("a message was dropped: %s", reason, extra={"fields": names_in(message.headers)})
        if not message.acknowledged:
            message.reject_log_error(logger, self.connection_errors)  # type: ignore[no-untyped-call]


def _end_if_refused(error: BaseException) -> None:
    """End the worker where the broker does not let us in, or cannot be trusted."""
    if refusal := describe_refusal(error):
        logger.critical("%s", refusal)
        raise WorkerShutdown(1)
