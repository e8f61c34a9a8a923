"""Celery's RabbitMQ transport, made to wait for a bounded time, and to log no stack trace where a connection breaks."""

import select
import socket
from logging import Logger
from typing import Any

from amqp.exceptions import AMQPError, RecoverableConnectionError
from kombu.transport import pyamqp

_BROKEN = (OSError, AMQPError)
_ANSWER_WITHIN_S = 5.0
"""A quorum queue has no leader for a moment after its node was killed, and consumers have to wait for it."""


class _BoundedWait:
    """Waits for the broker's answer for a bounded time; afterwards the connection is of no use."""

    connection: Any

    def wait(self, method: Any, callback: Any = None, timeout: float | None = None, returns_tuple: bool = False) -> Any:
        """Wait for one of some methods."""
        connection = self.connection
        try:
            return super().wait(method, callback, timeout or _ANSWER_WITHIN_S, returns_tuple)  # type: ignore[misc]
        except TimeoutError:
            connection.collect()
            raise RecoverableConnectionError("no answer") from None  # noqa: EM101


class Message(pyamqp.Message):
    """A message that may turn out to have come over a connection that is no more."""

    @property
    def was_delivered_before(self) -> bool:
        """Whether somebody may have had it, who did not acknowledge it."""
        return bool((self.delivery_info or {}).get("redelivered"))

    def ack_log_error(self, logger: Logger, errors: Any, multiple: bool = False) -> None:  # noqa: ARG002
        """Acknowledge; where that fails, the message comes again, and is dropped then."""
        try:
            self.ack(multiple=multiple)  # type: ignore[no-untyped-call]
        except _BROKEN as error:
            logger.warning("a message could not be acknowledged: %s", type(error).__name__)

    def reject_log_error(self, logger: Logger, errors: Any, requeue: bool = False) -> None:  # noqa: ARG002
        """Refuse for good; where that fails, the message comes again, and is refused then."""
        try:
            self.reject(requeue=requeue)  # type: ignore[no-untyped-call]
        except _BROKEN as error:
            logger.warning("a message could not be refused: %s", type(error).__name__)


class Channel(_BoundedWait, pyamqp.Channel):
    """A channel on which publishing ends."""

    Message = Message

    def basic_publish_confirm(self, *args: Any, **kwargs: Any) -> Any:
        """Publish, and wait until the broker has it; a half-sent message must not be followed by another."""
        connection = self.connection
        if connection is None:
            raise RecoverableConnectionError("connection closed")  # noqa: EM101
        kwargs["timeout"] = kwargs["confirm_timeout"] = connection.connect_timeout
        try:
            return super().basic_publish_confirm(*args, **kwargs)
        except _BROKEN:
            connection.collect()
            raise


class Connection(_BoundedWait, pyamqp.Connection):
    """A connection that ends in time."""

    Channel = Channel


class Transport(pyamqp.Transport):
    """RabbitMQ as the broker."""

    Connection = Connection
    client: Any

    def verify_connection(self, connection: Any) -> bool:
        """Tell whether a connection stands: what is published on one that the broker has closed would be lost."""
        if connection.connected and _is_hung_up(connection.sock):
            connection.collect()
        return bool(connection.connected)

    def establish_connection(self) -> Any:
        """Connect; the certificate must name the host, whichever of several nodes it is."""
        tls = self.client.ssl
        if tls:
            others = {name: value for name, value in tls.items() if name != "checks_hostname"}
            # Without a name py-amqp checks none.
            self.client.ssl = others | ({"server_hostname": self.client.hostname} if tls["checks_hostname"] else {})
        try:
            return super().establish_connection()  # type: ignore[no-untyped-call]
        finally:
            self.client.ssl = tls


def _is_hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, getattr(select, "POLLRDHUP", select.POLLHUP))
    return bool(poll.poll(0))
