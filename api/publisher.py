"""Sending batches to the workers, off the event loop: a dead broker must not freeze it."""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from celery import Celery

from core.ids import new_id
from core.messages import Allocation, BatchCodec
from workers.app import ALLOCATE_TASK

logger = logging.getLogger(__name__)


def make_instance_prefix() -> str:
    """Return the start of all task ids of one API process, by which it knows its replies."""
    return f"api-{secrets.token_hex(8)}-"


class Publisher:
    """Publishes batches as Celery tasks whose ids begin with this process's own prefix.

    RabbitMQ drops a batch that nobody took for `expires_after_s`, by when its deadline has passed.
    """

    def __init__(
        self,
        celery: Celery,
        codec: BatchCodec,
        instance_prefix: str,
        *,
        threads: int,
        expires_after_s: float | None = None,
    ) -> None:
        self._celery = celery
        self._codec = codec
        self._instance_prefix = instance_prefix
        self._expires_after_s = expires_after_s
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="publish")

    def make_task_id(self) -> str:
        """Return a task id never used before: a result is published only once for each."""
        return self._instance_prefix + new_id().hex

    async def publish(self, task_id: str, allocations: Sequence[Allocation]) -> None:
        """Send a batch. An error is only logged: it does not mean that the batch was not sent."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._executor, self._send, task_id, allocations)
        except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
            logger.warning("a batch of %d may not have been sent: %s", len(allocations), type(error).__name__)

    def _send(self, task_id: str, allocations: Sequence[Allocation]) -> None:
        businesses = len({allocation.business_id for allocation in allocations})
        self._celery.send_task(
            ALLOCATE_TASK,
            args=[self._codec.seal(allocations)],
            task_id=task_id,
            argsrepr=f"{len(allocations)} allocations, {businesses} businesses",
            kwargsrepr="{}",
            expiration=self._expires_after_s,
        )

    def close(self) -> None:
        """Let go of threads and broker connections."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._celery.close()
