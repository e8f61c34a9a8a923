"""Celery's Redis transport, made to survive what others write to its queue, to deliver once, and to cost less."""

import logging
import time
from typing import Any

import msgspec
from kombu.transport import redis, virtual
from kombu.utils.json import dumps
from redis.exceptions import ResponseError

from core import metrics
from workers.app import BATCHES_QUEUE, QUEUE

SENT_AT_HEADER = "payouts_sent_at_us"
"""When a message was sent: microseconds since 1970 by the broker's clock, which is one for all who send and look."""
_CLOCK_FRESH_FOR_S = 10.0

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


class _Headers(msgspec.Struct):
    payouts_sent_at_us: int | None = None


class _Envelope(msgspec.Struct):
    headers: _Headers


_envelope_decoder = msgspec.json.Decoder(_Envelope)


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
    _clock_offset_us = 0
    _clock_read_at = float("-inf")

    def read_oldest_age_s(self, queue: str) -> float | None:
        """Return how long ago the message was sent that is taken next; 0 without one, None where it does not say."""
        keys = [self._q_for_pri(queue, priority) for priority in self.priority_steps]  # type: ignore[attr-defined]
        with (
            self.conn_or_acquire() as client,  # type: ignore[attr-defined]
            client.pipeline(transaction=False) as pipeline,
        ):
            pipeline.time()
            for key in keys:
                pipeline.lindex(key, -1)
            (seconds, microseconds), *oldest = pipeline.execute()
        now_us = seconds * 1_000_000 + microseconds
        sent_at_us = [_read_sent_at_us(message) for message in oldest if message is not None]
        known = [each for each in sent_at_us if each is not None]
        if len(known) < len(sent_at_us):
            return None
        return max(now_us - min(known), 0) / 1_000_000 if known else 0.0

    def _broker_time_us(self) -> int:
        """Return the broker's time; it is asked now and then, since its clock may be set."""
        now = time.monotonic()
        if now - self._clock_read_at > _CLOCK_FRESH_FOR_S:
            with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
                seconds, microseconds = client.time()
            self._clock_offset_us = seconds * 1_000_000 + microseconds - time.monotonic_ns() // 1000
            self._clock_read_at = now
        return time.monotonic_ns() // 1000 + self._clock_offset_us

    def _connparams(self, asynchronous: bool = False) -> Any:
        """Say how to connect."""
        parameters = super()._connparams(asynchronous)  # type: ignore[misc]
        return parameters | ({"redis_connect_func": _connect_for_receiving} if asynchronous else {})

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        """Send one message, and in it the time; where nobody takes them, keep the newest."""
        if isinstance(headers := message.get("headers"), dict):
            headers[SENT_AT_HEADER] = self._broker_time_us()
        if queue not in {QUEUE, BATCHES_QUEUE}:
            super()._put(queue, message, **kwargs)  # type: ignore[misc]
            return
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))  # type: ignore[attr-defined]
        with self._create_client().pipeline(transaction=False) as pipeline:
            pipeline.lpush(key, dumps(message))  # type: ignore[no-untyped-call]
            pipeline.ltrim(key, 0, MESSAGES_MAX - 1)
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
            metrics.MESSAGES_DROPPED.inc()
            return True


def _read_sent_at_us(message: bytes) -> int | None:
    try:
        return _envelope_decoder.decode(message).headers.payouts_sent_at_us
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


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
