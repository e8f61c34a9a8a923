"""Signing in and out, accepting an invitation, and one's own account."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from litestar import get, route
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import Connection

from api.dashboard.cookies import DEVICE, SESSION, VISITOR, delete_cookie, read_cookie, set_cookie
from api.dashboard.forms import ForeignFormError, check_origin, read_fields
from api.dashboard.pages import (
    HOME,
    SIGN_IN,
    Page,
    PageError,
    Pages,
    base_path,
    find_account,
)
from api.dashboard.password_threads import PasswordThreads
from api.dashboard.sessions import Notice, looks_like_random_id, new_random_id
from api.dashboard.sign_in_tries import SignInTries, Try, network_of
from api.web.browser_headers import local_path, redirect
from api.web.request import HttpRequest
from api.web.responses import HttpResponse
from core import admin_actions
from core.credentials import Mode
from core.emails import normalise_email
from core.parties import accounts, invitations, members, passwords
from core.parties.accounts import Account
from core.parties.invitations import Invitation
from core.parties.passwords import PASSWORD_CHARACTERS_MIN, PasswordError

ACCOUNT = "/dashboard/account"

_DEVICE_FOR_S = 365 * 24 * 3600
_TYPED_MAX_CHARACTERS = 320  # an e-mail's, longer than any that is one
_WRONG = "The e-mail or the password is wrong."
_WRONG_PASSWORD = "That is not your password."  # noqa: S105 (what is said)


def sign_in_routes(pages: Pages, tries: SignInTries, passwords: PasswordThreads) -> list[HTTPRouteHandler]:
    """Wire the pages."""
    people = _People(pages, tries, passwords)

    @get("/")
    async def enter(request: HttpRequest) -> HttpResponse:
        return await people.enter(request)

    @route("/sign-in", http_method=["GET", "POST"], status_code=200)
    async def sign_in(request: HttpRequest) -> HttpResponse:
        return await (people.show_sign_in(request) if request.method == "GET" else people.sign_in(request))

    @route("/sign-out", http_method=["POST"], status_code=200)
    async def sign_out(request: HttpRequest) -> HttpResponse:
        return await people.sign_out(request)

    @route("/invitations/{token:str}", http_method=["GET", "POST"], status_code=200)
    async def accept_invitation(request: HttpRequest, token: str) -> HttpResponse:
        return await (
            people.show_invitation(request, token) if request.method == "GET" else people.join(request, token)
        )

    @route("/account", http_method=["GET", "POST"], status_code=200)
    async def own_account(request: HttpRequest) -> HttpResponse:
        return await (people.show_account(request) if request.method == "GET" else people.change_password(request))

    return [enter, sign_in, sign_out, accept_invitation, own_account]


class _People:
    """What somebody does as a person, whatever the business."""

    def __init__(self, pages: Pages, tries: SignInTries, passwords: PasswordThreads) -> None:
        self._pages = pages
        self._tries = tries
        self._passwords = passwords

    async def enter(self, request: HttpRequest) -> HttpResponse:
        """Lead to the person's first business."""
        session = await self._pages.find_session(request)
        if session is None:
            return redirect(request, SIGN_IN)

        def look_up(connection: Connection) -> tuple[Account, list[members.Membership]]:
            account = find_account(connection, session)
            return account, members.list_memberships(connection, account.id)

        account, memberships = await self._pages.threads.run(look_up)
        if memberships:
            return redirect(request, base_path(memberships[0].business_id, Mode.LIVE))
        return await self._pages.make_page(request, Page("no_business.html", {"email": account.email}), session)

    async def show_sign_in(self, request: HttpRequest) -> HttpResponse:
        """Show the form; who is signed in goes on."""
        wanted = _wanted(request.query_params.get("next"))
        session = await self._pages.find_session(request)
        if session is not None and await self._is_alive(session):
            return redirect(request, wanted)
        is_signed_out = request.query_params.get("signed-out") == "yes"
        values = {"next": wanted, "email": "", "error": None, "is_signed_out": is_signed_out}
        return await self._make_form(request, "sign_in.html", values)

    async def sign_in(self, request: HttpRequest) -> HttpResponse:
        """Begin a session for whoever knows the password."""
        values = await self._read_visitors_form(request)
        typed, password = values.get("email", "").strip()[:_TYPED_MAX_CHARACTERS], values.get("password", "")
        shown = {"next": _wanted(values.get("next")), "email": typed, "is_signed_out": False}
        made = await self._try(request, typed)
        if made.wait_s:
            error = f"There were too many tries. Try again in {_write_wait(made.wait_s)}."
            response = await self._make_form(request, "sign_in.html", {**shown, "error": error}, 429)
            response.headers["Retry-After"] = str(made.wait_s)
            return response
        account = await self._passwords.run(lambda database: passwords.check_password(database, typed, password))
        if account is None:
            return await self._make_form(request, "sign_in.html", {**shown, "error": _WRONG}, 422)
        return await self._begin(request, account, made, _wanted(values.get("next")))

    async def sign_out(self, request: HttpRequest) -> HttpResponse:
        """End the session. Who is signed out already is where they want to be."""
        values = await read_fields(request)
        cookie = read_cookie(request, SESSION)
        session = await self._pages.find_session(request)
        if session is not None:
            self._pages.tokens.check(request, cookie, values)
            await self._pages.sessions.end(session.id)
        response = redirect(request, f"{SIGN_IN}?{urlencode({'signed-out': 'yes'})}")
        delete_cookie(request, response, SESSION)
        return response

    async def show_invitation(self, request: HttpRequest, token: str) -> HttpResponse:
        """Show who is invited to what."""
        return await self._make_invitation(request, await self._read_invitation(token))

    async def join(self, request: HttpRequest, token: str) -> HttpResponse:
        """Make a member of whoever has the link: with the account's password, or with a new one."""
        values = await self._read_visitors_form(request)
        password = values.get("password", "")
        invitation = await self._read_invitation(token)
        if not invitation.has_account and password != values.get("password_again", ""):
            return await self._make_invitation(request, invitation, "The two passwords are not the same.", 422)
        # By the link, which strangers do not have, so that their tries with the e-mail hold up nobody who has it.
        made = await self._try(request, token)
        if made.wait_s:
            text = f"There were too many tries. Try again in {_write_wait(made.wait_s)}."
            return await self._make_invitation(request, invitation, text, 429)

        try:
            account = await self._passwords.run(
                lambda database: admin_actions.accept_invitation(database, token, password)
            )
        except PasswordError as error:
            return await self._make_invitation(request, invitation, str(error), 422)
        if account is None:
            # The link may be good no longer, which reading it again tells.
            return await self._make_invitation(request, await self._read_invitation(token), _WRONG_PASSWORD, 422)
        return await self._begin(request, account, made, base_path(invitation.business_id, Mode.LIVE))

    async def show_account(self, request: HttpRequest) -> HttpResponse:
        """Show the form for a new password."""
        session = await self._pages.find_session(request, take_notice=True)
        if session is None:
            return self._pages.ask_to_sign_in(request)
        account = await self._pages.threads.run(lambda connection: find_account(connection, session))
        return await self._pages.make_page(request, _account_page(account), session)

    async def change_password(self, request: HttpRequest) -> HttpResponse:
        """Change the password of who is signed in; all other sessions end."""
        session = await self._pages.require_session(request)
        values = await read_fields(request)
        self._pages.tokens.check(request, session.id, values)
        account = await self._pages.threads.run(lambda connection: find_account(connection, session))
        current, new = values.get("password", ""), values.get("new_password", "")
        made = await self._try(request, account.email)
        error: str | None = None
        changed = None
        if made.wait_s:
            error = f"There were too many tries. Try again in {_write_wait(made.wait_s)}."
        elif new != values.get("new_password_again", ""):
            error = "The two new passwords are not the same."
        else:
            try:
                changed = await self._passwords.run(
                    lambda database: passwords.change_password(database, account.id, current, new)
                )
                error = None if changed else _WRONG_PASSWORD
            except PasswordError as refused:
                error = str(refused)
        if changed is None:
            status_code = 429 if made.wait_s else 422
            return await self._pages.make_page(request, _account_page(account, error, status_code), session)
        await self._pages.sessions.end(session.id)
        text = "The password is changed. Wherever else you were signed in, you are signed out."
        return await self._begin(request, changed, made, ACCOUNT, text)

    async def _begin(
        self, request: HttpRequest, account: Account, made: Try, path: str, notice: str | None = None
    ) -> HttpResponse:
        """Begin a session under a new id, end the browser's old one, and go on to a page."""
        await self._tries.succeed(made)
        await self._pages.sessions.end(read_cookie(request, SESSION))
        session = await self._pages.sessions.begin(account.id, account.password_changed_at)
        if notice:
            await self._pages.leave_notice(session, Notice(notice))
        response = redirect(request, path)
        set_cookie(request, response, SESSION, session.id)
        set_cookie(request, response, DEVICE, self._tries.make_device(account.email), max_age_s=_DEVICE_FOR_S)
        delete_cookie(request, response, VISITOR)
        return response

    async def _try(self, request: HttpRequest, email: str) -> Try:
        """Count a try, by the e-mail in the one spelling that stands for all."""
        address = network_of(request.client.host if request.client else "")
        return await self._tries.take(normalise_email(email) or email.lower(), address, read_cookie(request, DEVICE))

    async def _is_alive(self, session: Any) -> bool:
        def look_up(connection: Connection) -> bool:
            account = accounts.find_account(connection, session.account_id)
            return account is not None and account.password_changed_at == session.password_changed_at

        return await self._pages.threads.run(look_up)

    async def _read_invitation(self, token: str) -> Invitation:
        found = await self._pages.threads.run(lambda connection: invitations.read_invitation(connection, token))
        if found is None:
            text = "It was used, replaced or withdrawn, or is older than seven days. Ask for a new link."
            raise PageError(404, "This invitation is not valid any more", text)
        return found

    async def _make_invitation(
        self, request: HttpRequest, invitation: Invitation, error: str | None = None, status_code: int = 200
    ) -> HttpResponse:
        values = {"invitation": invitation, "error": error, "characters_min": PASSWORD_CHARACTERS_MIN}
        return await self._make_form(request, "invitation.html", values, status_code)

    async def _make_form(
        self, request: HttpRequest, template: str, values: Mapping[str, Any], status_code: int = 200
    ) -> HttpResponse:
        """Show a form to somebody who is not signed in, with a token for their cookie."""
        visitor = read_cookie(request, VISITOR)
        is_new = not looks_like_random_id(visitor)
        if is_new:
            visitor = new_random_id()
        token = self._pages.tokens.make(visitor)
        shown = Page(template, {**values, "csrf_token": token}, status_code)
        response = await self._pages.make_page(request, shown)
        if is_new:
            set_cookie(request, response, VISITOR, visitor)
        return response

    async def _read_visitors_form(self, request: HttpRequest) -> dict[str, str]:
        check_origin(request)
        visitor = read_cookie(request, VISITOR)
        if not looks_like_random_id(visitor):
            raise ForeignFormError
        values = await read_fields(request)
        self._pages.tokens.check(request, visitor, values)
        return values


def _wanted(path: str | None) -> str:
    """Return where to go after signing in: a page of the dashboard."""
    wanted = local_path(path, HOME)
    return wanted if wanted == HOME or wanted.startswith(f"{HOME}/") else HOME


def _account_page(account: Account, error: str | None = None, status_code: int = 200) -> Page:
    values = {"email": account.email, "error": error, "characters_min": PASSWORD_CHARACTERS_MIN}
    return Page("account.html", values, status_code)


def _write_wait(wait_s: int) -> str:
    if wait_s < 60:
        return "a second" if wait_s == 1 else f"{wait_s} seconds"
    minutes = -(-wait_s // 60)
    return "a minute" if minutes == 1 else f"{minutes} minutes"
