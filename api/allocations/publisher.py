"""Sending groups to the workers, off the event loop: a dead broker must not freeze it."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from celery import Celery

from core import metrics
from core.ids import new_id
from core.logging.fields import about, name_allocations
from core.messages import Allocation, GroupCodec
from workers.app import ALLOCATE_TASK, NAMES_HEADER, QUEUE

logger = logging.getLogger(__name__)


def make_instance_prefix() -> str:
    """Return the start of all task ids of one API process, by which it knows its replies."""
    return f"api-{secrets.token_hex(8)}-"


class Publisher:
    """Publishes groups as Celery tasks whose ids begin with this process's own prefix.

    RabbitMQ drops a group that nobody took for `expires_after_s`, by when its deadline has passed.
    """

    def __init__(
        self,
        celery: Celery,
        codec: GroupCodec,
        instance_prefix: str,
        *,
        threads: int,
        expires_after_s: float | None = None,
    ) -> None:
        self._celery = celery
        self._codec = codec
        self._instance_prefix = instance_prefix
        self.take_span: Callable[[], Any] | None = None
        """Returns the span of the call that is being served, where there are traces."""
        self._continue_traces: Callable[[Sequence[Any]], AbstractContextManager[None]] = lambda _: nullcontext()
        self._expires_after_s = expires_after_s
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="publish")

    def make_task_id(self) -> str:
        """Return a task id never used before: a result is published only once for each."""
        return self._instance_prefix + new_id().hex

    def trace(
        self, take_span: Callable[[], Any], continue_traces: Callable[[Sequence[Any]], AbstractContextManager[None]]
    ) -> None:
        """Have groups continue the traces of their calls."""
        self.take_span = take_span
        self._continue_traces = continue_traces

    def begin(self, task_id: str, allocations: Sequence[Allocation], spans: Sequence[Any] = ()) -> Future[None]:
        """Begin to send a group. An error is only logged: it does not mean that the group was not sent."""
        try:
            return self._executor.submit(self._try_to_send, task_id, allocations, spans)
        except RuntimeError as error:  # no thread can be started, or the process ends
            _note_failure(task_id, allocations, error)
            nothing: Future[None] = Future()
            nothing.set_result(None)
            return nothing

    async def publish(self, task_id: str, allocations: Sequence[Allocation]) -> None:
        """Send a group so, and wait until that was tried."""
        await asyncio.wrap_future(self.begin(task_id, allocations))

    def _try_to_send(self, task_id: str, allocations: Sequence[Allocation], spans: Sequence[Any]) -> None:
        try:
            self._send(task_id, allocations, QUEUE, spans)
        except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
            _note_failure(task_id, allocations, error)

    def send_empty(self, task_id: str, queue: str) -> None:
        """Send a group of nothing to a queue: who carries it out consumes, and can open our messages."""
        self._send(task_id, (), queue=queue)

    def _send(
        self, task_id: str, allocations: Sequence[Allocation], queue: str = QUEUE, spans: Sequence[Any] = ()
    ) -> None:
        with self._continue_traces(spans):
            self._send_task(task_id, allocations, queue)

    def _send_task(self, task_id: str, allocations: Sequence[Allocation], queue: str) -> None:
        businesses = len({allocation.business_id for allocation in allocations})
        self._celery.send_task(
            ALLOCATE_TASK,
            args=[self._codec.seal(allocations, task_id)],
            task_id=task_id,
            queue=queue,
            argsrepr=f"{len(allocations)} allocation{'s' if len(allocations) != 1 else ''}, "
            f"{businesses} business{'es' if businesses != 1 else ''}",
            kwargsrepr="{}",
            # For the log of a worker that cannot open the message.
            headers={NAMES_HEADER: name_allocations(allocations)},
            expiration=self._expires_after_s,
        )

    def close(self) -> None:
        """Let go of threads and broker connections."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._celery.close()


def _note_failure(task_id: str, allocations: Sequence[Allocation], error: Exception) -> None:
    metrics.PUBLISH_ERRORS.inc()
    logger.warning(
        "a group of %d may not have been sent: %s",
        len(allocations),
        type(error).__name__,
        extra=about(error=error, allocations=allocations, task_id=task_id),
    )
