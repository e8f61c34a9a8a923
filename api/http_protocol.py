"""How uvicorn writes to the network: all responses of one turn of the event loop together."""

import logging
from asyncio import AbstractEventLoop, Transport
from typing import Any, cast
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)

HELD_BYTES_MAX = 65_536


class Outbox:
    """The transports of an event loop that hold something; its next turn writes all of it."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._holding: list[GatheringTransport] = []

    def add(self, transport: "GatheringTransport") -> None:
        """Have a transport flushed soon."""
        if not self._holding:
            self._loop.call_soon(self._flush)
        self._holding.append(transport)

    def _flush(self) -> None:
        holding, self._holding = self._holding, []
        for transport in holding:
            try:
                transport.flush()
            except Exception as error:  # noqa: BLE001 (the others' answers must not be lost with it)
                logger.error("a response could not be written: %s", type(error).__name__)
                transport.abort()


class GatheringTransport:
    """Holds what is written until the event loop's next turn.

    uvicorn writes a response's head and body one by one, and the event loop hands each to the kernel at once: two
    calls for each response, and between two responses whoever reads is woken.
    """

    def __init__(self, transport: Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._held: list[bytes] = []
        self._held_bytes = 0

    def __getattr__(self, name: str) -> Any:
        """Do everything else as the transport does."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write soon; at once where much is held, so that a long response goes at its reader's pace."""
        if not self._held:
            self._outbox.add(self)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > HELD_BYTES_MAX:
            self.flush()

    def close(self) -> None:
        """Write what is held, and close."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Write what is held."""
        if not self._held:
            return
        data = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        if not self._transport.is_closing():  # else its reader has gone
            self._transport.write(data)


_outboxes: WeakKeyDictionary[AbstractEventLoop, Outbox] = WeakKeyDictionary()


class HTTPProtocol(HttpToolsProtocol):
    """uvicorn's own, on such transports; its option `--http` names this class."""

    def connection_made(self, transport: Any) -> None:
        """Begin with a connection."""
        outbox = _outboxes.get(self.loop)
        if outbox is None:
            outbox = _outboxes[self.loop] = Outbox(self.loop)
        self._gathering = GatheringTransport(transport, outbox)
        super().connection_made(cast("Transport", self._gathering))

    def eof_received(self) -> None:
        """Write what is held before the loop closes the connection of a caller that sends nothing more."""
        self._gathering.flush()
