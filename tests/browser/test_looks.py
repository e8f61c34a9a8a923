"""Every page, in light and dark, on a phone and on a wide screen: pictures, nothing cut off, and no finding of axe's.

Only these tests switch the content security policy off, for axe is a script of theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from core import admin_actions
from core.parties import businesses
from core.parties.audit import COMMAND_LINE
from core.parties.members import Role
from tests.api.batches.file_cases import workbook, write_hidden_rows
from tests.browser.conftest import DESKTOP, PHONE, OpenPage, Watch
from tests.browser.people import Person, join, sign_in
from tests.polling import wait_until
from tests.servers import Account, System, open_account

pytestmark = pytest.mark.timeout(600)

SERIOUS = {"serious", "critical"}
LONG_EMAIL = f"a.very.long.name.that.goes.on.and.on.{'x' * 20}@a-long-domain-name.with-parts.example.com"


@dataclass
class Shop:
    """A business with a bit of everything."""

    account: Account
    admin: Person
    viewer: Person
    batch_id: str
    user_id: str


@pytest.fixture(scope="session")
def shop(system: System) -> Shop:
    account = open_account(system.database, name="Bookshop & Sons", funds_cents=50_000_000)
    admin, viewer = (
        join(system, account, email=f"ada.{uuid4().hex[:6]}@example.com"),
        join(system, account, Role.VIEWER),
    )
    headers = account.headers
    with system.client() as client:
        for number in range(40):
            body = {"email": f"person{number}@example.com", "amount": 1000 + number * 137}
            assert client.post("/payout/create", json=body, headers=headers).status_code == 201
        client.post("/payout/create", json={"email": LONG_EMAIL, "amount": 100_000_000}, headers=headers)
        client.post("/payout/create", json={"email": LONG_EMAIL, "amount": 12_345_678}, headers=headers)
        client.post("/payout/create", json={"email": "nobody", "amount": 1}, headers=headers)
        rows = [{"email": f"p{n}@example.com", "amount": 500, "reference": f"order-{n}"} for n in range(60)]
        batch = client.post("/payout/batches", json={"allocations": rows}, headers=headers).json()
        path = f"/payout/batches/{batch['id']}"
        wait_until(lambda: client.get(path, headers=headers).json()["status"] == "completed", path, 30, pause_s=0.1)
        users = client.get("/payout/users", params={"email": "person3@example.com"}, headers=headers).json()["data"]
        client.patch(f"/payout/users/{users[0]['id']}", json={"status": "inactive"}, headers=headers)
    with system.database.transaction() as connection:
        admin_actions.invite_member(connection, COMMAND_LINE, account.business.id, LONG_EMAIL, Role.VIEWER)
        admin_actions.set_low_balance_threshold(connection, COMMAND_LINE, account.business.id, 90_000_000)
        businesses.deposit(connection, account.business.id, 1_234_500)
    return Shop(account, admin, viewer, batch["id"], users[0]["id"])


def at(path: str) -> Callable[[Page, Shop, Path], None]:
    def go(page: Page, shop: Shop, _: Path) -> None:
        page.goto(path.format(base=shop.admin.base, test=shop.admin.test_base, batch=shop.batch_id, user=shop.user_id))

    return go


def show_playground_answer(page: Page, shop: Shop, _: Path) -> None:
    page.goto("/docs")
    page.get_by_label("Secret API key").fill(shop.account.secret_key)
    form = page.locator("#getBalance form")
    form.get_by_role("button", name="Send").click()
    expect(form.locator(".outcome")).to_contain_text("200")
    for details in page.locator("#createPayout details, #getBalance details").all():
        details.evaluate("details => { details.open = true }")
    page.locator("#createPayout form").get_by_role("button", name="Send").click()


def show_key(page: Page, shop: Shop, _: Path) -> None:
    page.goto(f"{shop.admin.base}/developers")
    page.get_by_role("button", name="Create a key").click()
    expect(page.locator("#secret")).to_be_visible()


def show_invitation(page: Page, shop: Shop, _: Path) -> None:
    page.goto(f"{shop.admin.base}/settings")
    page.get_by_label("Invite an e-mail").fill(f"{uuid4().hex}@example.com")
    page.get_by_role("button", name="Invite", exact=True).click()
    expect(page.locator("#secret")).to_be_visible()


def accept_invitation(page: Page, shop: Shop, folder: Path) -> None:
    show_invitation(page, shop, folder)
    page.goto(page.locator("#secret").inner_text())


def upload(page: Page, shop: Shop, rows: Path, text: str) -> None:
    rows.write_text(text)
    page.goto(f"{shop.admin.base}/batches")
    page.get_by_label("CSV, NDJSON, JSON or .xlsx file").set_input_files(rows)
    page.get_by_role("button", name="Check the file").click()


def show_preview(page: Page, shop: Shop, folder: Path) -> None:
    lines = "".join(f"p{n}@example.com,1.00,order {n}\n" for n in range(30))
    upload(page, shop, folder / "people.csv", f"email,amount,reference\n{LONG_EMAIL},12.34,{'r' * 200}\n{lines}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Pay this batch?")


def show_columns(page: Page, shop: Shop, folder: Path) -> None:
    header = "E-mail address,Amount (USD),Note that has a rather long name and goes on for a while,Internal id,"
    upload(page, shop, folder / "people.csv", f"{header}\nada@example.com,12.50,hi,7,x\n")
    expect(page.get_by_role("heading", level=1)).to_have_text("How is this file to be read?")


def show_hidden_rows(page: Page, shop: Shop, folder: Path) -> None:
    (folder / "people.xlsx").write_bytes(workbook(write_hidden_rows))
    page.goto(f"{shop.admin.base}/batches")
    page.get_by_label("CSV, NDJSON, JSON or .xlsx file").set_input_files(folder / "people.xlsx")
    page.get_by_role("button", name="Check the file").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("How is this file to be read?")


def show_preview_with_notes(page: Page, shop: Shop, folder: Path) -> None:
    show_columns(page, shop, folder)
    page.get_by_role("button", name="Check the file").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Pay this batch?")
    expect(page.get_by_text("The columns")).to_be_visible()


def show_mistakes(page: Page, shop: Shop, folder: Path) -> None:
    upload(page, shop, folder / "people.csv", "email,amount\n" + "nobody,x\n" * 20)
    expect(page.get_by_role("alert")).to_be_visible()


def show_field_error(page: Page, shop: Shop, _: Path) -> None:
    page.goto(f"{shop.admin.base}/settings")
    page.get_by_label("Move to the payout balance").fill("a lot")
    page.get_by_role("button", name="Add funds").click()
    expect(page.locator("#amount-error")).to_be_visible()


def show_question(page: Page, shop: Shop, _: Path) -> None:
    page.goto(f"{shop.admin.base}/settings")
    page.get_by_role("button", name="Disable payouts").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def show_menu(page: Page, shop: Shop, _: Path) -> None:
    page.goto(shop.admin.base)
    page.locator("details.menu-end summary").click()
    page.get_by_text("The same as a table").click()
    page.locator("details.menu-end summary").click()


def show_signed_out(page: Page, shop: Shop, _: Path) -> None:
    page.context.clear_cookies()
    page.goto("/dashboard/sign-in")
    page.get_by_label("E-mail").fill(f"{uuid4().hex}@example.com")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_be_visible()


def show_payment(page: Page, shop: Shop, _: Path) -> None:
    page.goto(f"{shop.admin.base}/transactions?search=order-7")
    page.get_by_role("link", name="Allocation").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Payment of $5.00")


def show_equal_payments(page: Page, shop: Shop, folder: Path) -> None:
    rows = "".join(f"person{n}@example.com,{(1000 + n * 137) / 100:.2f}\n" for n in range(12))
    upload(page, shop, folder / "people.csv", f"email,amount\n{rows}new@example.com,1.00\n{LONG_EMAIL},123456.78\n")
    expect(page.get_by_text("may be paid a second time")).to_be_visible()


def show_already_paid(page: Page, shop: Shop, folder: Path) -> None:
    rows = "".join(f"p{n}@example.com,5.00,order-{n}\n" for n in range(3))
    upload(page, shop, folder / "people.csv", f"email,amount,reference\n{rows}new@example.com,1.00,{uuid4().hex}\n")
    expect(page.get_by_text("rows are already paid")).to_be_visible()
    page.get_by_role("button", name="Pay $1.00").click()
    expect(page.get_by_text("Already paid").first).to_be_visible()


def show_refused_references(page: Page, shop: Shop, folder: Path) -> None:
    upload(page, shop, folder / "people.csv", "email,amount,reference\np1@example.com,6.00,order-1\n")
    expect(page.get_by_text("It cannot be accepted.")).to_be_visible()


PAGES: dict[str, Callable[[Page, Shop, Path], None]] = {
    "home": at("{base}"),
    "home-test-mode": at("{test}"),
    "home-with-menu": show_menu,
    "users": at("{base}/users"),
    "users-none": at("{base}/users?email=zz"),
    "user": at("{base}/users/{user}"),
    "transactions": at("{base}/transactions"),
    "transactions-wrong-filter": at("{base}/transactions?from=2026-13-45"),
    "transactions-nothing-found": at("{base}/transactions?search=no+such+reference"),
    "transactions-by-reference": at("{base}/transactions?search=order-7"),
    "payment": show_payment,
    "batches": at("{base}/batches"),
    "batch-equal-payments": show_equal_payments,
    "batch-already-paid": show_already_paid,
    "batch-refused-references": show_refused_references,
    "batches-mistakes": show_mistakes,
    "batch": at("{base}/batches/{batch}"),
    "batch-preview": show_preview,
    "batch-columns": show_columns,
    "batch-hidden-rows": show_hidden_rows,
    "batch-preview-notes": show_preview_with_notes,
    "developers": at("{base}/developers"),
    "developers-test-mode": at("{test}/developers"),
    "developers-new-key": show_key,
    "settings": at("{base}/settings"),
    "settings-test-mode": at("{test}/settings"),
    "settings-field-error": show_field_error,
    "settings-question": show_question,
    "settings-invitation": show_invitation,
    "log": at("{base}/settings/log"),
    "account": at("/dashboard/account"),
    "invitation": accept_invitation,
    "not-found": at("/dashboard/nothing"),
    "sign-in": show_signed_out,
    "playground": at("/docs"),
    "playground-answer": show_playground_answer,
    "contract": at("/docs/contract"),
    "docs-not-found": at("/docs/nothing"),
}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_every_page_can_be_seen_and_used_by_everybody(
    open_page: OpenPage, watch: Watch, shop: Shop, screenshots: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    watch.expected.add("does not conform to the required format")  # Chromium of a date that is none
    page = sign_in(open_page(width=width, dark=dark, bypass_csp=True), shop.admin)
    cookies = page.context.cookies()
    findings = []
    for name, go in PAGES.items():
        go(page, shop, tmp_path)
        page.screenshot(path=screenshots / f"{name}-{width}-{'dark' if dark else 'light'}.png", full_page=True)
        if page.evaluate("document.documentElement.scrollWidth") > width:
            findings.append(f"{name}: wider than the window")
        for finding in Axe().run(page).response["violations"]:
            if finding["impact"] in SERIOUS:
                places = [node["html"][:200] for node in finding["nodes"][:3]]
                findings.append(f"{name}: {finding['id']}: {finding['help']}: {places}")
        page.context.add_cookies([{**cookie} for cookie in cookies])  # type: ignore[typeddict-item]
    assert findings == []
