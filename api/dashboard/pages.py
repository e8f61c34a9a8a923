"""How every page is answered: who looks at which business, and what comes of it: a page, or a redirect after a change.

What a page does with the database, it does in one transaction, in a thread, behind a fresh look at whether the person
is (still) a member. A change is made once, however often its form arrives: the audit log has the form's id as its key.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit
from uuid import UUID

from litestar.exceptions import HTTPException
from redis.exceptions import RedisError
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from api.dashboard.cookies import SESSION, delete_cookie, read_cookie
from api.dashboard.forms import ForeignFormError, Form, FormTokens, read_fields
from api.dashboard.rendering import Renderer
from api.dashboard.sessions import Notice, Session, Sessions
from api.web.browser_headers import page, redirect
from api.web.business_request import DatabaseThreads
from api.web.errors import TooManyWaitingError
from api.web.request import HttpRequest
from api.web.responses import HttpResponse
from core.credentials import Mode
from core.database.connection import describe_error, is_connection_error
from core.errors import UserError
from core.ids import IdKind, format_id, parse_id
from core.parties import accounts, audit, businesses, members
from core.parties.accounts import Account
from core.parties.audit import Actor, AlreadyRecordedError
from core.parties.businesses import Business
from core.parties.members import Membership, Role

logger = logging.getLogger(__name__)

HOME = "/dashboard"
SIGN_IN = "/dashboard/sign-in"

Found = TypeVar("Found")


class PageError(Exception):
    """A page that says why something cannot be shown or done; nothing was done."""

    def __init__(self, status_code: int, title: str, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(title)
        self.status_code = status_code
        self.title = title
        self.text = text
        self.headers = dict(headers or {})


class SignedOutError(Exception):
    """The session has ended."""


@dataclass(frozen=True, slots=True)
class Page:
    """A template to fill in."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status_code: int = 200


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a change leads to, and what is said there."""

    path: str
    text: str
    is_error: bool = False


Answer = Page | Redirect


@dataclass(frozen=True, slots=True)
class Visit:
    """Who looks at which business, in which mode."""

    account: Account
    role: Role
    live: Business
    """The business that the person is a member of."""
    business: Business
    """The one whose money and users are shown: itself, or its test twin."""
    memberships: list[Membership]

    @property
    def is_admin(self) -> bool:
        """Whether the person may change something."""
        return self.role is Role.ADMIN

    @property
    def mode(self) -> Mode:
        """Live or test."""
        return self.business.mode

    @property
    def base(self) -> str:
        """The path that all pages of this business and mode begin with."""
        return base_path(self.live.id, self.mode)

    def actor(self, form: Form) -> Actor:
        """Return the person, as the audit log names them, with the form that asks for a change."""
        return Actor(self.account.email, self.account.id, form.id)


def base_path(live_id: UUID, mode: Mode) -> str:
    """Return the path that all pages of a business and mode begin with."""
    return f"{HOME}/{format_id(IdKind.BUSINESS, live_id)}/{mode}"


class Pages:
    """Answers browsers."""

    def __init__(self, threads: DatabaseThreads, sessions: Sessions, tokens: FormTokens, renderer: Renderer) -> None:
        self.threads = threads
        self.sessions = sessions
        self.tokens = tokens
        self._renderer = renderer

    async def show(
        self, request: HttpRequest, business: str, mode: str, work: Callable[[Connection, Visit], Answer]
    ) -> HttpResponse:
        """Show a page to a member of a business; who is not signed in is sent there first."""
        session = await self.find_session(request, take_notice=True)
        if session is None:
            return self.ask_to_sign_in(request)

        def carry_out(connection: Connection) -> tuple[Visit, Answer]:
            visit = find_visit(connection, session, business, mode)
            return visit, work(connection, visit)

        visit, answer = await self.threads.run(carry_out)
        return await self.answer(request, session, visit, answer)

    async def look(self, request: HttpRequest, business: str, mode: str) -> tuple[Session, Visit] | None:
        """Return who looks at what, for a page that needs more than the database; None for who is not signed in."""
        session = await self.find_session(request, take_notice=True)
        if session is None:
            return None
        visit = await self.threads.run(lambda connection: find_visit(connection, session, business, mode))
        return session, visit

    async def change(
        self,
        request: HttpRequest,
        business: str,
        mode: str,
        work: Callable[[Connection, Visit, Form], Answer],
        *,
        back: str,
    ) -> HttpResponse:
        """Make a change that an admin's form asks for; `back` is the page below the business's to say it on."""
        session = await self.require_session(request)
        values = await read_fields(request)
        form = Form(self.tokens.check(request, session.id, values), values)

        def carry_out(connection: Connection) -> tuple[Visit, Answer]:
            visit = find_visit(connection, session, business, mode)
            require_admin(visit)
            # Before anything else has a say: what was done may well be refused the second time.
            if audit.is_recorded(connection, [visit.business.id, visit.business.twin_id], form.id):
                raise AlreadyRecordedError
            return visit, work(connection, visit, form)

        visit: Visit | None = None
        try:
            visit, answer = await self.threads.run(carry_out)
        except UserError as error:
            is_error = not isinstance(error, AlreadyRecordedError)
            answer = Redirect(f"{HOME}/{business}/{mode}/{back}", str(error), is_error)
        return await self.answer(request, session, visit, answer)

    async def answer(self, request: HttpRequest, session: Session, visit: Visit | None, answer: Answer) -> HttpResponse:
        """Make the response."""
        if isinstance(answer, Page):
            return await self.make_page(request, answer, session, visit)
        await self.leave_notice(session, Notice(answer.text, answer.is_error))
        return redirect(request, answer.path)

    async def make_page(
        self, request: HttpRequest, shown: Page, session: Session | None = None, visit: Visit | None = None
    ) -> HttpResponse:
        """Fill a page in; `session` and `visit` are there for its frame."""
        values = {
            "visit": visit,
            "notice": session.notice if session else None,
            "csrf_token": self.tokens.make(session.id) if session else "",
            "path": request.scope["path"],
            **shown.values,
        }
        html = await asyncio.to_thread(self._renderer.render, shown.template, values)
        return page(request, html, shown.status_code)

    async def find_session(self, request: HttpRequest, *, take_notice: bool = False) -> Session | None:
        """Return the session that the browser's cookie names."""
        cookie = read_cookie(request, SESSION)
        return await self.sessions.find(cookie, take_notice=take_notice) if cookie else None

    async def require_session(self, request: HttpRequest) -> Session:
        """Return the session that the browser's cookie names.

        Raises:
            SignedOutError: there is none.

        """
        session = await self.find_session(request)
        if session is None:
            raise SignedOutError
        return session

    async def leave_notice(self, session: Session, notice: Notice) -> None:
        """Leave a text for the next page; what it speaks of is done, whether or not it can be left."""
        try:
            await self.sessions.leave_notice(session, notice)
        except (RedisError, OSError) as error:
            logger.warning("a notice was not left: %s", type(error).__name__)

    def ask_to_sign_in(self, request: HttpRequest) -> HttpResponse:
        """Send the browser to sign in, and back to this page after that."""
        path = request.scope["path"]
        query = request.scope["query_string"].decode("latin-1")
        wanted = f"{path}?{query}" if query else path
        return redirect(request, f"{SIGN_IN}?{urlencode({'next': wanted})}" if wanted != HOME else SIGN_IN)

    def answer_error(self, request: HttpRequest, error: Exception) -> HttpResponse:
        """Answer with a page that says what went wrong, for people; never with how."""
        if isinstance(error, SignedOutError) and request.method == "GET":
            response = self.ask_to_sign_in(request)
            delete_cookie(request, response, SESSION)
            return response
        shown = _explain(error)
        if shown.status_code == 500:
            logger.error("a page was answered 500: %s", describe_error(error))
        sign_in = _sign_in_again(request) if isinstance(error, SignedOutError) else None
        values = {"title": shown.title, "text": shown.text, "sign_in": sign_in}
        html = self._renderer.render("error.html", values)
        return page(request, html, shown.status_code, headers=shown.headers)


def find_visit(connection: Connection, session: Session, business: str, mode: str) -> Visit:
    """Return what a path names, where it is one of the person's businesses.

    Raises:
        SignedOutError: the account is gone, or has another password by now.
        PageError: the path names nothing of theirs.

    """
    account = find_account(connection, session)
    memberships = members.list_memberships(connection, account.id)
    business_id = parse_id(IdKind.BUSINESS, business)
    membership = next((each for each in memberships if each.business_id == business_id), None)
    if membership is None or mode not in set(Mode):
        raise not_found()
    live = businesses.get_business(connection, membership.business_id)
    shown = live if mode == Mode.LIVE else businesses.get_business(connection, live.twin_id)
    return Visit(account, membership.role, live, shown, memberships)


def find_account(connection: Connection, session: Session) -> Account:
    """Return whose session it is.

    Raises:
        SignedOutError: the account is gone, or has another password by now.

    """
    account = accounts.find_account(connection, session.account_id)
    if account is None or account.password_changed_at != session.password_changed_at:
        raise SignedOutError
    return account


def require_admin(visit: Visit) -> None:
    """Let admins through.

    Raises:
        PageError: the person may look, and no more.

    """
    if not visit.is_admin:
        text = "You may look at everything here. To change something, ask an admin of this business."
        raise PageError(403, "Only admins can do this", text)


def not_found() -> PageError:
    """Make the error of a page that is not there, or not the person's: the two look alike."""
    return PageError(404, "There is no such page", "The address is wrong, or what it names is not yours.")


def _sign_in_again(request: HttpRequest) -> str:
    """Return where to sign in, and come back to the page whose form was sent."""
    sent_from = urlsplit(request.headers.get("referer", ""))
    is_ours = sent_from.netloc == request.headers.get("host") and sent_from.path.startswith(f"{HOME}/")
    return f"{SIGN_IN}?{urlencode({'next': sent_from.path})}" if is_ours else SIGN_IN


def _explain(error: Exception) -> PageError:
    if isinstance(error, PageError):
        return error
    if isinstance(error, SignedOutError):
        text = "Your session has ended, and nothing was done. Sign in, then send the form again."
        return PageError(401, "You are signed out", text)
    if isinstance(error, ForeignFormError):
        text = "Nothing was done. Open the page again, and send the form from there."
        return PageError(403, "This form is out of date", text)
    if isinstance(error, TooManyWaitingError):
        text = "The server has a lot to do. Try again in a moment."
        return PageError(429, "Too many requests", text, {"Retry-After": "1"})
    if _is_away(error):
        logger.warning("a page was answered 503: %s", describe_error(error))
        text = (
            "A part of the system does not answer. Try again in a moment; if you were changing something, look "
            "whether it was done. A form that is sent again does nothing twice."
        )
        return PageError(503, "Not available right now", text, {"Retry-After": "5"})
    if isinstance(error, HTTPException):
        return _explain_status(error)
    return PageError(500, "Something went wrong", "The error was logged. Try again in a moment.")


def _is_away(error: Exception) -> bool:
    """Tell whether Redis or PostgreSQL is out of reach, or has kept somebody waiting for too long."""
    kinds = RedisError | OperationalError | PoolTimeoutError | TimeoutError | OSError
    return isinstance(error, kinds) or is_connection_error(error)


def _explain_status(error: HTTPException) -> PageError:
    if error.status_code == 404:
        return not_found()
    if error.status_code == 405:
        allowed = {"Allow": (error.headers or {}).get("allow", "")}
        return PageError(405, "This cannot be done here", "Open the page again.", allowed)
    if error.status_code == 413:
        text = "Nothing was done. The file of a batch may have 32 MB, and what is typed into a form, much less."
        return PageError(413, "This is too large", text)
    if error.status_code < 500:
        return PageError(error.status_code, "The request was not understood", "Open the page again.")
    return PageError(500, "Something went wrong", "The error was logged. Try again in a moment.")
