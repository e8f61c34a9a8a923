"""What people do in the dashboard, in a browser, with scripts and without."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import Page, expect

from core.parties.members import Role
from tests.browser.conftest import PHONE, OpenPage
from tests.browser.people import PASSWORD, Person, fill_in_sign_in, join, press, read_tile, sign_in, sign_out
from tests.servers import Account, System, open_account, verify_books

pytestmark = pytest.mark.timeout(300)

NO_HASH = {"error": "Unauthorized"}
with_and_without_scripts = pytest.mark.parametrize(
    "java_script", [True, False], ids=["with scripts", "without scripts"]
)


@pytest.fixture
def admin(system: System, account: Account) -> Person:
    return join(system, account)


@pytest.fixture
def viewer(system: System, account: Account) -> Person:
    return join(system, account, Role.VIEWER)


@pytest.fixture
def home(page: Page, admin: Person) -> Page:
    return sign_in(page, admin)


def run_payouts(system: System, *arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "payouts"), *arguments]
    done = subprocess.run(command, env=system.environment, capture_output=True, text=True, check=True)
    return str(done.stdout)


def expect_notice(page: Page, text: str) -> None:
    expect(page.locator("main .notice").first).to_contain_text(text)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@with_and_without_scripts
def test_from_the_invitation_to_signing_out(
    open_page: OpenPage, system: System, client: httpx.Client, tmp_path: Path, java_script: bool
) -> None:
    page = open_page(java_script=java_script)
    name, email = f"ACME {uuid4().hex[:6]}", f"{uuid4().hex}@example.com"
    account = open_account(system.database, name=name, funds_cents=5_000_00, payouts_enabled=False)

    # The invitation.
    invited = json.loads(run_payouts(system, "member", "invite", name, email, "--url", system.base_url, "--json"))
    page.goto(invited["link"])
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Join {name}")
    page.get_by_label("Choose a password").fill(PASSWORD)
    page.get_by_label("The same password again").fill("another one than that")
    page.get_by_role("button", name="Create the account").click()
    expect(page.get_by_role("alert")).to_contain_text("not the same")
    page.get_by_label("Choose a password").fill(PASSWORD)
    page.get_by_label("The same password again").fill(PASSWORD)
    page.get_by_role("button", name="Create the account").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Home")
    sign_out(page)
    page.goto(invited["link"])
    expect(page.get_by_role("heading", level=1)).to_contain_text("not valid any more")

    # Signing in.
    page.goto("/dashboard")
    fill_in_sign_in(page, email, "not the password at all")
    expect(page.get_by_role("alert")).to_have_text("The e-mail or the password is wrong.")
    fill_in_sign_in(page, email, PASSWORD)
    expect(page.get_by_role("heading", level=1)).to_have_text("Home")
    expect_notice(page, "Payouts are disabled")

    # Enabling payouts.
    page.get_by_role("link", name="Settings", exact=True).click()
    page.get_by_role("button", name="Enable payouts").click()
    expect(page.get_by_role("button", name="Disable payouts")).to_be_visible()

    # A key.
    page.get_by_role("link", name="Developers", exact=True).click()
    page.get_by_label("Name of a new key").fill("web shop")
    page.get_by_role("button", name="Create a key").click()
    key = page.locator("#secret").inner_text()
    assert key.startswith("sk_live_")
    page.get_by_role("link", name="I have kept it").click()
    expect(page.locator("main")).to_contain_text("web shop")
    assert key not in page.content()

    # A call with it.
    if java_script:
        page.get_by_role("link", name="playground").click()
        page.get_by_label("Secret API key").fill(key)
        form = page.locator("#createPayout form")
        form.get_by_role("button", name="Send").click()
        page.get_by_role("dialog").get_by_role("button", name="Pay", exact=True).click()
        expect(form.locator(".outcome")).to_have_text(re.compile("^201 Created"))
        hash_ = json.loads(form.locator(".answer pre").inner_text())["hash"]
    else:
        answer = client.post(
            "/payout/create",
            json={"email": "user@example.com", "amount": 10000},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert answer.status_code == 201
        hash_ = answer.json()["hash"]
    own = client.get("/payout/user", headers={"X-Payout-Hash": hash_})
    assert (own.status_code, own.json()["balance"]) == (200, 10000)

    # The balance has fallen, and the user is there.
    page.goto("/dashboard")
    assert read_tile(page, "Payout balance") == "$4,900.00"
    assert read_tile(page, "Today") == "$100.00"
    page.get_by_role("link", name="Users", exact=True).click()
    page.get_by_label("E-mail begins with").fill("USER@exam")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="user@example.com").click()
    assert read_tile(page, "Balance") == "$100.00"

    # A batch.
    rows = tmp_path / "people.csv"
    rows.write_text(
        "email,amount,reference\nuser@example.com,1.50,a\n"
        + "".join(f"person{number}@example.com,2.00,=SUM({number})\n" for number in range(30))
    )
    page.get_by_role("link", name="Batches", exact=True).click()
    page.get_by_label("CSV, NDJSON, JSON or .xlsx file").set_input_files(rows)
    page.get_by_role("button", name="Check the file").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Pay this batch?")
    shown = {tile: read_tile(page, tile) for tile in ("Rows", "Users", "Sum", "Payout balance after")}
    assert shown == {"Rows": "31", "Users": "31", "Sum": "$61.50", "Payout balance after": "$4,838.50"}
    page.get_by_role("button", name="Pay $61.50 to 31 users").click()
    # It goes on by itself: with a script that asks, or with a page that is loaded again and again.
    expect(page.locator(".progress .status")).to_have_text("Completed", timeout=30_000)
    expect(page.locator("main")).to_contain_text("person7@example.com")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the results as CSV").click()
    results = read_csv(download.value.path().read_text())
    assert len(results) == 31
    assert {row["outcome"] for row in results} == {"allocated"}
    assert all(row["reference"].startswith("'=SUM") for row in results[1:])

    # Locked out.
    page.get_by_role("link", name="Users", exact=True).click()
    page.get_by_role("link", name="E-mail").click()
    expect(page.get_by_role("columnheader", name="E-mail")).to_have_attribute("aria-sort", "ascending")
    page.get_by_role("link", name="E-mail").click()
    expect(page.get_by_role("columnheader", name="E-mail")).to_have_attribute("aria-sort", "descending")
    page.get_by_role("link", name="user@example.com").click()
    press(page, "Deactivate", is_asked=java_script)
    expect(page.get_by_role("button", name="Activate", exact=True)).to_be_visible()
    refused = client.get("/payout/user", headers={"X-Payout-Hash": hash_})
    assert (refused.status_code, refused.json()) == (401, NO_HASH)
    page.get_by_role("button", name="Activate", exact=True).click()
    expect(page.get_by_role("button", name="Deactivate")).to_be_visible()
    assert client.get("/payout/user", headers={"X-Payout-Hash": hash_}).json()["balance"] == 10150

    # The history as a file.
    page.get_by_role("link", name="Transactions", exact=True).click()
    page.get_by_label("What").select_option("allocation")
    page.get_by_label("Id, e-mail or reference").fill("user@example.com")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download this selection as CSV").click()
    exported = read_csv(download.value.path().read_text())
    assert sorted(row["amount_cents"] for row in exported) == ["10000", "150"]
    assert {row["email"] for row in exported} == {"user@example.com"}

    # All of it is in the log.
    page.get_by_role("link", name="Settings", exact=True).click()
    log = page.locator("section", has=page.get_by_role("heading", name="Audit log"))
    expect(log.locator("tbody tr")).to_have_count(7)
    expect(log).to_contain_text(email)
    address = page.url

    # Signing out.
    sign_out(page)
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert name not in page.content()
    page.goto(address)
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    fill_in_sign_in(page, email, PASSWORD)
    expect(page).to_have_url(address)
    assert verify_books(system.database).balanced
    assert account.business.name == name


@with_and_without_scripts
def test_a_file_with_mistakes_is_not_taken(
    open_page: OpenPage, admin: Person, tmp_path: Path, java_script: bool
) -> None:
    page = sign_in(open_page(java_script=java_script), admin)
    rows = tmp_path / "people.csv"
    rows.write_text("email,amount\nuser@example.com,1.50\nnobody,2\n<b>x</b>@example.com,1\n")
    page.goto(f"{admin.base}/batches")
    page.get_by_label("CSV, NDJSON, JSON or .xlsx file").set_input_files(rows)
    page.get_by_role("button", name="Check the file").click()
    mistakes = page.get_by_role("alert")
    expect(mistakes).to_contain_text("Nothing was paid.")
    expect(mistakes.locator("li")).to_have_count(2)
    expect(mistakes.locator("li").first).to_contain_text("3")
    expect(page.locator("#all ~ .empty")).to_be_visible()


@with_and_without_scripts
def test_more_than_the_balance_cannot_be_paid(
    open_page: OpenPage, admin: Person, tmp_path: Path, java_script: bool
) -> None:
    page = sign_in(open_page(java_script=java_script), admin)
    rows = tmp_path / "people.csv"
    rows.write_text("email,amount\nuser@example.com,10000.01\n")
    page.goto(f"{admin.base}/batches")
    page.get_by_label("CSV, NDJSON, JSON or .xlsx file").set_input_files(rows)
    page.get_by_role("button", name="Check the file").click()
    expect_notice(page, "The payout balance is too small.")
    expect(page.get_by_role("button", name="Pay $10,000.01 to 1 user")).to_be_disabled()


@with_and_without_scripts
def test_funds_and_threshold(
    open_page: OpenPage, system: System, account: Account, admin: Person, java_script: bool
) -> None:
    page = sign_in(open_page(java_script=java_script), admin)
    page.goto(f"{admin.base}/settings")
    page.get_by_label("Move to the payout balance").fill("1,5")
    page.get_by_role("button", name="Add funds").click()
    expect(page.locator("#amount-error")).to_be_visible()
    page.get_by_label("Warn below").fill("20000")
    page.get_by_role("button", name="Set").click()
    page.goto(admin.base)
    expect_notice(page, "It is below $20,000.00.")


def test_viewers_look_and_change_nothing(open_page: OpenPage, viewer: Person, admin: Person) -> None:
    page = sign_in(open_page(), viewer)
    for path in ("", "/users", "/transactions", "/batches", "/developers", "/settings"):
        page.goto(viewer.base + path)
        assert page.locator("main form[method=post]").count() == 0
    # With the forms of an admin's page, too.
    other = sign_in(open_page(), admin)
    other.goto(f"{admin.base}/settings")
    form_id = other.locator("form[action$='/settings/payouts'] [name=form_id]").input_value()
    page.goto(f"{viewer.base}/settings")
    token = page.locator("[name=csrf_token]").first.input_value()
    answer = page.request.post(
        f"{viewer.base}/settings/payouts",
        form={"csrf_token": token, "form_id": form_id, "enabled": "no"},
        headers={"Origin": page.url.split("/dashboard")[0]},
    )
    assert answer.status == 403
    assert "Only admins can do this" in answer.text()
    other.reload()
    expect(other.get_by_role("button", name="Disable payouts")).to_be_visible()


@with_and_without_scripts
def test_live_and_test_mode_cannot_be_taken_for_each_other(
    open_page: OpenPage, admin: Person, java_script: bool
) -> None:
    page = sign_in(open_page(java_script=java_script), admin)
    assert read_tile(page, "Payout balance") == "$10,000.00"
    expect(page.get_by_text("Test mode")).to_have_count(0)
    page.get_by_role("navigation", name="Mode").get_by_role("link", name="Test").click()
    expect(page.locator(".test-band")).to_contain_text("Test mode")
    expect(page).to_have_url(re.compile(f"{admin.test_base}$"))
    assert read_tile(page, "Payout balance") != "$10,000.00"
    page.get_by_role("link", name="Developers", exact=True).click()
    expect(page.locator(".test-band")).to_be_visible()
    page.get_by_role("button", name="Create a key").click()
    expect(page.locator("#secret")).to_contain_text("sk_test_")
    page.get_by_role("link", name="I have kept it").click()
    page.get_by_role("navigation", name="Mode").get_by_role("link", name="Live").click()
    expect(page).to_have_url(re.compile(f"{admin.base}/developers$"))
    expect(page.locator(".test-band")).to_have_count(0)


@with_and_without_scripts
def test_a_form_of_an_ended_session_does_nothing(open_page: OpenPage, admin: Person, java_script: bool) -> None:
    page = sign_in(open_page(java_script=java_script), admin)
    page.goto(f"{admin.base}/settings")
    cookies = page.context.cookies()
    page.context.clear_cookies()
    press(page, "Disable payouts", is_asked=java_script)
    expect(page.get_by_role("heading", level=1)).to_have_text("You are signed out")
    page.context.add_cookies([{**cookie} for cookie in cookies])  # type: ignore[typeddict-item]
    page.goto(f"{admin.base}/settings")
    expect(page.get_by_role("button", name="Disable payouts")).to_be_visible()


def test_a_form_with_a_wrong_token_does_nothing(home: Page, admin: Person) -> None:
    home.goto(f"{admin.base}/settings")
    home.locator("form[action$='/settings/low-balance'] [name=csrf_token]").evaluate(
        "field => { field.value = '0'.repeat(field.value.length) }"
    )
    home.get_by_label("Warn below").fill("1")
    home.get_by_role("button", name="Set").click()
    expect(home.get_by_role("heading", level=1)).to_have_text("This form is out of date")
    home.goto(f"{admin.base}/settings")
    expect(home.get_by_label("Warn below")).to_have_value("")


def test_a_form_that_is_sent_again_does_nothing_twice(home: Page, admin: Person) -> None:
    home.goto(f"{admin.base}/developers")
    home.get_by_role("button", name="Create a key").click()
    expect(home.locator("#secret")).to_be_visible()
    home.reload()
    home.goto(f"{admin.base}/developers")
    live_keys = home.locator("tbody tr", has=home.get_by_role("button", name="Revoke"))
    assert live_keys.count() == 2  # the account's own, and the new one


@with_and_without_scripts
def test_keys_are_rolled_and_revoked(
    open_page: OpenPage, client: httpx.Client, account: Account, admin: Person, java_script: bool
) -> None:
    page = sign_in(open_page(java_script=java_script), admin)
    page.goto(f"{admin.base}/developers")
    page.get_by_label("The old key ends").select_option(index=0)
    press(page, "Roll", is_asked=java_script)
    new = {"Authorization": f"Bearer {page.locator('#secret').inner_text()}"}
    assert client.get("/balance", headers=new).status_code == 200
    page.get_by_role("link", name="I have kept it").click()
    press(page, "Revoke", is_asked=java_script)
    expect_notice(page, "is revoked")
    assert client.get("/balance", headers=new).status_code == 401


def test_recent_requests_are_there_a_moment_later(
    home: Page, client: httpx.Client, account: Account, admin: Person
) -> None:
    for path in ("/balance", "/payout/users?email=secret%40example.com"):
        assert client.get(path, headers={**account.headers, "X-Request-Id": "order-77"}).status_code == 200
    for _ in range(50):
        home.goto(f"{admin.base}/developers")
        if home.get_by_text("order-77").count() == 2:
            break
        home.wait_for_timeout(100)
    expect(home.get_by_text("order-77")).to_have_count(2)
    expect(home.locator("main")).to_contain_text("GET /balance")
    assert "secret@example.com" not in home.content()
    assert account.secret_key not in home.content()


@with_and_without_scripts
def test_members_come_and_go(open_page: OpenPage, system: System, admin: Person, java_script: bool) -> None:
    page = sign_in(open_page(java_script=java_script), admin)
    email = f"{uuid4().hex}@example.com"
    page.goto(f"{admin.base}/settings")
    page.get_by_label("Invite an e-mail").fill(email)
    page.get_by_label("Role").select_option("viewer")
    page.get_by_role("button", name="Invite", exact=True).click()
    link = page.locator("#secret").inner_text()
    assert link.startswith(system.base_url)
    guest = open_page(java_script=java_script)
    guest.goto(link)
    guest.get_by_label("Choose a password").fill(PASSWORD)
    guest.get_by_label("The same password again").fill(PASSWORD)
    guest.get_by_role("button", name="Create the account").click()
    expect(guest.get_by_role("heading", level=1)).to_have_text("Home")
    page.goto(f"{admin.base}/settings")
    press(page, f"Remove {email}", is_asked=False)
    if java_script:
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect_notice(page, email)
    guest.goto(f"{admin.base}/users")
    expect(guest.get_by_role("heading", level=1)).to_have_text("There is no such page")


def test_another_business_is_not_there(home: Page, system: System) -> None:
    other = join(system, open_account(system.database))
    for path in ("", "/users", "/settings", "/transactions.csv", "/developers"):
        home.goto(other.base + path)
        expect(home.get_by_role("heading", level=1)).to_have_text("There is no such page")


def test_by_keyboard_alone(page: Page, system: System) -> None:
    account = open_account(system.database, payouts_enabled=False)
    person = join(system, account)
    page.goto("/dashboard/sign-in")
    expect(page.get_by_label("E-mail")).to_be_focused()
    page.keyboard.type(person.email)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Home")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the content")
    go_by_tab(page, "Settings")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Settings")
    go_by_tab(page, "Enable payouts")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Disable payouts")).to_be_visible()
    # What takes something away is asked about, and Escape takes it back.
    go_by_tab(page, "Disable payouts")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.reload()
    expect(page.get_by_role("button", name="Disable payouts")).to_be_visible()


def go_by_tab(page: Page, text: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        if focused.count() and focused.inner_text().strip() == text:
            # Whoever goes by keyboard sees where they are.
            assert focused.evaluate("element => getComputedStyle(element).outlineStyle") != "none"
            return
    pytest.fail(f"{text} cannot be reached by Tab")


def test_on_a_phone_everything_can_be_reached(open_page: OpenPage, admin: Person) -> None:
    page = sign_in(open_page(width=PHONE), admin)
    for section in ("Users", "Transactions", "Batches", "Developers", "Settings", "Home"):
        page.get_by_role("link", name=section, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(section)
    sign_out(page)
