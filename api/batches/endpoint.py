"""Payout batches over HTTP: accept, list, show, and what became of each row."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from uuid import UUID

from litestar import get, post, route
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.batches.intake import BatchIntake
from api.batches.reader.exports import RESULT_COLUMNS
from api.batches.reader.files import FileFormat
from api.batches.rows import find_body_format
from api.resources import schemas
from api.resources.pagination import Collection, Paginator
from api.resources.query_parameters import PAGE, Parameters, batches_cursor, results_cursor
from api.web import responses
from api.web.authentication import Identity
from api.web.business_request import BusinessRequests
from api.web.errors import TooManyWaitingError
from api.web.headers import read_header
from api.web.idempotency import strip_key
from api.web.request import HttpRequest
from api.web.request_body import read_body
from api.web.request_log import note_of
from api.web.responses import HttpResponse, Refusal
from core.batches import reading
from core.batches.payout_batch import BODY_MAX_BYTES, PayoutBatch, RowOutcome
from core.batches.preview import Preview
from core.batches.reading import BatchResult
from core.credentials import payout_hash
from core.ids import IdKind, format_id, parse_id
from core.money import format_decimal

Found = TypeVar("Found")
PATH = "/payout/batches"
PREVIEW_PATH = "/payout/batches/preview"
ITEM_PATH = "/payout/batches/{batch_id:str}"
UPLOAD_TIMEOUT_S = 120.0
RESULTS_PATH = "/payout/batches/{batch_id:str}/results"


def batch_routes(
    requests: BusinessRequests, paginator: Paginator, intake: BatchIntake, hash_secret: bytes
) -> list[HTTPRouteHandler]:
    """Wire the endpoints."""

    # One handler, since Litestar's answer to OPTIONS names the methods of one.
    @route(PATH, http_method=["GET", "POST"], request_max_body_size=BODY_MAX_BYTES)
    async def list_or_create_batches(request: HttpRequest) -> HttpResponse:
        return await (_list(request, paginator) if request.method == "GET" else _create(request, requests, intake))

    @get(ITEM_PATH)
    async def get_batch(request: HttpRequest, batch_id: str) -> HttpResponse:
        return await requests.answer(request, lambda connection, business_id: _get(connection, business_id, batch_id))

    @get(RESULTS_PATH)
    async def list_results(request: HttpRequest, batch_id: str) -> HttpResponse:
        parameters = Parameters.from_query(request.query_params.multi_items(), PAGE)
        after, limit = parameters.results_cursor(), parameters.limit()
        collection = result_collection(batch_id, hash_secret)
        return await paginator.answer(request, parameters.errors, collection, after, limit)

    @post(PREVIEW_PATH, request_max_body_size=BODY_MAX_BYTES)
    async def preview_batch(request: HttpRequest) -> HttpResponse:
        return await _preview(request, requests, intake)

    return [preview_batch, list_or_create_batches, get_batch, list_results]


async def _list(request: HttpRequest, paginator: Paginator) -> HttpResponse:
    parameters = Parameters.from_query(request.query_params.multi_items(), PAGE)
    after, limit = parameters.batches_cursor(), parameters.limit()
    return await paginator.answer(request, parameters.errors, _BATCHES, after, limit)


async def _upload(
    request: HttpRequest,
    requests: BusinessRequests,
    intake: BatchIntake,
    take: Callable[[Identity, bytes, FileFormat | None, str | None], Awaitable[Found]],
) -> Found | Refusal:
    """Read the rows that a business hands in, and let the intake take them."""
    identity = await requests.identify(request)
    if isinstance(identity, Refusal):
        return identity
    idempotency_key = strip_key(read_header(request.scope["headers"], b"idempotency-key"))
    written_as = find_body_format(request.headers.get("content-type", ""))
    try:
        with intake.enter():
            body = await read_body(request, UPLOAD_TIMEOUT_S)
            return await take(identity, body, written_as, idempotency_key)
    except TooManyWaitingError:
        return responses.TOO_MANY_REQUESTS


async def _preview(request: HttpRequest, requests: BusinessRequests, intake: BatchIntake) -> HttpResponse:
    found = await _upload(request, requests, intake, intake.preview)
    return responses.respond(schemas.BatchPreview.of(found) if isinstance(found, Preview) else found)


async def _create(request: HttpRequest, requests: BusinessRequests, intake: BatchIntake) -> HttpResponse:
    accepted = await _upload(request, requests, intake, intake.accept)
    if isinstance(accepted, Refusal | dict):
        return responses.respond(accepted)
    note_of(request.scope).batch_id = accepted.batch.id
    document = schemas.Batch.of(accepted.batch)
    headers = {"Location": f"{PATH}/{document.id}"}
    if accepted.is_replay:
        headers["Idempotent-Replayed"] = "true"
    return responses.respond(document, 202, headers)


_BATCHES: Collection[PayoutBatch, UUID] = Collection(
    name="payout-batches",
    read=lambda connection, business_id, after, limit: reading.list_batches(
        connection, business_id, limit=limit, after=after
    ),
    position_of=lambda batch: batch.id,
    write_cursor=batches_cursor,
    document=schemas.Batch.of,
    csv_columns=(
        "id",
        "status",
        "total",
        "processed",
        "amount_cents",
        "amount_dollars",
        "created_at",
        "finished_at",
        "already_paid",
    ),
    csv_row=lambda batch: (
        format_id(IdKind.BATCH, batch.id),
        batch.status,
        batch.total,
        batch.processed,
        batch.amount,
        format_decimal(batch.amount),
        batch.created_at,
        batch.finished_at,
        batch.already_paid,
    ),
)


def result_collection(batch_id: str, hash_secret: bytes | None) -> Collection[BatchResult, int]:
    """Return the list of a batch's rows; without the secret, without hashes."""

    def read(connection: Connection, business_id: UUID, after: int | None, limit: int) -> list[BatchResult] | Refusal:
        batch = _find(connection, business_id, batch_id)
        if batch is None:
            return responses.NOT_FOUND
        return reading.list_results(connection, batch, limit=limit, after=after)

    def document(row: BatchResult) -> schemas.BatchRow:
        hash_ = None
        if hash_secret is not None and row.outcome in {RowOutcome.ALLOCATED, RowOutcome.ALREADY_PAID}:
            hash_ = payout_hash(hash_secret, row.business_id, row.email)
        return schemas.BatchRow.of(row, hash_)

    def csv_row(row: BatchResult) -> Iterable[Any]:
        shown = document(row)
        return (
            shown.row,
            shown.email,
            shown.amount,
            format_decimal(shown.amount),
            shown.reference,
            shown.outcome,
            shown.hash,
            shown.transaction,
        )

    return Collection(
        name="results",
        read=read,
        position_of=lambda row: row.position,
        write_cursor=results_cursor,
        document=document,
        csv_columns=RESULT_COLUMNS,
        csv_row=csv_row,
    )


def _get(connection: Connection, business_id: UUID, batch_id: str) -> responses.Answer:
    batch = _find(connection, business_id, batch_id)
    return schemas.Batch.of(batch) if batch else responses.NOT_FOUND


def _find(connection: Connection, business_id: UUID, batch_id: str) -> PayoutBatch | None:
    id_ = parse_id(IdKind.BATCH, batch_id)
    return reading.find_batch(connection, business_id, id_) if id_ else None
