"""How uvicorn reads requests, and writes responses: all of one turn of the event loop together."""

import logging
from asyncio import AbstractEventLoop, Transport
from http import HTTPStatus
from typing import Any, cast
from weakref import WeakKeyDictionary

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.web.responses import BAD_REQUEST, HEAD_TOO_LARGE, Refusal
from core.ids import new_id

logger = logging.getLogger(__name__)

HELD_BYTES_MAX = 65_536
HEAD_BYTES_MAX = 65_536

_LINGER_S = 1.0
_BYTES_AROUND_HEADER = len(": \r\n")
_FRAMING = (b"content-length", b"transfer-encoding")


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


class _HeadTooLargeError(Exception):
    """A request's line and headers are longer than may be."""


class HTTPProtocol(HttpToolsProtocol):
    """uvicorn's own, on such transports; its option `--http` names this class.

    Different is, besides: what is not HTTP is refused only behind the answers that are owed for what came before it;
    offers of another protocol are ignored, trailers are no headers, and a request's head has a limit.
    """

    _pending_bytes = 0
    """Received since the last head or piece of a body; at most, since a segment holds several."""
    _is_repeating = False
    _refusal: Refusal | None = None
    _begun: RequestResponseCycle | None = None
    """What the application was given last: of several requests on the way, the one that it works on."""

    def connection_made(self, transport: Any) -> None:
        """Begin with a connection."""
        outbox = _outboxes.get(self.loop)
        if outbox is None:
            outbox = _outboxes[self.loop] = Outbox(self.loop)
        self._gathering = GatheringTransport(transport, outbox)
        super().connection_made(cast("Transport", self._gathering))

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        self._pending_bytes += len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._go_on(memoryview(data)[offer.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(HEAD_TOO_LARGE if isinstance(error.__context__, _HeadTooLargeError) else BAD_REQUEST)
            return
        if self._pending_bytes > HEAD_BYTES_MAX:
            self._refuse(HEAD_TOO_LARGE)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection of a caller that sends nothing more until it has all answers."""
        self._gathering.flush()
        newest = self._newest_unanswered()
        if newest is not None and newest.more_body and self.pipeline:
            newest = self._drop_newest()
        if newest is None or newest.more_body or self.scheme == "https":
            return False
        if self._refusal is None:  # else the connection ends with that
            newest.keep_alive = False
        return True

    def on_headers_complete(self) -> None:
        """Have a request answered; its body may be still to come."""
        if self._is_repeating:
            return
        if self._pending_bytes > HEAD_BYTES_MAX and self._count_head_bytes() > HEAD_BYTES_MAX:
            raise _HeadTooLargeError
        super().on_headers_complete()
        self._pending_bytes = 0
        # Trailers end up here, and nowhere else: they are no headers (RFC 9110, 6.5.1).
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._pending_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Go on with the next request, or with the refusal of what came in its place."""
        is_last = not self.pipeline
        super().on_response_complete()
        if is_last and self._refusal is not None:
            self._send_refusal(self._refusal)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._begun = cycle
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        return False

    def _go_on(self, rest: memoryview) -> None:
        """Read on behind a request that offers another protocol, where its parser has stopped.

        An offer that is not taken up is ignored (RFC 9110, 7.8): a new parser begins with what tells it the request's
        length, and goes on from there.
        """
        while True:
            # The parser took the request's body, which is still to come, for the other protocol.
            self.cycle.more_body = True
            self.cycle.message_event.clear()
            lines = [f"POST / HTTP/{self.scope['http_version']}".encode()]
            lines += [b"%b: %b" % header for header in self.scope["headers"] if header[0] in _FRAMING]
            if not self.cycle.keep_alive:
                lines.append(b"connection: close")
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self._is_repeating = True
            self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))
            self._is_repeating = False
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]
            else:
                return

    def _count_head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + _BYTES_AROUND_HEADER for name, value in self.headers)

    def _refuse(self, refusal: Refusal) -> None:
        """Read no further; answer what came before, then this.

        Who reads a refusal must be able to take it for the answer to the first request that has no other: were it
        written while a payment is under way, it would be taken for the payment's.
        """
        self._refusal = refusal
        newest = self._newest_unanswered()
        if newest is not None and newest.more_body:  # then what is refused is its body
            if self.pipeline:
                newest = self._drop_newest()
            else:
                newest.disconnected = True
                newest.waiting_for_100_continue = False
                newest.message_event.set()
                if newest.response_started:
                    self.transport.close()
                newest = None
        if newest is None:
            self._send_refusal(refusal)

    def _drop_newest(self) -> RequestResponseCycle:
        """Forget a request that has not begun; return the one before it."""
        self.pipeline.popleft()
        assert self._begun is not None  # noqa: S101 (it keeps the others waiting)
        self.cycle = self.pipeline[0][0] if self.pipeline else self._begun
        return self.cycle

    def _newest_unanswered(self) -> RequestResponseCycle | None:
        """Return the request that is answered last, unless all are answered."""
        newest = cast("RequestResponseCycle | None", self.cycle)
        return None if newest is None or newest.response_complete else newest

    def _send_refusal(self, refusal: Refusal) -> None:
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        request_id = new_id().hex
        status = HTTPStatus(refusal.status_code)
        logger.info("what is no HTTP request was answered %d", status, extra={"request_id": request_id})
        content = msgspec.json.encode({"error": refusal.error})
        head = [
            f"HTTP/1.1 {status} {status.phrase}",
            "content-type: application/json",
            f"content-length: {len(content)}",
            f"x-request-id: {request_id}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + content)
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        # A caller that still sends would be reset, and lose what it has not read yet.
        self._gathering.flush()
        self.transport.write_eof()
        self._unset_keepalive_if_required()
        self.loop.call_later(_LINGER_S, self.transport.close)
