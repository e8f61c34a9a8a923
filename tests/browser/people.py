"""People who use the dashboard in a browser, and what they do again and again."""

from dataclasses import dataclass
from uuid import uuid4

from playwright.sync_api import Page, expect

from core import admin_actions
from core.ids import IdKind, format_id
from core.parties.audit import COMMAND_LINE
from core.parties.members import Role
from tests.servers import Account, System

PASSWORD = "a pass phrase for tests"  # noqa: S105


@dataclass
class Person:
    """A member of one business."""

    email: str
    base: str
    """Where the pages of the business begin, in live mode."""

    @property
    def test_base(self) -> str:
        return self.base.removesuffix("live") + "test"


def join(system: System, account: Account, role: Role = Role.ADMIN, email: str | None = None) -> Person:
    """Make somebody a member; the tests of invitations do it by hand."""
    email = email or f"{uuid4().hex}@example.com"
    with system.database.transaction() as connection:
        token = admin_actions.invite_member(connection, COMMAND_LINE, account.business.id, email, role)
    assert admin_actions.accept_invitation(system.database, token, PASSWORD) is not None
    return Person(email, f"/dashboard/{format_id(IdKind.BUSINESS, account.business.id)}/live")


def sign_in(page: Page, person: Person) -> Page:
    page.goto("/dashboard/sign-in")
    fill_in_sign_in(page, person.email, PASSWORD)
    expect(page.get_by_role("heading", level=1)).to_have_text("Home")
    return page


def fill_in_sign_in(page: Page, email: str, password: str) -> None:
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def sign_out(page: Page) -> None:
    page.locator("details.menu-end summary").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def press(page: Page, name: str, *, is_asked: bool) -> None:
    """Press the button of a change; with scripts, the page asks first where the change takes something away."""
    page.get_by_role("button", name=name).click()
    if is_asked:
        page.get_by_role("dialog").get_by_role("button", name=name).click()


def read_tile(page: Page, name: str) -> str:
    """Return the figure that stands below a name."""
    return page.locator(".tile").filter(has=page.get_by_text(name, exact=True)).locator("dd").first.inner_text()
