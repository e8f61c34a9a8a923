"""Celery's Redis transport, made to survive what others write to its queue, and to cost less."""

import logging
from typing import Any

from kombu.transport import redis, virtual

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


class Channel(redis.Channel):
    """kombu's channel; its own ends the worker over what is no message, and makes a client for each that it sends."""

    Message = Message
    _publishing_client: Any = None

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
            return True


class Transport(redis.Transport):
    """Redis or Valkey as the broker."""

    Channel = Channel
