"""One line for each request, and the id by which it is found in every log.

The line is made in the log's thread. A request costs its caller the noting of what will be in it.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec
from litestar.types import ASGIApp, Message, Receive, Send

from api.request_id import NAME, choose_request_id
from core.ids import IdKind, format_id
from core.logs import LineFormatter, LineWriter, format_time

_KEY = "payouts.request"
_ID = re.compile(rf"(?:{'|'.join(IdKind)})_[0-9a-f]{{32}}\Z")
_PROBES = ("/health/live", "/health/ready")
_HIDDEN = "…"
_OUTCOME_BY_STATUS = {
    400: "invalid",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    429: "too_many_requests",
}


class RequestNote(msgspec.Struct, gc=False):
    """What is noted about a request while it is served."""

    id: str
    own_id: UUID | None
    """What `id` is the hex of, where it is ours."""
    duration_s: float = 0.0
    time: float = 0.0
    method: str = ""
    path: str = ""
    route: str | None = None
    status: int = 0
    business_id: UUID | None = None
    allocation_id: UUID | None = None
    batch_id: UUID | None = None
    outcome: str | None = None


def note_of(scope: Any) -> RequestNote:
    """Return the note of a request; where nobody keeps notes, one that is thrown away."""
    note = scope.get(_KEY)
    return note if isinstance(note, RequestNote) else RequestNote(*choose_request_id(scope["headers"]))


class RequestLog:
    """Outermost of the ASGI applications: decides the request id, adds it to the response, and writes the line.

    Whoever wants to know of the requests besides, gets their notes.
    """

    def __init__(
        self,
        app: ASGIApp,
        mask: Callable[[str], str],
        writer: LineWriter | None,
        tell: Callable[[RequestNote], None] = lambda _: None,
        *,
        with_probes: bool = False,
    ) -> None:
        self._app = app
        self._mask = mask
        self._tell = tell
        self._writer = writer
        self._left_out = () if with_probes else _PROBES

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = time.perf_counter()
        path = scope["path"]
        note = scope[_KEY] = RequestNote(*choose_request_id(scope["headers"]))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                note.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (NAME, note.id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            note.duration_s = time.perf_counter() - begun
            note.time = time.time()
            note.method = scope["method"]
            note.path = self._mask(path)
            note.route = scope.get("path_template")
            self._tell(note)
            if self._writer is not None and path not in self._left_out:
                self._writer.add(note)


class _Line(msgspec.Struct, omit_defaults=True):
    """A request's line; the first six fields are those of every line."""

    time: str
    level: str
    process: str
    pid: int
    logger: str
    message: str
    request_id: str
    method: str
    path: str
    status: int
    duration_ms: float
    outcome: str
    route: str | None = None
    business_id: str | None = None
    allocation_id: str | None = None
    batch_id: str | None = None


class RequestLines:
    """Makes lines of notes."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._paths = set(routes)
        self._words = {word for route in self._paths for word in route.split("/")}
        self._pid = os.getpid()

    def format(self, formatter: LineFormatter, note: RequestNote) -> str:
        """Return a note's line."""
        line = _Line(
            format_time(note.time),
            "warning" if note.status >= 500 else "info",
            formatter.process,
            self._pid,
            __name__,
            f"{note.method} {note.path} {note.status}",
            note.id,
            note.method,
            note.path,
            note.status,
            round(note.duration_s * 1000, 3),
            note.outcome or _OUTCOME_BY_STATUS.get(note.status) or ("ok" if 200 <= note.status < 400 else "failed"),
            note.route,
            _name(IdKind.BUSINESS, note.business_id),
            _name_allocation(note),
            _name(IdKind.BATCH, note.batch_id),
        )
        if formatter.as_json:
            return _encoder.encode(line).decode()
        fields = {name: getattr(line, name) for name in _TEXT_FIELDS}
        return formatter.line(note.time, line.level.upper(), __name__, line.message, fields)

    def mask(self, path: str) -> str:
        """Return a path without what is neither a word of ours nor an id: callers put secrets anywhere."""
        if path in self._paths:
            return path
        return "/".join(part if part in self._words or _ID.match(part) else _HIDDEN for part in path.split("/"))


@lru_cache(1024)
def _name(kind: IdKind, id_: UUID | None) -> str | None:
    return None if id_ is None else format_id(kind, id_)


def _name_allocation(note: RequestNote) -> str | None:
    if note.allocation_id is None or note.allocation_id is not note.own_id:
        return _name(IdKind.TRANSACTION, note.allocation_id)
    return "txn_" + note.id


_encoder = msgspec.json.Encoder()
_TEXT_FIELDS = ("duration_ms", "outcome", "request_id", "business_id", "allocation_id", "batch_id")
