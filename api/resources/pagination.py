"""A business's collections: as pages of JSON, or as a whole in CSV, streamed in constant memory."""

import csv
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
from litestar.response import Stream
from sqlalchemy import Connection

from api.resources import schemas
from api.web import responses
from api.web.business_request import BusinessRequests
from api.web.csv_cells import escape_cell
from api.web.errors import TooManyWaitingError
from api.web.request import HttpRequest
from api.web.responses import HttpResponse, Refusal
from api.web.validation import FieldErrors

Row = TypeVar("Row")
Position = TypeVar("Position")

CarryOut = Callable[[Callable[[Connection, UUID], Any]], Awaitable[Any]]
"""Carries work out for a business, with its id, in a transaction; answers a refusal where nothing may be done."""

_ROWS_AT_ONCE = 2_000
_EXPORTS_MAX = 8
JSON, CSV, NDJSON = "application/json", "text/csv", "application/x-ndjson"
_TYPE_BY_RANGE = {
    **dict.fromkeys(("application/json", "application/*", "*/*"), JSON),
    **dict.fromkeys(("text/csv", "text/*"), CSV),
    **dict.fromkeys(("application/x-ndjson", "application/ndjson", "application/jsonl"), NDJSON),
}
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z")


class ExportBrokeOffError(Exception):
    """The rest of an export cannot be read; the connection is closed, so that nobody takes it for complete."""


@dataclass(frozen=True, slots=True)
class Collection(Generic[Row, Position]):
    """A list that callers can page through: how rows are read after a position, and how each is shown."""

    name: str
    read: Callable[[Connection, UUID, Position | None, int], list[Row] | Refusal]
    """(connection, business id, position or None for the start, limit) → rows in the list's order."""
    position_of: Callable[[Row], Position]
    write_cursor: Callable[[Position], str]
    document: Callable[[Row], msgspec.Struct]
    csv_columns: Sequence[str]
    csv_row: Callable[[Row], Iterable[Any]]


class Paginator:
    """Answers with a page of a collection, or exports all of it."""

    def __init__(self, requests: BusinessRequests) -> None:
        self._requests = requests
        self._exports = 0

    async def answer(
        self,
        request: HttpRequest,
        errors: FieldErrors,
        collection: Collection[Row, Position],
        after: Position | None,
        limit: int,
    ) -> HttpResponse:
        """Answer with the page after a position; or, where the caller accepts CSV alone or rather, with all rows."""
        identity = await self._requests.identify(request)
        if isinstance(identity, Refusal):
            return identity.response()
        media_type = find_media_type(request.headers.get("accept", ""))
        if not errors and media_type != JSON:
            try:
                return await self.export(lambda work: self._requests.carry_out(identity, work), collection, media_type)
            except TooManyWaitingError:
                return responses.TOO_MANY_REQUESTS.response()

        def read(connection: Connection, business_id: UUID) -> responses.Answer:
            if errors:
                return errors
            rows = collection.read(connection, business_id, after, limit + 1)
            return rows if isinstance(rows, Refusal) else _make_page(collection, rows, limit)

        return responses.respond(await self._requests.carry_out(identity, read))

    async def export(self, carry_out: CarryOut, collection: Collection[Row, Position], media_type: str) -> HttpResponse:
        """Answer with all rows, in CSV or NDJSON.

        Raises:
            TooManyWaitingError: there are too many exports under way.

        """
        if self._exports >= _EXPORTS_MAX:
            raise TooManyWaitingError
        self._exports += 1
        writer = _WRITERS[media_type]
        parts = self._read_all(carry_out, collection, writer)
        try:
            first = await anext(parts)  # what goes wrong at once gets a status of its own
        except BaseException:
            await self._end(parts)
            raise
        if isinstance(first, Refusal):
            await self._end(parts)
            return first.response()

        async def stream() -> AsyncIterator[bytes]:
            try:
                yield first
                async for part in parts:
                    if isinstance(part, Refusal):
                        raise ExportBrokeOffError
                    yield part
            finally:
                await self._end(parts)

        return Stream(
            stream(),
            status_code=200,
            media_type=writer.media_type,
            headers={
                "Cache-Control": "no-store",
                "Content-Disposition": f'attachment; filename="{collection.name}.{writer.suffix}"',
            },
        )

    async def _end(self, parts: Any) -> None:
        self._exports -= 1
        await parts.aclose()

    async def _read_all(
        self, carry_out: CarryOut, collection: Collection[Row, Position], writer: "_Writer"
    ) -> AsyncIterator[bytes | Refusal]:
        """Read some thousand rows at a time, each time in a transaction of its own: none waits for a slow caller."""
        head = writer.write_head(collection)
        position: Position | None = None
        while True:
            here = position

            def read(
                connection: Connection, business_id: UUID, here: Position | None = here
            ) -> tuple[bytes, Position | None] | Refusal:
                rows = collection.read(connection, business_id, here, _ROWS_AT_ONCE)
                if isinstance(rows, Refusal):
                    return rows
                end = collection.position_of(rows[-1]) if len(rows) == _ROWS_AT_ONCE else None
                return writer.write_rows(collection, rows), end

            found = await carry_out(read)
            if isinstance(found, Refusal):
                yield found
                return
            part, position = found
            yield head + part
            head = b""
            if position is None:
                return


@dataclass(frozen=True, slots=True)
class _Writer:
    """How a whole list is written."""

    media_type: str
    suffix: str
    write_head: Callable[[Collection[Any, Any]], bytes]
    write_rows: Callable[[Collection[Any, Any], list[Any]], bytes]


def make_page(
    rows: list[Row],
    limit: int,
    position_of: Callable[[Row], Position],
    write_cursor: Callable[[Position], str],
    document: Callable[[Row], msgspec.Struct],
) -> schemas.Page[msgspec.Struct]:
    """Make a page of the first `limit` rows; one more row tells that there is more."""
    shown = rows[:limit]
    has_more = len(rows) > limit
    cursor = write_cursor(position_of(shown[-1])) if has_more else None
    return schemas.Page([document(row) for row in shown], has_more, cursor)


def _make_page(collection: Collection[Row, Position], rows: list[Row], limit: int) -> schemas.Page[msgspec.Struct]:
    return make_page(rows, limit, collection.position_of, collection.write_cursor, collection.document)


def find_media_type(accept: str) -> str:
    """Return what an `Accept` header wants: JSON, CSV or NDJSON (RFC 9110, 12.5.1). Of equals, the first counts."""
    best, best_range, best_quality = JSON, "*", 0.0
    for part in accept.split(","):
        media_range, *parameters = (word.strip().lower() for word in part.split(";"))
        qualities = [word.partition("=")[2].strip() for word in parameters if word.partition("=")[0].strip() == "q"]
        quality = float(qualities[0]) if qualities and _QUALITY.match(qualities[0]) else 0.0 if qualities else 1.0
        media_type = _TYPE_BY_RANGE.get(media_range)
        # A range that names the type counts before one that only covers it.
        is_named_first = quality == best_quality > 0 and best_range.endswith("*") and not media_range.endswith("*")
        if media_type is not None and (quality > best_quality or is_named_first):
            best, best_range, best_quality = media_type, media_range, quality
    return best


def _write_csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    """Write a value so that no spreadsheet carries it out."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return escape_cell(value) if isinstance(value, str) else value


_WRITERS = {
    CSV: _Writer(
        CSV,
        "csv",
        lambda collection: _write_csv([collection.csv_columns]),
        lambda collection, rows: _write_csv(map(collection.csv_row, rows)),
    ),
    NDJSON: _Writer(
        NDJSON,
        "ndjson",
        lambda _: b"",
        lambda collection, rows: msgspec.json.Encoder().encode_lines(map(collection.document, rows)),
    ),
}
