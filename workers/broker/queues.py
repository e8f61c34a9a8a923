"""Looking at the queues without taking part: how many messages wait, and since when."""

from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu.connection import Connection

from workers.app import BATCHES_QUEUE, QUEUE

QUEUES = (QUEUE, BATCHES_QUEUE)
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """How many messages wait, and how old the oldest is: 0 where there is none, None where it cannot be told."""

    queue: str
    messages: int
    oldest_age_s: float | None


class QueueWatch:
    """Looks at the queues over a connection of its own; for one thread."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery
        # RabbitMQ's own would wait for a broker that hangs as long as that takes; Redis has its limits in the settings.
        is_amqp = str(celery.conf.broker_url).startswith("amqp")
        self._timeouts = {"read_timeout": _TIMEOUT_S, "write_timeout": _TIMEOUT_S} if is_amqp else {}
        self._connection: Connection | None = None

    def look(self) -> list[QueueState]:
        """Return the state of each queue that there is; raises whatever error the transport has."""
        try:
            if self._connection is None:
                self._connection = self._celery.connection_for_read(transport_options=self._timeouts)
            return [state for queue in QUEUES if (state := self._look_at(self._connection, queue)) is not None]
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()  # type: ignore[no-untyped-call]

    def _look_at(self, connection: Connection, queue: str) -> QueueState | None:
        channel: Any = connection.default_channel
        read_age_s = getattr(channel, "read_oldest_age_s", None)  # our transport's, on Redis
        try:
            messages = channel.queue_declare(queue=queue, passive=True).message_count
        except connection.channel_errors:
            # Redis forgets an empty queue; on another broker, nobody has declared it yet.
            return None if read_age_s is None else QueueState(queue, 0, 0.0)
        if read_age_s is not None:
            return QueueState(queue, messages, read_age_s(queue))
        return QueueState(queue, messages, 0.0 if messages == 0 else None)
