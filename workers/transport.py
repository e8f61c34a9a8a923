"""Celery's Redis transport, made to survive what others write to its queue, and to cost less."""

import logging
import time
from typing import Any

import msgspec
from kombu.transport import redis, virtual

from core import metrics

SENT_AT_HEADER = "payouts_sent_at_us"
"""When a message was sent: microseconds since 1970 by the broker's clock, which is one for all who send and look."""
_CLOCK_FRESH_FOR_S = 10.0

logger = logging.getLogger(__name__)


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


class Channel(redis.Channel):
    """kombu's channel; its own ends the worker over what is no message, and makes a client for each that it sends."""

    Message = Message
    _publishing_client: Any = None
    _clock_offset_us = 0
    _clock_read_at = float("-inf")

    def read_oldest_age_s(self, queue: str) -> float | None:
        """Return how long ago the message was sent that is taken next; 0 without one, None where it does not say."""
        keys = [self._q_for_pri(queue, priority) for priority in self.priority_steps]  # type: ignore[no-untyped-call]
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
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

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Send a message, and in it the time."""
        if isinstance(headers := message.get("headers"), dict):
            headers[SENT_AT_HEADER] = self._broker_time_us()
        super()._put(queue, message, **kwargs)  # type: ignore[no-untyped-call]

    def _broker_time_us(self) -> int:
        """Return the broker's time; it is asked now and then, since its clock may be set."""
        now = time.monotonic()
        if now - self._clock_read_at > _CLOCK_FRESH_FOR_S:
            with self.conn_or_acquire() as client:
                seconds, microseconds = client.time()
            self._clock_offset_us = seconds * 1_000_000 + microseconds - time.monotonic_ns() // 1000
            self._clock_read_at = now
        return time.monotonic_ns() // 1000 + self._clock_offset_us

    def _create_client(self, asynchronous: bool = False) -> Any:
        """Return a client for what a caller is about to do; for sending, always the same one."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        if self._publishing_client is None:
            self._publishing_client = super()._create_client()  # type: ignore[no-untyped-call]
        return self._publishing_client

    def _brpop_read(self, **options: Any) -> Any:
        """Receive one message; drop what is none, and keep its content out of the log."""
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (UnreadableMessageError, ValueError, RecursionError) as error:
            logger.error("a message was dropped: %s", type(error).__name__)
            metrics.MESSAGES_DROPPED.inc()
            return True


def _read_sent_at_us(message: bytes) -> int | None:
    try:
        return _envelope_decoder.decode(message).headers.payouts_sent_at_us
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Transport(redis.Transport):
    """Redis or Valkey as the broker."""

    Channel = Channel
