"""The playground in a browser: calls on the running system, as an integrator makes them."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from core.credentials import KeyKind
from core.parties import api_keys, businesses
from tests.browser.conftest import PHONE, OpenPage, Watch
from tests.servers import Account, Servers, System, open_account, run_system

PLAY_MONEY_CENTS = 100_000_000


@pytest.fixture
def test_key(system: System, account: Account) -> str:
    with system.database.transaction() as connection:
        _, key = api_keys.create_api_key(connection, account.business.twin_id, KeyKind.SECRET)
    assert key.startswith("sk_test_")
    return key


@pytest.fixture
def playground(page: Page) -> Page:
    page.goto("/docs")
    return page


def form_of(page: Page, operation: str) -> Locator:
    return page.locator(f"#{operation} form.try")


def enter_key(page: Page, key: str) -> None:
    page.get_by_label("Secret API key").fill(key)


def send(form: Locator, status_code: int) -> str:
    form.get_by_role("button", name="Send").click()
    expect(form.locator(".outcome")).to_have_text(re.compile(rf"^{status_code} "))
    return form.locator(".answer pre").inner_text()


def balance_of(system: System, account: Account) -> int:
    with system.database.snapshot() as connection:
        return businesses.get_business(connection, account.business.id).payout_balance


def test_a_test_key_and_one_click_pay(playground: Page, system: System, test_key: str) -> None:
    enter_key(playground, test_key)
    expect(playground.locator("#key-note")).to_contain_text("Test key")
    form = form_of(playground, "createPayout")
    answer = json.loads(send(form, 201))
    assert re.fullmatch("[0-9a-f]{64}", answer["hash"])
    expect(form.locator(".outcome")).to_have_text(re.compile(r"^201 Created · \d+ ms$"))
    names = form.locator(".answer dt").all_inner_texts()
    assert names[0] == "x-request-id"
    assert "content-type" in names
    user = json.loads(send(form_of(playground, "listPayoutUsers"), 200))["data"][0]
    assert (user["email"], user["balance"]) == ("user@example.com", 10000)
    balances = json.loads(send(form_of(playground, "getBalance"), 200))
    assert balances["payout_balance"] % 100_000_000 == PLAY_MONEY_CENTS - 10000


def test_every_call_can_be_made(playground: Page, test_key: str) -> None:
    enter_key(playground, test_key)
    hash_ = json.loads(send(form_of(playground, "createPayout"), 201))["hash"]
    form_of(playground, "createPayout").get_by_role("button", name="Use this hash").click()
    expect(playground.get_by_label("Payout hash", exact=True)).to_have_value(hash_)
    batch = json.loads(send(form_of(playground, "createPayoutBatch"), 202))
    user = json.loads(send(form_of(playground, "listPayoutUsers"), 200))["data"][0]
    transaction = json.loads(send(form_of(playground, "listTransactions"), 200))["data"][0]
    ids = {"user_id": user["id"], "transaction_id": transaction["id"], "batch_id": batch["id"]}
    for section in playground.locator("section.operation").all():
        if section.get_attribute("id") == "updatePayoutUser":
            continue  # it would lock the hash out; at the end
        form = section.locator("form.try")
        for name, id_ in ids.items():
            if (field := form.locator(f"[name={name}]")).count():
                field.fill(id_)
        documented = section.locator("[data-status]").first.get_attribute("data-status")
        assert documented is not None
        send(form, int(documented))
    form = form_of(playground, "updatePayoutUser")
    form.locator("[name=user_id]").fill(user["id"])
    assert json.loads(send(form, 200))["status"] == "inactive"
    send(form_of(playground, "getOwnUser"), 401)


def test_fields_that_take_an_id_suggest_those_that_were_seen(playground: Page, test_key: str) -> None:
    enter_key(playground, test_key)
    send(form_of(playground, "createPayout"), 201)
    user = json.loads(send(form_of(playground, "listPayoutUsers"), 200))["data"][0]
    field = form_of(playground, "getPayoutUser").locator("[name=user_id]")
    suggested = field.evaluate("field => [...field.list.options].map(option => option.value)")
    assert suggested == [user["id"]]


def test_a_live_key_is_asked_about_before_it_pays(playground: Page, system: System, account: Account) -> None:
    before = balance_of(system, account)
    enter_key(playground, account.secret_key)
    expect(playground.locator("#key-note")).to_contain_text("real money")
    form = form_of(playground, "createPayout")
    expect(form.locator(".live-warning")).to_be_visible()
    form.get_by_role("button", name="Send").click()
    dialog = playground.get_by_role("dialog")
    expect(dialog).to_contain_text("pays $100.00 of real money")
    dialog.get_by_role("button", name="Do not send").click()
    expect(form.locator(".outcome")).to_have_text("Not sent.")
    form.get_by_role("button", name="Send").click()
    playground.keyboard.press("Escape")
    expect(form.locator(".outcome")).to_have_text("Not sent.")
    assert balance_of(system, account) == before
    form.get_by_role("button", name="Send").click()
    dialog.get_by_role("button", name="Pay", exact=True).click()
    expect(form.locator(".outcome")).to_have_text(re.compile("^201 "))
    assert balance_of(system, account) == before - 10000
    batch = form_of(playground, "createPayoutBatch")
    batch.get_by_role("button", name="Send").click()
    expect(dialog).to_contain_text("pays $100.00 of real money")
    dialog.get_by_role("button", name="Do not send").click()
    assert json.loads(send(form_of(playground, "getBalance"), 200))["payout_balance"] == before - 10000


def test_the_key_is_masked_kept_in_the_tab_and_never_in_an_address(
    playground: Page, open_page: OpenPage, watch: Watch, test_key: str
) -> None:
    enter_key(playground, test_key)
    field = playground.get_by_label("Secret API key")
    assert field.get_attribute("type") == "password"
    playground.get_by_role("button", name="Show", exact=True).click()
    assert field.get_attribute("type") == "text"
    form = form_of(playground, "createPayout")
    form.get_by_text("The same with curl").click()
    expect(form.locator(".curl code")).to_contain_text(f"Bearer sk_test_…{test_key[-4:]}")
    assert test_key not in playground.content()
    send(form, 201)
    playground.reload()
    expect(playground.get_by_label("Secret API key")).to_have_value(test_key)
    assert playground.context.cookies() == []
    assert playground.evaluate("localStorage.length") == 0
    other = open_page()
    other.goto("/docs")
    expect(other.get_by_label("Secret API key")).to_have_value("")
    playground.get_by_role("button", name="Forget").click()
    playground.reload()
    expect(playground.get_by_label("Secret API key")).to_have_value("")
    assert not any(test_key in url for url in watch.urls)


def test_the_call_with_curl_does_the_same(playground: Page, test_key: str) -> None:
    enter_key(playground, test_key)
    form = form_of(playground, "createPayout")
    form.locator("textarea").fill('{"email": "o\'neil@example.com", "amount": 700}')
    form.get_by_role("button", name="New").click()
    form.get_by_text("The same with curl").click()
    form.get_by_label("Show the key").check()
    command = form.locator(".curl code").inner_text()
    by_curl = subprocess.run(f"{command} --silent", shell=True, capture_output=True, text=True, check=True)
    assert json.loads(send(form, 201)) == json.loads(by_curl.stdout)
    # With one idempotency key, one of the two paid.
    assert "idempotent-replayed" in form.locator(".answer dt").all_inner_texts()


@pytest.mark.parametrize(
    ("body", "status_code", "part"),
    [
        ('{"email": "user@example", "amount": 0}', 400, "The email must be a valid email address."),
        ("not json", 400, "The request body must be a JSON object."),
        ('{"email": "user@example.com", "amount": 100000000}', 201, "hash"),
        ('{"email": "<img src=x onerror=alert(1)>", "amount": 1}', 400, "The email must be"),
    ],
)
def test_answers_are_shown_as_they_are(playground: Page, test_key: str, body: str, status_code: int, part: str) -> None:
    enter_key(playground, test_key)
    form = form_of(playground, "createPayout")
    form.locator("textarea").fill(body)
    assert part in send(form, status_code)


@pytest.mark.parametrize(
    ("key", "note"),
    [
        ("pk_test_123", "This is a public key."),
        ("hunter2", "Secret keys begin with sk_test_ or sk_live_."),
        ("sk_test_ä", "no special characters"),
        ("sk_test_1 2", "no spaces"),
    ],
)
def test_a_key_that_cannot_work_is_said_to_be_one(playground: Page, key: str, note: str) -> None:
    enter_key(playground, key)
    expect(playground.locator("#key-note")).to_contain_text(note)


def test_without_a_key_the_refusal_says_what_to_do(playground: Page) -> None:
    form = form_of(playground, "createPayout")
    assert json.loads(send(form, 401)) == {"error": "Unauthorized"}
    assert "www-authenticate" in form.locator(".answer dt").all_inner_texts()
    expect(form.locator(".advice")).to_contain_text("Enter it above")
    enter_key(playground, "sk_test_ä")
    form.get_by_role("button", name="Send").click()
    expect(form.locator(".outcome")).to_contain_text("special characters")


def test_gaps_in_the_path_are_pointed_out(playground: Page, test_key: str) -> None:
    enter_key(playground, test_key)
    form = form_of(playground, "getPayoutUser")
    form.get_by_role("button", name="Send").click()
    expect(form.locator(".outcome")).to_have_text("Fill in user_id.")
    expect(form.locator("[name=user_id]")).to_be_focused()
    form.locator("[name=user_id]").fill("../../health/live?x#y")
    assert json.loads(send(form, 404)) == {"error": "Not found"}


def test_a_server_out_of_reach_is_said_to_be(playground: Page, watch: Watch, test_key: str) -> None:
    watch.expected.add("net::ERR_INTERNET_DISCONNECTED")
    enter_key(playground, test_key)
    form = form_of(playground, "createPayout")
    send(form, 201)
    playground.context.set_offline(True)
    form.get_by_role("button", name="Send").click()
    expect(form.locator(".outcome")).to_contain_text("could not be reached")
    expect(form.locator(".advice")).to_contain_text("Look at the history")
    expect(form.locator(".answer")).to_be_hidden()
    form.get_by_role("button", name="New").click()
    form.get_by_role("button", name="Send").click()
    expect(form.locator(".advice")).to_contain_text("with its Idempotency-Key it pays once")
    playground.context.set_offline(False)
    send(form, 201)


def test_limits_are_shown_with_what_to_do(browser: Browser, servers: Servers) -> None:
    own = Servers(servers.postgres_url, servers.redis_url.removesuffix("/0") + "/4")
    with run_system(own, rate_limit_per_s="1", rate_limit_burst="2") as limited:
        account = open_account(limited.database)
        with browser.new_context(base_url=limited.base_url) as context:
            page = context.new_page()
            page.goto("/docs")
            enter_key(page, account.secret_key)
            form = form_of(page, "getBalance")
            send(form, 200)
            assert {"ratelimit", "ratelimit-policy"} <= set(form.locator(".answer dt").all_inner_texts())
            while not form.locator(".outcome").inner_text().startswith("429"):
                form.get_by_role("button", name="Send").click()
                expect(form.locator(".outcome")).to_contain_text(" ms")
            assert "retry-after" in form.locator(".answer dt").all_inner_texts()
            expect(form.locator(".advice")).to_contain_text("Wait as long as Retry-After says")


def test_batches_from_files_and_lists_as_files(playground: Page, test_key: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text('email,amount,reference\nann@example.com,100,"=1+1"\nbob@example.com,250,b\n')
    enter_key(playground, test_key)
    form = form_of(playground, "createPayoutBatch")
    form.get_by_label("From a file").set_input_files(rows)
    expect(form.get_by_label("Body as")).to_have_value("text/csv")
    expect(form.locator("textarea")).to_be_disabled()
    batch = json.loads(send(form, 202))
    assert (batch["total"], batch["amount"]) == (2, 350)
    form.get_by_role("button", name="Remove").click()
    expect(form.locator("textarea")).to_be_enabled()
    form.get_by_label("Body as").select_option("application/x-ndjson")
    send(form, 202)
    progress = form_of(playground, "getPayoutBatch")
    progress.locator("[name=batch_id]").fill(batch["id"])
    for _ in range(100):
        if json.loads(send(progress, 200))["status"] == "completed":
            break
        playground.wait_for_timeout(100)
    results = form_of(playground, "listPayoutBatchResults")
    results.locator("[name=batch_id]").fill(batch["id"])
    results.get_by_label("Answer as").select_option("text/csv")
    text = send(results, 200)
    assert text.splitlines()[0].startswith("row,email,amount_cents")
    with playground.expect_download() as download:
        results.locator(".download").click()
    saved = download.value.path().read_text()
    assert saved.splitlines() == text.splitlines()
    assert "allocated" in saved
    assert ",'=1+1," in saved
    assert download.value.suggested_filename.endswith(".csv")


def test_an_answer_of_many_rows_is_cut_on_the_page_and_whole_in_the_file(
    playground: Page, test_key: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.ndjson"
    rows.write_text("".join(f'{{"email": "u{number}@example.com", "amount": 1}}\n' for number in range(4000)))
    enter_key(playground, test_key)
    form = form_of(playground, "createPayoutBatch")
    form.get_by_label("From a file").set_input_files(rows)
    expect(form.get_by_label("Body as")).to_have_value("application/x-ndjson")
    batch = json.loads(send(form, 202))
    results = form_of(playground, "listPayoutBatchResults")
    results.locator("[name=batch_id]").fill(batch["id"])
    results.get_by_label("Answer as").select_option("application/x-ndjson")
    send(results, 200)
    expect(results.locator(".advice")).to_have_text("Only the beginning is shown.")
    with playground.expect_download() as download:
        results.locator(".download").click()
    assert len(download.value.path().read_text().splitlines()) == 4000


def test_by_keyboard_alone(playground: Page, test_key: str) -> None:
    playground.keyboard.press("Tab")
    expect(playground.locator(":focus")).to_have_text("Skip to the content")
    playground.keyboard.press("Enter")
    playground.keyboard.press("Tab")
    for _ in range(10):
        if playground.locator("#api-key:focus").count():
            break
        playground.keyboard.press("Tab")
    playground.keyboard.type(test_key)
    form = form_of(playground, "createPayout")
    for _ in range(40):
        if form.locator("button.send:focus").count():
            break
        playground.keyboard.press("Tab")
    playground.keyboard.press("Enter")
    expect(form.locator(".outcome")).to_have_text(re.compile("^201 "))


def test_without_javascript_it_is_a_page_to_read(plain_page: Page) -> None:
    plain_page.goto("/docs")
    expect(plain_page.locator("#createPayout h2")).to_have_text(re.compile(r"POST\s+/payout/create"))
    expect(plain_page.locator("form:visible")).to_have_count(0)
    expect(plain_page.locator("#createPayout noscript code")).to_contain_text("curl -X POST")
    plain_page.locator("#createPayout summary").filter(has_text="403").click()
    expect(plain_page.locator("#createPayout")).to_contain_text("Payouts are currently disabled")


@pytest.mark.parametrize("width", [PHONE, 768, 1024, 1920])
@pytest.mark.parametrize("path", ["/docs", "/docs/contract"])
def test_nothing_is_wider_than_the_window(open_page: OpenPage, path: str, width: int) -> None:
    page = open_page(width=width)
    page.goto(path)
    for details in page.locator("details:visible").all():
        details.evaluate("details => { details.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
