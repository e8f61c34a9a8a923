"""Celery's Redis transport, made to survive what others write to its queue, to deliver once, and to cost less."""

import logging
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.json import dumps
from redis.exceptions import ResponseError

from workers.app import BATCHES_QUEUE, QUEUE

logger = logging.getLogger(__name__)

MESSAGES_MAX = 1_000
"""In a queue; beyond, the oldest are dropped. They pile up while no worker runs, and are past their deadlines then."""
_SERVER_KEY = "payouts:queue:server"

# A server that comes back from its disk, or takes over as a replica, may still have messages that were taken already:
# which is so where it is not the one that was consumed from before.
_DISCARD_TAKEN = """
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local before = redis.call('GET', KEYS[2])
if before == server then
    return 0
end
redis.call('SET', KEYS[2], server)
if not before then
    return 0
end
local count = redis.call('LLEN', KEYS[1])
redis.call('DEL', KEYS[1])
return count
"""


class UnreadableMessageError(Exception):
    """A JSON document on the queue is no message."""


class Message(virtual.Message):
    """A message whose envelope may be anything."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)  # type: ignore[no-untyped-call]
        except Exception:  # noqa: BLE001 (Celery takes a KeyError, say, for a lost connection)
            raise UnreadableMessageError from None


def _connect_for_receiving(connection: Any) -> None:
    """Introduce ourselves to a server; first of all, discard what another one's consumers may have taken."""
    connection.on_connect()
    connection.send_command("EVAL", _DISCARD_TAKEN, 2, QUEUE, _SERVER_KEY, check_health=False)
    try:
        count = connection.read_response()
    except ResponseError as error:
        logger.error("a restarted broker may deliver messages again: %s", type(error).__name__)
        return
    if count:
        logger.warning("the broker is another one, or was restarted: %d messages of before were dropped", count)


class _ChannelMixin:
    """Changes to kombu's channel; its own ends the worker over what is no message, and makes a client for each that
    it sends."""

    Message = Message
    _publishing_client: Any = None

    def _connparams(self, asynchronous: bool = False) -> Any:
        """Say how to connect."""
        parameters = super()._connparams(asynchronous)  # type: ignore[misc]
        return parameters | ({"redis_connect_func": _connect_for_receiving} if asynchronous else {})

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        """Send one message; where nobody takes them, keep the newest."""
        if queue not in {QUEUE, BATCHES_QUEUE}:
            super()._put(queue, message, **kwargs)  # type: ignore[misc]
            return
        with self._create_client().pipeline(transaction=False) as pipeline:
            pipeline.lpush(queue, dumps(message))  # type: ignore[no-untyped-call]
            pipeline.ltrim(queue, 0, MESSAGES_MAX - 1)
            pipeline.execute()

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return a client for what a caller is about to do; for sending, always the same one."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]
        if self._publishing_client is None:
            self._publishing_client = super()._create_client()  # type: ignore[misc]
        return self._publishing_client

    def _brpop_read(self, **options: Any) -> Any:
        """Receive one message; drop what is none, and keep its content out of the log."""
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except (UnreadableMessageError, ValueError, RecursionError) as error:
            logger.error("a message was dropped: %s", type(error).__name__)
            return True


class Channel(_ChannelMixin, redis.Channel):
    """A channel of Redis or Valkey."""


class SentinelChannel(_ChannelMixin, redis.SentinelChannel):
    """A channel of the Redis that Sentinels name."""


class Transport(redis.Transport):
    """Redis or Valkey as the broker."""

    Channel = Channel


class SentinelTransport(redis.SentinelTransport):
    """Redis behind Sentinels as the broker."""

    Channel = SentinelChannel
