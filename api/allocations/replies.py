"""Receiving the workers' replies: one pattern subscription for everything this process ever sends."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from redis.asyncio import Redis

from core import metrics
from core.logging.fields import about
from core.messages import GroupCodec, Reply
from core.sealing import ForgeryError
from workers.app import RESULT_KEY_PREFIX

logger = logging.getLogger(__name__)

_PING_AFTER_S = 1.0
_RECONNECT_AFTER_S = 0.05


class _TaskResult(msgspec.Struct):
    """What Celery stores and publishes when a task has ended."""

    status: str
    result: Any = None


_decoder = msgspec.json.Decoder(_TaskResult)
Told = Reply | None
"""The reply; None where a worker dropped the group, or answers what only a newer process understands."""


class Replies:
    """Tells each reply to whoever expects it. Only what a worker sealed for the task is a reply."""

    def __init__(self, client: Redis, codec: GroupCodec, instance_prefix: str) -> None:
        self._client = client
        self._codec = codec
        self._pattern = f"{RESULT_KEY_PREFIX}{instance_prefix}*"
        self._expected: dict[str, Callable[[Told], None]] = {}
        self.subscribed = asyncio.Event()

    def expect(self, task_id: str, tell: Callable[[Told], None]) -> None:
        """Have a task's reply told as soon as it comes, once; call it before the task is published."""
        self._expected[RESULT_KEY_PREFIX + task_id] = tell

    def expect_later(self, task_id: str) -> asyncio.Future[Told]:
        """Return a future for a task's reply; call it before the task is published."""
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self.expect(task_id, lambda reply: None if future.done() else future.set_result(reply))
        return future

    def forget(self, task_id: str) -> None:
        """Wait for a task no longer."""
        self._expected.pop(RESULT_KEY_PREFIX + task_id, None)

    async def listen(self) -> None:
        """Receive replies for ever, over any number of lost connections."""
        while True:
            reason = "no answer to a ping"
            try:
                await self._listen_once()
            except Exception as error:  # noqa: BLE001 (without replies, every call waits for its deadline)
                reason = type(error).__name__
            if self.subscribed.is_set():
                self.subscribed.clear()
                metrics.SUBSCRIPTION_LOSSES.inc()
                logger.warning("the reply subscription was lost (%s); trying again until it is back", reason)
            await asyncio.sleep(_RECONNECT_AFTER_S)

    async def _listen_once(self) -> None:
        """Receive until the connection breaks or a ping stays without an answer."""
        async with self._client.pubsub() as subscription:
            await subscription.psubscribe(self._pattern)
            pinged = False
            while True:
                message = await subscription.get_message(timeout=_PING_AFTER_S)
                if message is None:
                    if pinged:
                        return
                    await subscription.ping()
                    pinged = True
                    continue
                pinged = False
                if message["type"] == "pmessage":
                    self._receive(_text(message["channel"]), message["data"])
                elif message["type"] == "psubscribe":
                    # Also after redis-py reconnected silently; what came in between was not delivered.
                    await self._fetch_missed()
                    self.subscribed.set()

    async def _fetch_missed(self) -> None:
        keys = list(self._expected)
        if not keys:
            return
        for key, data in zip(keys, await self._client.mget(keys), strict=True):
            if data is not None:
                self._receive(key, data)

    def _receive(self, key: str, data: bytes | str) -> None:
        """Tell a reply; go on expecting it where this is none."""
        if key not in self._expected:
            return
        task_id = key.removeprefix(RESULT_KEY_PREFIX)
        try:
            told = self._open(data, task_id)
        except ForgeryError as error:
            metrics.FORGERIES.labels("reply").inc()
            text = "a reply was dropped: %s; a worker of the release before does not seal its replies"
            logger.error(text, error, extra=about(task_id=task_id))
            return
        self._expected.pop(key)(told)

    def _open(self, data: bytes | str, task_id: str) -> Told:
        try:
            task = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            text = "it is no task's result"
            raise ForgeryError(text) from None
        # A task that failed as a whole decides nothing, whoever says so.
        return None if task.result is None or task.status != "SUCCESS" else self._codec.open_reply(task.result, task_id)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
