"""People in front of the dashboard, with a browser that runs no scripts: it fills in the forms that a page shows."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from typing import Any

import httpx

from core import admin_actions
from core.credentials import Mode
from core.ids import IdKind, format_id
from core.parties import accounts, businesses, members, passwords
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import Business
from core.parties.members import Role
from tests.servers import System

PASSWORD = "correct horse battery"  # noqa: S105
_opened: list[httpx.Client] = []


def close_all() -> None:
    """Close the browsers of everybody."""
    while _opened:
        _opened.pop().close()


@dataclass
class Form:
    action: str
    method: str
    values: dict[str, str] = field(default_factory=dict)
    buttons: list[tuple[str, str]] = field(default_factory=list)


def is_sent(given: dict[str, str]) -> bool:
    """Tell whether an input is sent as it stands."""
    kind = given.get("type", "")
    return "checked" in given if kind == "radio" else kind != "file"


class Document(HTMLParser):
    """A page's text and forms."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: list[str] = []
        self._texts: list[str] = []
        self._form: Form | None = None
        self._select = ""
        self.feed(html)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.links.append(given.get("href", ""))
        elif tag == "form":
            self._form = Form(given.get("action", ""), given.get("method", "get"))
            self.forms.append(self._form)
        elif self._form is None:
            return
        elif tag == "select":
            self._select = given.get("name", "")
        elif tag == "option" and (self._select not in self._form.values or "selected" in given):
            self._form.values[self._select] = given.get("value", "")
        elif tag == "button" and given.get("name"):
            self._form.buttons.append((given["name"], given.get("value", "")))
        elif tag == "input" and given.get("name") and is_sent(given):
            self._form.values[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None

    def handle_data(self, data: str) -> None:
        self._texts.append(data)

    def form(self, end: str) -> Form:
        """The only form whose action ends like this."""
        (found,) = [form for form in self.forms if form.action.endswith(end)]
        return found


class Visitor:
    """Somebody with a browser and an address of their own."""

    def __init__(self, system: System, email: str = "", *, https: bool = False) -> None:
        self.email = email
        headers = {"X-Forwarded-For": f"2001:db8:{secrets.token_hex(2)}:{secrets.token_hex(2)}::1"}
        if https:
            headers["X-Forwarded-Proto"] = "https"
        self.client = system.client(headers=headers)
        _opened.append(self.client)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def open(self, path: str) -> Document:
        """A page that has to be there."""
        response = self.get(path)
        assert response.status_code == 200, (path, response.status_code, Document(response.text).text)
        return Document(response.text)

    def send(self, form: Form, _button: tuple[str, str] | None = None, **values: str) -> httpx.Response:
        """Send a form as it stands, with a few values filled in."""
        pressed = dict([_button or form.buttons[0]]) if form.buttons or _button else {}
        return self.client.post(form.action, data={**form.values, **pressed, **values})

    def follow(self, response: httpx.Response) -> Document:
        """The page that a change leads to."""
        assert response.status_code == 303, (response.status_code, Document(response.text).text)
        return self.open(response.headers["location"])

    def sign_in(self, password: str = PASSWORD, path: str = "/dashboard/sign-in") -> httpx.Response:
        form = self.open(path).form("/sign-in")
        return self.send(form, email=self.email, password=password)


@cache
def hash_of_password() -> str:
    return passwords.hash_password(PASSWORD)


def new_email() -> str:
    return f"{secrets.token_hex(6)}@example.com"


def add_member(system: System, business: Business, role: Role = Role.ADMIN, email: str | None = None) -> Visitor:
    """A member who is not signed in yet."""
    email = email or new_email()
    hash_ = hash_of_password()
    with system.database.transaction() as connection:
        account = accounts.find_account_by_email(connection, email)
        account = account or accounts.create_account(connection, email, hash_)
        assert account is not None
        members.add_member(connection, business.id, account.id, role)
    return Visitor(system, email)


def sign_in(system: System, business: Business, role: Role = Role.ADMIN) -> Visitor:
    """A member who is signed in."""
    visitor = add_member(system, business, role)
    assert visitor.sign_in().status_code == 303
    return visitor


def base(business: Business, mode: Mode = Mode.LIVE) -> str:
    return f"/dashboard/{format_id(IdKind.BUSINESS, business.id)}/{mode}"


def read_business(system: System, business: Business) -> Business:
    with system.database.transaction() as connection:
        return businesses.get_business(connection, business.id)


def deposit(system: System, business: Business, cents: int) -> None:
    with system.database.transaction() as connection:
        admin_actions.deposit(connection, COMMAND_LINE, business.id, cents)
