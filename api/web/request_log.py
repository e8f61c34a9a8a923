"""One line for each request, and the id by which it is found in every log."""

import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec
from litestar.types import ASGIApp, Message, Receive, Send

from api.web.request_id import NAME, choose_request_id
from core.credentials import Mode
from core.database.connection import describe_error
from core.ids import IdKind, format_id
from core.logging.fields import about
from core.logging.formatter import format_time
from core.logging.writer import LineWriter

logger = logging.getLogger(__name__)

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


class Paths:
    """The application's own paths, and what a log may say of others."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._own = set(routes)
        self._words = {word for route in self._own for word in route.split("/")} | set(Mode)

    def are_own(self, path: str) -> bool:
        """Tell whether a path is, letter by letter, that of a route."""
        return path in self._own

    def mask(self, path: str) -> str:
        """Return a path without what is neither a word of ours nor an id: callers put secrets anywhere."""
        if path in self._own:
            return path
        return "/".join(part if part in self._words or _ID.match(part) else _HIDDEN for part in path.split("/"))


def log_unexpected(error: Exception, note: RequestNote, route: str | None) -> None:
    """Log an error that nobody expected, for which a request is answered 500."""
    logger.error(
        "a request was answered 500: %s",
        describe_error(error),
        extra=about(error=error, request_id=note.id, route=route),
    )


class RequestLog:
    """Outermost of the ASGI applications: decides the request id, adds it to the response, and writes the line.

    Whoever wants to know of the requests besides, gets their notes.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Paths,
        write: Callable[[RequestNote], None] | None,
        tell: Sequence[Callable[[RequestNote], None]] = (),
        *,
        log_level: str = "info",
    ) -> None:
        self._app = app
        self._mask = paths.mask
        self._write = write
        self._tell = tell
        self._left_out = () if log_level == "debug" else _PROBES
        # Lines are of the level info, and those of failures warnings.
        self._status_min = {"warning": 500, "error": 1000}.get(log_level, 0)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = time.perf_counter()
        path = scope["path"]
        note = scope[_KEY] = RequestNote(*choose_request_id(scope["headers"]))

        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                note.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (NAME, note.id.encode())]
            return send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            note.duration_s = time.perf_counter() - begun
            note.time = time.time()
            note.method = scope["method"]
            note.path = self._mask(path)
            note.route = scope.get("path_template")
            for tell in self._tell:
                tell(note)
            if self._write is not None and path not in self._left_out and note.status >= self._status_min:
                self._write(note)


class RequestLines:
    """Makes lines of notes."""

    def __init__(self, paths: Paths, writer: LineWriter) -> None:
        self._paths = paths
        self._writer = writer
        self._formatter = writer.formatter
        self._pid = os.getpid()
        self._parts: dict[tuple[str, str, int, str | None], tuple[str, str, str]] = {}

    def write(self, note: RequestNote) -> None:
        """Have a note's line written."""
        self._writer.add(self._format(note))

    def _format(self, note: RequestNote) -> str:
        if not self._formatter.as_json:
            fields = {"duration_ms": _duration_ms(note), "outcome": _outcome_of(note), "request_id": note.id}
            names = dict(_names_of(note))
            return self._formatter.line(note.time, _level_of(note).upper(), __name__, _message_of(note), fields | names)
        # At thousands of lines a second, encoding what is the same in each would cost more than the rest. What is put
        # in here needs no escapes.
        head, middle, end = self._find_parts(note)
        named = "".join([f',"{field}":"{name}"' for field, name in _names_of(note)])
        return (
            f'{{"time":"{format_time(note.time)}",{head},"request_id":"{note.id}",{middle},'
            f'"duration_ms":{_duration_ms(note)},{end}{named}}}'
        )

    def _find_parts(self, note: RequestNote) -> tuple[str, str, str]:
        """Return what is the same in all lines of such requests; what has an id in its path is not remembered."""
        key = (note.method, note.path, note.status, note.outcome)
        parts = self._parts.get(key)
        if parts is None:
            process = {"process": self._formatter.process, "pid": self._pid, "logger": __name__}
            parts = (
                _members({"level": _level_of(note)} | process | {"message": _message_of(note)}),
                _members({"method": note.method, "path": note.path, "status": note.status}),
                _members({"outcome": _outcome_of(note)} | ({"route": note.route} if note.route else {})),
            )
            if self._paths.are_own(note.path):
                self._parts[key] = parts
        return parts


def _duration_ms(note: RequestNote) -> float:
    return round(note.duration_s * 1000, 3)


def _names_of(note: RequestNote) -> Iterator[tuple[str, str]]:
    """Give the fields that name what a request is about."""
    if note.business_id is not None:
        yield "business_id", _name_business(note.business_id)
    if note.allocation_id is not None:
        is_own = note.allocation_id is note.own_id
        yield "allocation_id", f"txn_{note.id}" if is_own else format_id(IdKind.TRANSACTION, note.allocation_id)
    if note.batch_id is not None:
        yield "batch_id", format_id(IdKind.BATCH, note.batch_id)


@lru_cache(1024)
def _name_business(id_: UUID) -> str:
    return format_id(IdKind.BUSINESS, id_)


def _level_of(note: RequestNote) -> str:
    return "warning" if note.status >= 500 else "info"


def _message_of(note: RequestNote) -> str:
    return f"{note.method} {note.path} {note.status}"


def _outcome_of(note: RequestNote) -> str:
    return note.outcome or _OUTCOME_BY_STATUS.get(note.status) or ("ok" if 200 <= note.status < 400 else "failed")


def _members(fields: Mapping[str, object]) -> str:
    """Return the members of a JSON object, without its braces."""
    return msgspec.json.encode(fields).decode()[1:-1]
