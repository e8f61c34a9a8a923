"""Payout batches: a file is uploaded, checked and shown, and only then accepted; then its progress and its rows."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec
from litestar import MediaType, Response, get, post, route
from litestar.handlers import HTTPRouteHandler
from redis.exceptions import RedisError
from sqlalchemy import Connection

from api.batches.endpoint import UPLOAD_TIMEOUT_S, result_collection
from api.batches.intake import BatchIntake
from api.batches.reader.amounts import Unit
from api.dashboard.exports import export_csv
from api.dashboard.file_check import (
    MISTAKES_SHOWN_MAX,
    FileChoices,
    Unclear,
    UnclearFile,
    check_file,
    read_choices,
)
from api.dashboard.forms import BODY_MAX_BYTES as FORM_MAX_BYTES
from api.dashboard.forms import Form, check_origin, parse_upload, read_fields
from api.dashboard.pages import (
    Answer,
    Page,
    PageError,
    Pages,
    Redirect,
    SignedOutError,
    Visit,
    find_visit,
    not_found,
    require_admin,
)
from api.dashboard.sessions import Session
from api.dashboard.uploads import Upload, Uploads
from api.resources.pagination import Collection, Paginator
from api.resources.query_parameters import Parameters, batches_cursor, results_cursor
from api.web.browser_headers import browser_headers, redirect
from api.web.errors import TooManyWaitingError
from api.web.request import HttpRequest
from api.web.request_body import read_body
from api.web.responses import INSUFFICIENT_BALANCE, PAYOUTS_DISABLED, HttpResponse, Refusal
from core import admin_actions
from core.batches import reading
from core.batches.acceptance import ReferencesReused, Submission
from core.batches.payout_batch import BODY_MAX_BYTES, ROWS_MAX, BatchRow, BatchStatus, PayoutBatch
from core.batches.preview import DASHBOARD_KEY_PREFIX, PAYMENTS_LOOKED_AT_MAX, Preview
from core.batches.reading import BatchResult
from core.ids import IdKind, format_id, new_id, parse_id
from core.money import format_dollars

logger = logging.getLogger(__name__)

_ROWS = 25
_RESULT_ROWS = 50
_ROWS_NAMED_MAX = 10
_UPLOADS_AT_ONCE_MAX = 3
_FILE_NAME_MAX_CHARACTERS = 100
_UPLOAD = "/{business:str}/{mode:str}/batches/uploads/{upload_id:str}"
_COLUMNS = f"{_UPLOAD}/columns"
_BATCH = "/{business:str}/{mode:str}/batches/{batch_id:str}"
_GONE = "The upload is not there any more: it waits for 15 minutes, and the next one takes its place. Upload it again."
_ACCEPTED_BEFORE = "This upload was accepted before; nothing was done twice."
_TEXT_BY_REFUSAL = {
    PAYOUTS_DISABLED.error: "Payouts are disabled. Enable them in Settings, then accept the batch.",
    INSUFFICIENT_BALANCE.error: "The payout balance is smaller than the sum of the batch. Add funds in Settings.",
}


class _Progress(msgspec.Struct):
    """What the script shows while a batch is worked off."""

    status: BatchStatus
    processed: int
    total: int
    is_finished: bool
    text: str


def batch_page_routes(
    pages: Pages, paginator: Paginator, intake: BatchIntake, uploads: Uploads, hash_secret: bytes
) -> list[HTTPRouteHandler]:
    """Wire the pages."""
    taking = _Taking(pages, intake, uploads)

    @get("/{business:str}/{mode:str}/batches")
    async def list_batches(request: HttpRequest, business: str, mode: str) -> HttpResponse:
        after = Parameters(dict(request.query_params)).batches_cursor()
        return await pages.show(request, business, mode, lambda connection, visit: _list(connection, visit, after))

    @post(
        "/{business:str}/{mode:str}/batches/uploads",
        status_code=200,
        request_max_body_size=BODY_MAX_BYTES + FORM_MAX_BYTES,
    )
    async def upload(request: HttpRequest, business: str, mode: str) -> HttpResponse:
        return await taking.upload(request, business, mode)

    @route(_UPLOAD, http_method=["GET", "POST"], status_code=200)
    async def preview_or_accept(request: HttpRequest, business: str, mode: str, upload_id: str) -> HttpResponse:
        handle = taking.preview if request.method == "GET" else taking.accept
        return await handle(request, business, mode, upload_id)

    @route(_COLUMNS, http_method=["GET", "POST"], status_code=200)
    async def ask_or_choose(request: HttpRequest, business: str, mode: str, upload_id: str) -> HttpResponse:
        handle = taking.ask if request.method == "GET" else taking.choose
        return await handle(request, business, mode, upload_id)

    @get(_BATCH)
    async def show_batch(request: HttpRequest, business: str, mode: str, batch_id: str) -> HttpResponse:
        after = Parameters(dict(request.query_params)).results_cursor()
        return await pages.show(
            request, business, mode, lambda connection, visit: _show(connection, visit, batch_id, after)
        )

    @get(f"{_BATCH}/progress")
    async def show_progress(request: HttpRequest, business: str, mode: str, batch_id: str) -> HttpResponse:
        return await _answer_progress(pages, request, business, mode, batch_id)

    @get(f"{_BATCH}/results.csv")
    async def export_results(request: HttpRequest, business: str, mode: str, batch_id: str) -> HttpResponse:
        def choose(_: Connection, visit: Visit) -> Collection[BatchResult, int]:
            # A payout hash lets its holder in, so that viewers do not get it.
            return result_collection(batch_id, hash_secret if visit.is_admin else None)

        return await export_csv(pages, paginator, request, business, mode, choose)

    @post(f"{_BATCH}/cancel", status_code=200)
    async def cancel(request: HttpRequest, business: str, mode: str, batch_id: str) -> HttpResponse:
        def work(connection: Connection, visit: Visit, form: Form) -> Redirect:
            return _cancel(connection, visit, form, batch_id)

        return await pages.change(request, business, mode, work, back=f"batches/{batch_id}")

    return [list_batches, upload, preview_or_accept, ask_or_choose, show_batch, show_progress, export_results, cancel]


class _Taking:
    """From a file to a payout batch."""

    def __init__(self, pages: Pages, intake: BatchIntake, uploads: Uploads) -> None:
        self._pages = pages
        self._intake = intake
        self._uploads = uploads
        self._under_way = 0

    async def upload(self, request: HttpRequest, business: str, mode: str) -> HttpResponse:
        """Check a file; show what is wrong with it, or keep it and go on to its preview."""
        session = await self._pages.require_session(request)
        check_origin(request)
        visit = await self._admit(session, business, mode)
        if self._under_way >= _UPLOADS_AT_ONCE_MAX:
            raise TooManyWaitingError
        self._under_way += 1
        try:
            body = await read_body(request, UPLOAD_TIMEOUT_S)
            found = await self._intake.run(lambda check_time: self._check(request, session, visit, body, check_time))
            if isinstance(found, _Kept):
                await self._uploads.keep(session.account_id, found.sealed)
        finally:
            self._under_way -= 1
        return await self._go_on(request, session, visit, found)

    async def ask(self, request: HttpRequest, business: str, mode: str, upload_id: str) -> HttpResponse:
        """Show what is to be said of a file before it can be read."""
        session = await self._pages.find_session(request)
        file = await self._find_unclear(session, upload_id) if session else None

        def work(_: Connection, visit: Visit) -> Answer:
            require_admin(visit)
            if file is None or file.business_id != visit.business.id:
                return Redirect(f"{visit.base}/batches", _GONE, is_error=True)
            return Page("batch_columns.html", {"file": file})

        return await self._pages.show(request, business, mode, work)

    async def choose(self, request: HttpRequest, business: str, mode: str, upload_id: str) -> HttpResponse:
        """Read a file again, with what somebody said of it."""
        session = await self._pages.require_session(request)
        values = await read_fields(request)
        self._pages.tokens.check(request, session.id, values)
        visit = await self._admit(session, business, mode)
        file = await self._find_unclear(session, upload_id)
        if file is None or file.business_id != visit.business.id:
            gone = Redirect(f"{visit.base}/batches", _GONE, is_error=True)
            return await self._pages.answer(request, session, visit, gone)
        choices = read_choices(values, file)
        if isinstance(choices, str):
            again = Redirect(f"{visit.base}/batches/uploads/{upload_id}/columns", choices, is_error=True)
            return await self._pages.answer(request, session, visit, again)

        def check(check_time: Callable[[], None]) -> _Kept | list[str]:
            return self._read(session, visit, file.file_name, file.unit, file.content(), choices, check_time)

        found = await self._intake.run(check)
        if isinstance(found, _Kept):
            await self._uploads.keep(session.account_id, found.sealed)
        return await self._go_on(request, session, visit, found)

    async def _go_on(
        self, request: HttpRequest, session: Session, visit: Visit, found: "_Kept | list[str]"
    ) -> HttpResponse:
        """Go on to a file's preview or to what is open, or show its mistakes."""
        if isinstance(found, _Kept):
            end = "" if found.is_clear else "/columns"
            return redirect(request, f"{visit.base}/batches/uploads/{found.upload_id.hex}{end}")
        page = await self._pages.threads.run(lambda connection: _list(connection, visit, None, found))
        return await self._pages.make_page(request, page, session, visit)

    async def preview(self, request: HttpRequest, business: str, mode: str, upload_id: str) -> HttpResponse:
        """Show what a file would do."""
        session = await self._pages.find_session(request)
        upload = await self._find(session, upload_id) if session else None
        outlook: Preview | Refusal | ReferencesReused | None = None
        rows: Sequence[BatchRow] = ()
        if upload is not None and upload.batch_id is None:
            submission = await self._submission_of(upload)
            rows = submission.rows
            outlook = await self._intake.preview_submission(submission)

        def work(_: Connection, visit: Visit) -> Answer:
            if upload is None or upload.business_id != visit.business.id:
                return Redirect(f"{visit.base}/batches", _GONE, is_error=True)
            if upload.batch_id is not None:
                return Redirect(_batch_path(visit, upload.batch_id), _ACCEPTED_BEFORE)
            to_pay = outlook.amount if isinstance(outlook, Preview) else upload.amount
            values = {
                "upload": upload,
                "outlook": outlook if isinstance(outlook, Preview) else None,
                "refused": _explain(outlook, rows) if isinstance(outlook, ReferencesReused) else None,
                "rows": rows,
                "looked_at": PAYMENTS_LOOKED_AT_MAX,
                "to_pay": to_pay,
                "balance_after": visit.business.payout_balance - to_pay,
            }
            return Page("batch_preview.html", values)

        return await self._pages.show(request, business, mode, work)

    async def accept(self, request: HttpRequest, business: str, mode: str, upload_id: str) -> HttpResponse:
        """Accept a file's rows as a payout batch: once, however often it is asked for."""
        session = await self._pages.require_session(request)
        values = await read_fields(request)
        form = Form(self._pages.tokens.check(request, session.id, values), values)
        visit = await self._admit(session, business, mode)
        upload = await self._find(session, upload_id)
        if upload is None or upload.business_id != visit.business.id:
            gone = Redirect(f"{visit.base}/batches", _GONE, is_error=True)
            return await self._pages.answer(request, session, visit, gone)
        if upload.batch_id is not None:
            before = Redirect(_batch_path(visit, upload.batch_id), _ACCEPTED_BEFORE)
            return await self._pages.answer(request, session, visit, before)

        def record(connection: Connection, batch: PayoutBatch) -> None:
            current = find_visit(connection, session, business, mode)
            require_admin(current)
            admin_actions.record_batch_accepted(connection, current.actor(form), batch)

        submission = await self._submission_of(upload)
        accepted = await self._intake.accept_submission(submission, record)
        if isinstance(accepted, Refusal | ReferencesReused):
            text = _explain(accepted, submission.rows)
            refused = Redirect(f"{visit.base}/batches/uploads/{upload_id}", text, is_error=True)
            return await self._pages.answer(request, session, visit, refused)
        await self._remember(session, upload.become(accepted.batch.id))
        text = f"The batch is accepted: {format_dollars(accepted.batch.amount)} are reserved for it."
        if accepted.batch.already_paid == accepted.batch.total:
            text = "There was nothing to pay: every row was paid before."
        done = Redirect(_batch_path(visit, accepted.batch.id), text)
        return await self._pages.answer(request, session, visit, done)

    async def _submission_of(self, upload: Upload) -> Submission:
        key = f"{DASHBOARD_KEY_PREFIX}{upload.id.hex}"
        return await self._intake.run(lambda _: Submission.of(upload.business_id, None, upload.rows(), key))

    async def _admit(self, session: Session, business: str, mode: str) -> Visit:
        """Return an admin's visit."""

        def look_up(connection: Connection) -> Visit:
            visit = find_visit(connection, session, business, mode)
            require_admin(visit)
            return visit

        return await self._pages.threads.run(look_up)

    def _check(
        self, request: HttpRequest, session: Session, visit: Visit, body: bytes, check_time: Callable[[], None]
    ) -> "_Kept | list[str]":
        """Read an upload's form and its file; return what was found, or the file's mistakes."""
        sent = parse_upload(body, request.headers.get("content-type", ""))
        self._pages.tokens.check(request, session.id, sent.values)
        content = sent.files.get("file", b"")
        if not content:
            return ["Choose a file that is not empty."]
        name = sent.file_names.get("file", "")[-_FILE_NAME_MAX_CHARACTERS:]
        unit = sent.values.get("unit")
        if unit not in {"dollars", "cents"}:
            return ["Choose whether the amounts are in dollars or in cents."]
        return self._read(session, visit, name, Unit(unit), content, FileChoices(), check_time)

    def _read(
        self,
        session: Session,
        visit: Visit,
        name: str,
        unit: Unit,
        content: bytes,
        choices: FileChoices,
        check_time: Callable[[], None],
    ) -> "_Kept | list[str]":
        """Read a file; return what is to be kept of it, or its mistakes."""
        found = check_file(content, unit, choices, check_time)
        if isinstance(found, list):
            return found
        # Each file has an id of its own: what is accepted is what its preview showed.
        upload_id = new_id()
        business_id = visit.business.id
        if isinstance(found, Unclear):
            unclear = found.keep(upload_id, business_id, name, unit, content, choices)
            return _Kept(upload_id, self._uploads.seal(session.account_id, unclear), is_clear=False)
        upload = Upload.of(upload_id, business_id, name, found)
        return _Kept(upload_id, self._uploads.seal(session.account_id, upload), is_clear=True)

    async def _find(self, session: Session, upload_id: str) -> Upload | None:
        sealed = await self._uploads.find(session.account_id)
        if sealed is None:
            return None
        upload = await self._intake.run(lambda _: self._uploads.unseal(session.account_id, sealed, Upload))
        return upload if upload is not None and upload.id.hex == upload_id else None

    async def _find_unclear(self, session: Session, upload_id: str) -> UnclearFile | None:
        sealed = await self._uploads.find(session.account_id)
        if sealed is None:
            return None
        file = await self._intake.run(lambda _: self._uploads.unseal(session.account_id, sealed, UnclearFile))
        return file if file is not None and file.id.hex == upload_id else None

    async def _remember(self, session: Session, upload: Upload) -> None:
        """Note that an upload is accepted; where Redis is gone, the batch's own key keeps it from being paid twice."""
        try:
            await self._uploads.keep(session.account_id, self._uploads.seal(session.account_id, upload))
        except (RedisError, OSError) as error:
            logger.warning("an accepted upload was not noted: %s", type(error).__name__)


def _explain(refused: Refusal | ReferencesReused, rows: Sequence[BatchRow]) -> str:
    if isinstance(refused, Refusal):
        return _TEXT_BY_REFUSAL.get(refused.error, refused.error)
    count = len(refused.rows)
    named = ", ".join(str(rows[row].reference) for row in refused.rows[:_ROWS_NAMED_MAX])
    more = f" and {count - _ROWS_NAMED_MAX:,} more" if count > _ROWS_NAMED_MAX else ""
    return (
        "Nothing was accepted: a reference names one payment, and these were used before for another e-mail or amount: "
        f"{named}{more}."
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file that is kept: clear, and ready to be paid, or not."""

    upload_id: UUID
    sealed: bytes
    is_clear: bool


def _list(connection: Connection, visit: Visit, after: UUID | None, mistakes: list[str] | None = None) -> Page:
    batches = reading.list_batches(connection, visit.business.id, limit=_ROWS + 1, after=after)
    cursor = batches_cursor(batches[_ROWS - 1].id) if len(batches) > _ROWS else None
    values = {
        "batches": batches[:_ROWS],
        "cursor": cursor,
        "is_first": after is None,
        "mistakes": mistakes or [],
        "mistakes_max": MISTAKES_SHOWN_MAX,
        "bytes_max": BODY_MAX_BYTES,
        "rows_max": ROWS_MAX,
    }
    return Page("batches.html", values, 422 if mistakes else 200)


def _show(connection: Connection, visit: Visit, batch_id: str, after: int | None) -> Page:
    batch = _find_batch(connection, visit, batch_id)
    rows = reading.list_results(connection, batch, limit=_RESULT_ROWS + 1, after=after)
    cursor = results_cursor(rows[_RESULT_ROWS - 1].position) if len(rows) > _RESULT_ROWS else None
    values = {
        "batch": batch,
        "rows": rows[:_RESULT_ROWS],
        "cursor": cursor,
        "is_first": after is None,
        "progress": _describe(visit, batch),
    }
    return Page("batch.html", values)


def _cancel(connection: Connection, visit: Visit, form: Form, batch_id: str) -> Redirect:
    batch = _find_batch(connection, visit, batch_id)
    cancelled = admin_actions.cancel_batch(connection, visit.actor(form), visit.business.id, batch.id)
    rest = format_dollars(cancelled.amount - cancelled.allocated_amount)
    return Redirect(_batch_path(visit, batch.id), f"The batch is cancelled: {rest} went back to the payout balance.")


async def _answer_progress(pages: Pages, request: HttpRequest, business: str, mode: str, batch_id: str) -> HttpResponse:
    """Answer the script of a batch's page."""

    def look_up(connection: Connection, session: Session) -> _Progress:
        visit = find_visit(connection, session, business, mode)
        return _describe(visit, _find_batch(connection, visit, batch_id))

    try:
        session = await pages.require_session(request)
        progress = await pages.threads.run(lambda connection: look_up(connection, session))
    except SignedOutError:
        raise PageError(401, "You are signed out", "Sign in to go on.") from None
    return Response(msgspec.json.encode(progress), media_type=MediaType.JSON, headers=browser_headers(request))


def _describe(visit: Visit, batch: PayoutBatch) -> _Progress:
    is_finished = batch.finished_at is not None
    text = f"{batch.processed:,} of {batch.total:,} rows are paid."
    if not is_finished and not visit.business.payouts_enabled:
        text += " The rest waits until payouts are enabled."
    return _Progress(batch.status, batch.processed, batch.total, is_finished, text)


def _find_batch(connection: Connection, visit: Visit, batch_id: str) -> PayoutBatch:
    id_ = parse_id(IdKind.BATCH, batch_id)
    batch = reading.find_batch(connection, visit.business.id, id_) if id_ else None
    if batch is None:
        raise not_found()
    return batch


def _batch_path(visit: Visit, batch_id: UUID) -> str:
    return f"{visit.base}/batches/{format_id(IdKind.BATCH, batch_id)}"
