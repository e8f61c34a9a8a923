"""Every page and every change: who may see and do it, that it is done once, and that it is written down."""

import csv
import io
import re
from datetime import UTC, datetime
from urllib.parse import urlencode

import httpx
import pytest

from api.web.browser_headers import CONTENT_SECURITY_POLICY
from core.credentials import Mode
from core.ids import IdKind, format_id, new_id
from core.parties import api_keys
from core.parties.audit import Entry, list_entries
from core.parties.businesses import Business
from core.parties.members import Role
from core.parties.payout_users import find_payout_user
from tests.core.builders import allocate, allocation_of, withdraw
from tests.dashboard.visitors import (
    Document,
    Form,
    Visitor,
    add_member,
    base,
    deposit,
    new_email,
    read_business,
    sign_in,
)
from tests.polling import wait_until
from tests.servers import Account, System, open_account, verify_books

PAGES = ("", "/users", "/transactions", "/batches", "/developers", "/settings", "/settings/log")
CHANGES = (
    "/settings/payouts",
    "/settings/keys",
    "/settings/funds",
    "/settings/low-balance",
    "/settings/members",
    "/settings/members/role",
    "/settings/members/remove",
    "/settings/members/withdraw",
    "/developers/keys",
    "/developers/keys/key_{id}/roll",
    "/developers/keys/key_{id}/revoke",
    "/users/usr_{id}/status",
    "/batches/bat_{id}/cancel",
    "/batches/uploads/{id}",
)


def read_log(system: System, business: Business) -> list[Entry]:
    with system.database.transaction() as connection:
        return list_entries(connection, business.id, 100)


def actions(system: System, business: Business) -> list[str]:
    return [str(entry.action) for entry in read_log(system, business)]


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("role", list(Role))
def test_every_page_is_shown_to_members(system: System, account: Account, role: Role, mode: Mode) -> None:
    visitor = sign_in(system, account.business, role)
    for page in PAGES:
        response = visitor.get(base(account.business, mode) + page)
        assert response.status_code == 200, page
        assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["cache-control"] == "no-store"
        assert not re.search(r"<(script|style)>|\sstyle=|\son[a-z]+=", response.text), page
        assert ("Test mode" in response.text) == (mode is Mode.TEST)


@pytest.mark.parametrize("page", PAGES)
def test_pages_of_other_businesses_are_not_there(system: System, admin: Visitor, page: str) -> None:
    other = open_account(system.database, name="Somebody else").business
    for path in (base(other), base(other, Mode.TEST), f"/dashboard/{format_id(IdKind.BUSINESS, other.twin_id)}/live"):
        response = admin.get(path + page)
        assert response.status_code == 404
        assert "Somebody else" not in response.text


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard/biz_x/live",
        "/dashboard/nothing",
        "/dashboard/a/b/c/d/e",
        "/dashboard/assets/../pages.py",
        "/dashboard/assets/dashboard.css",
        "/dashboard/%00/live",
        "/dashboard/{business}/sandbox",
        "/dashboard/{business}/live/users/usr_x",
        "/dashboard/{business}/live/batches/bat_x",
        "/dashboard/{business}/live/nothing",
    ],
)
def test_what_is_not_there_is_said_in_a_page(admin: Visitor, account: Account, path: str) -> None:
    response = admin.get(path.replace("{business}", format_id(IdKind.BUSINESS, account.business.id)))
    assert response.status_code == 404
    assert "There is no such page" in response.text
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


@pytest.mark.parametrize("change", CHANGES)
def test_viewers_change_nothing(system: System, account: Account, change: str) -> None:
    viewer = sign_in(system, account.business, Role.VIEWER)
    values = viewer.open(base(account.business)).form("/sign-out").values
    path = base(account.business) + change.replace("{id}", "0" * 32)
    response = viewer.client.post(path, data={**values, "enabled": "no", "amount": "1", "role": "admin"})
    assert response.status_code == 403
    assert "Only admins can do this" in response.text
    assert read_log(system, account.business) == []


@pytest.mark.parametrize("change", [*CHANGES, "/batches/uploads"])
def test_changes_need_the_token_and_a_session(system: System, account: Account, admin: Visitor, change: str) -> None:
    values = admin.open(base(account.business)).form("/sign-out").values
    path = base(account.business) + change.replace("{id}", "0" * 32)
    for wrong in ({}, {**values, "csrf_token": "0" * 64}, {**values, "form_id": "x"}):
        assert admin.client.post(path, data=wrong).status_code == 403
    assert Visitor(system).client.post(path, data=values).status_code == 401
    assert admin.get(path).status_code in {303, 404, 405, 200}
    assert read_log(system, account.business) == []


def test_viewers_see_no_forms_of_changes(account: Account, viewer: Visitor) -> None:
    for page in PAGES:
        forms = viewer.open(base(account.business) + page).forms
        assert {form.action for form in forms if form.method == "post"} == {"/dashboard/sign-out"}


def test_changes_of_other_businesses_are_not_there(system: System, account: Account, admin: Visitor) -> None:
    other = open_account(system.database)
    allocate(system.database, allocation_of(other, "theirs@example.com", 5))
    with system.database.transaction() as connection:
        user = find_payout_user(connection, other.business.id, "theirs@example.com")
    values = admin.open(f"{base(account.business)}/settings").form("/settings/payouts").values
    key = format_id(IdKind.API_KEY, other.api_key_id)
    theirs = [
        f"{base(other.business)}/settings/payouts",
        f"{base(account.business)}/users/{format_id(IdKind.PAYOUT_USER, user.id)}/status",
        f"{base(account.business)}/developers/keys/{key}/revoke",
        f"{base(account.business)}/developers/keys/{key}/roll",
        f"{base(account.business, Mode.TEST)}/developers/keys/{format_id(IdKind.API_KEY, account.api_key_id)}/revoke",
    ]
    for path in theirs:
        data = {**values, "enabled": "no", "status": "inactive", "grace": "0"}
        assert admin.client.post(path, data=data).status_code == 404, path
    assert admin.get(f"{base(account.business)}/users/{format_id(IdKind.PAYOUT_USER, user.id)}").status_code == 404
    with system.database.transaction() as connection:
        assert api_keys.get_api_key(connection, other.api_key_id).revoked_at is None
        assert api_keys.get_api_key(connection, account.api_key_id).revoked_at is None
    assert read_business(system, other.business).payouts_enabled


def test_payouts_are_disabled_and_enabled(
    system: System, client: httpx.Client, account: Account, admin: Visitor
) -> None:
    settings = f"{base(account.business)}/settings"
    page = admin.follow(admin.send(admin.open(settings).form("/settings/payouts")))
    assert "Payouts are disabled" in page.text
    assert system.pay(client, account, "user@example.com", 1).status_code == 403
    assert "Payouts are disabled." in admin.open(base(account.business)).text
    assert "Payouts are enabled." in admin.follow(admin.send(page.form("/settings/payouts"))).text
    assert system.pay(client, account, "user@example.com", 1).status_code == 201
    newest, oldest = read_log(system, account.business)
    assert (newest.action, oldest.action) == ("payouts.enabled", "payouts.disabled")
    assert newest.actor == admin.email
    assert admin.email in admin.open(f"{settings}/log").text


def test_funds_are_added_once_however_often_the_form_comes(system: System, account: Account, admin: Visitor) -> None:
    deposit(system, account.business, 500_000)
    form = admin.open(f"{base(account.business)}/settings").form("/settings/funds")
    assert "$1,234.56 moved to the payout balance" in admin.follow(admin.send(form, amount=" $1,234.56 ")).text
    for _ in range(2):
        assert "done already" in admin.follow(admin.send(form, amount=" $1,234.56 ")).text
    business = read_business(system, account.business)
    assert (business.balance, business.payout_balance) == (500_000 - 123_456, 1_000_000 + 123_456)
    assert actions(system, account.business) == ["business.funds_added", "business.deposited"]
    assert verify_books(system.database).balanced


def test_a_form_that_comes_twice_says_so_whatever_it_changed(system: System, account: Account, admin: Visitor) -> None:
    deposit(system, account.business, 500_000)
    form = admin.open(f"{base(account.business)}/settings").form("/settings/funds")
    admin.follow(admin.send(form, amount="5000"))
    # The main balance is empty by now.
    assert "This was done already" in admin.follow(admin.send(form, amount="5000")).text
    assert read_business(system, account.business).balance == 0


@pytest.mark.parametrize(
    ("amount", "error"),
    [
        ("", "Enter an amount."),
        ("ten", "Enter an amount in dollars"),
        ("-5", "Enter an amount in dollars"),
        ("1e3", "Enter an amount in dollars"),
        ("1,23", "Enter an amount in dollars"),
        ("٣", "Enter an amount in dollars"),
        ("1.234", "at most two decimals"),
        ("0", "Enter an amount from $0.01"),
        ("0.00", "Enter an amount from $0.01"),
        ("99999999999999999", "Enter an amount from $0.01"),
        ("10000.01", "The main balance has $10,000.00"),
    ],
)
def test_amounts_that_are_none_are_explained(
    system: System, account: Account, admin: Visitor, amount: str, error: str
) -> None:
    deposit(system, account.business, 1_000_000)
    response = admin.send(admin.open(f"{base(account.business)}/settings").form("/settings/funds"), amount=amount)
    assert response.status_code == 422
    assert error in Document(response.text).text
    assert Document(response.text).form("/settings/funds").values["amount"] == amount
    assert read_business(system, account.business).payout_balance == 1_000_000


def test_the_threshold_warns(system: System, account: Account, admin: Visitor) -> None:
    form = admin.open(f"{base(account.business)}/settings").form("/settings/low-balance")
    assert "below $20,000.00" in admin.follow(admin.send(form, threshold="20000")).text
    assert "The payout balance is low." in admin.open(base(account.business)).text
    form = admin.open(f"{base(account.business)}/settings").form("/settings/low-balance")
    assert form.values["threshold"] == "20000.00"
    admin.follow(admin.send(form, threshold=""))
    assert "The payout balance is low." not in admin.open(base(account.business)).text


def test_members_are_invited_changed_and_removed(system: System, account: Account, admin: Visitor) -> None:
    settings = f"{base(account.business)}/settings"
    email = new_email()
    shown = admin.send(admin.open(settings).form("/settings/members"), email=email, role="viewer")
    assert shown.status_code == 200
    link = re.search(r"http://[^<\s]+/dashboard/invitations/[\w-]+", shown.text)
    assert link is not None
    assert link[0].startswith(system.base_url)
    assert Visitor(system).get(link[0]).status_code == 200
    page = admin.open(settings)
    assert email in page.text
    assert link[0] not in page.text
    admin.follow(admin.send(page.form("/settings/members/withdraw")))
    assert Visitor(system).get(link[0]).status_code == 404

    other = add_member(system, account.business, Role.VIEWER)
    assert other.sign_in().status_code == 303
    page = admin.open(settings)
    roles = [form for form in page.forms if form.action.endswith("/members/role")]
    (promote,) = [form for form in roles if form.buttons == [("role", "admin")]]
    assert f"{other.email} is an admin now." in admin.follow(admin.send(promote)).text
    assert other.open(settings).form("/settings/payouts").buttons == [("enabled", "no")]
    removals = [form for form in admin.open(settings).forms if form.action.endswith("/members/remove")]
    (remove,) = [form for form in removals if form.values["account"] == promote.values["account"]]
    assert "is not a member any more" in admin.follow(admin.send(remove)).text
    assert other.get(base(account.business)).status_code == 404
    # The last admin stays.
    (own,) = [form for form in admin.open(settings).forms if form.action.endswith("/members/remove")]
    assert "The last admin" in admin.follow(admin.send(own)).text
    assert actions(system, account.business) == [
        "member.removed",
        "member.role_set",
        "invitation.withdrawn",
        "member.invited",
    ]


@pytest.mark.parametrize("email", ["", "nobody", "a@b", "<b>@example.com"])
def test_invitations_need_an_email(account: Account, admin: Visitor, email: str) -> None:
    form = admin.open(f"{base(account.business)}/settings").form("/settings/members")
    response = admin.send(form, email=email, role="viewer")
    assert response.status_code == 422
    assert "must be a valid e-mail address" in response.text


def test_a_key_is_created_shown_once_and_works(
    system: System, client: httpx.Client, account: Account, admin: Visitor
) -> None:
    developers = f"{base(account.business)}/developers"
    form = admin.open(developers).form("/developers/keys")
    shown = admin.send(form, name="<b>web</b> shop")
    assert shown.status_code == 200
    assert shown.headers["cache-control"] == "no-store"
    key = re.search(r"sk_live_\w{40}", shown.text)
    assert key is not None
    response = client.get("/balance", headers={"Authorization": f"Bearer {key[0]}"})
    assert response.json()["payout_balance"] == 1_000_000
    again = admin.send(form, name="<b>web</b> shop")
    assert "done already" in admin.follow(again).text
    page = admin.get(developers).text
    assert key[0] not in page
    assert f"…{key[0][-4:]}" in page
    assert "&lt;b&gt;web&lt;/b&gt; shop" in page
    assert actions(system, account.business) == ["key.created"]


def test_a_key_is_rolled_and_revoked(client: httpx.Client, system: System, account: Account, admin: Visitor) -> None:
    developers = f"{base(account.business)}/developers"
    shown = admin.send(admin.open(developers).form("/roll"), grace="1h")
    new = re.search(r"sk_live_\w{40}", shown.text)
    assert new is not None
    assert client.get("/balance", headers=account.headers).status_code == 200
    for form in [form for form in admin.open(developers).forms if form.action.endswith("/revoke")]:
        assert "is revoked" in admin.follow(admin.send(form)).text
    assert client.get("/balance", headers=account.headers).status_code == 401
    assert client.get("/balance", headers={"Authorization": f"Bearer {new[0]}"}).status_code == 401
    assert actions(system, account.business) == ["key.revoked", "key.revoked", "key.rolled"]
    assert "the old one ends after 1 h" in admin.get(f"{base(account.business)}/settings").text


def test_keys_of_test_mode_act_on_the_twin(client: httpx.Client, account: Account, admin: Visitor) -> None:
    developers = f"{base(account.business, Mode.TEST)}/developers"
    shown = admin.send(admin.open(developers).form("/developers/keys"), name="")
    key = re.search(r"sk_test_\w{40}", shown.text)
    assert key is not None
    response = client.get("/balance", headers={"Authorization": f"Bearer {key[0]}"})
    assert response.json()["payout_balance"] == 100_000_000
    assert f"…{key[0][-4:]}" not in admin.get(f"{base(account.business)}/developers").text


def test_recent_requests_are_shown(system: System, client: httpx.Client, account: Account, admin: Visitor) -> None:
    headers = {**account.headers, "X-Request-Id": "a-request-of-mine"}
    client.post("/payout/create", json={"email": "user@example.com", "amount": 100}, headers=headers)
    path = f"{base(account.business)}/developers"
    wait_until(lambda: "a-request-of-mine" in admin.get(path).text, path, 20)
    text = admin.get(path).text
    assert "POST /payout/create" in text
    assert "user@example.com" not in text


def test_a_user_is_deactivated_and_activated(
    system: System, client: httpx.Client, account: Account, admin: Visitor
) -> None:
    hash_ = system.pay(client, account, "user@example.com", 1234).json()["hash"]
    users = admin.open(f"{base(account.business)}/users?email=USER")
    (path,) = [link for link in users.links if "/users/usr_" in link]
    page = admin.open(path)
    assert "$12.34" in page.text
    page = admin.follow(admin.send(page.form("/status")))
    assert "user@example.com is inactive" in page.text
    assert client.get("/payout/user", headers={"X-Payout-Hash": hash_}).status_code == 401
    admin.follow(admin.send(page.form("/status")))
    assert client.get("/payout/user", headers={"X-Payout-Hash": hash_}).status_code == 200
    assert actions(system, account.business) == ["user.activated", "user.deactivated"]


def walk(visitor: Visitor, path: str) -> list[Document]:
    """Page after page, by the links to the next one."""
    pages = []
    for _ in range(20):
        response = visitor.get(path)
        assert response.status_code == 200
        pages.append(Document(response.text))
        found = re.search(r'href="([^"]+)" rel="next"', response.text)
        if found is None:
            return pages
        path = path.partition("?")[0] + found[1].replace("&amp;", "&")
    raise AssertionError


def test_users_are_searched_sorted_and_paged_through(system: System, account: Account, admin: Visitor) -> None:
    names = [f"{letter}{number:02}" for letter in "ab" for number in range(30)]
    for name in names:
        allocate(system.database, allocation_of(account, f"{name}@example.com", 1))

    def read(query: str) -> list[str]:
        pages = walk(admin, f"{base(account.business)}/users{query}")
        return [name for page in pages for name in re.findall(r"\b([ab]\d\d)@example\.com", page.text)]

    assert read("") == names[::-1]
    assert read("?sort=oldest") == names
    assert read("?sort=email") == names
    assert read("?sort=-email") == names[::-1]
    assert read("?sort=nonsense") == names[::-1]
    assert read("?email=b") == names[30:]
    assert read("?email=B1&sort=-email") == names[49:39:-1]
    assert read("?email=a00@example.com") == ["a00"]
    assert read("?email=c") == []
    assert "No user's e-mail begins with “%_”" in admin.open(f"{base(account.business)}/users?email=%25_").text
    assert admin.get(f"{base(account.business)}/users?after=usr_x&email=%00").status_code == 200


def test_transactions_are_filtered_and_paged_through(system: System, account: Account, admin: Visitor) -> None:
    for number in range(60):
        allocate(system.database, allocation_of(account, f"user{number % 2}@example.com", number + 1))
    path = f"{base(account.business)}/transactions"

    def count(query: str) -> int:
        return sum(page.text.count("@example.com \N{MINUS SIGN}") for page in walk(admin, path + query))

    today = datetime.now(UTC).date().isoformat()
    assert count("?email=&type=&from=&to=") == 60
    assert count("?email=user0@example.com") == 30
    assert count("?email=USER1@example.com&type=allocation") == 30
    assert count(f"?from={today}&to={today}") in {60, 0}  # midnight may pass
    assert count("?to=2020-01-01") == 0
    assert "+$10,000.00" in admin.open(f"{path}?type=funding").text
    assert "No payment and no payout user has this" in admin.open(f"{path}?search=nobody@example.com").text
    for query in ("?type=theft", "?from=yesterday", "?to=2026-02-30"):
        assert admin.get(path + query).status_code == 422
    exported = admin.get(f"{path}.csv?email=user0@example.com&type=")
    assert exported.headers["content-disposition"] == 'attachment; filename="transactions.csv"'
    rows = list(csv.DictReader(io.StringIO(exported.text)))
    assert {row["email"] for row in rows} == {"user0@example.com"}
    assert len(rows) == 30
    assert admin.get(f"{path}.csv?from=yesterday").status_code == 400
    assert Visitor(system).get(f"{path}.csv").status_code == 303


def test_a_payment_is_found_by_its_id_email_reference_or_key(system: System, account: Account, admin: Visitor) -> None:
    paid = allocation_of(account, "ann@example.com", 123, idempotency_key="key-1", reference="order 1")
    named_like_a_person = allocation_of(account, "bob@example.com", 456, reference="ann@example.com")
    allocate(system.database, paid, named_like_a_person, allocation_of(account, "ann@example.com", 789))
    path = f"{base(account.business)}/transactions"
    assert withdraw(system.database, paid)

    def amounts(search: str) -> list[str]:
        text = admin.open(f"{path}?{urlencode({'search': search})}").text
        return re.findall(r"\N{MINUS SIGN}(\$[0-9.]+)", text)

    assert amounts("order 1") == ["$1.23"]
    assert amounts(" key-1 ") == ["$1.23"]
    assert amounts("ann@example.com") == ["$4.56"]
    assert amounts("BOB@example.com") == ["$4.56"]
    page = f"{path}/{format_id(IdKind.TRANSACTION, paid.id)}"
    found = admin.get(f"{path}?search={page.rpartition('/')[2]}")
    assert (found.status_code, found.headers["location"]) == (303, page)
    text = admin.open(page).text
    for word in ("Payment of $1.23", "ann@example.com", "order 1", "key-1", "It was reversed"):
        assert word in text
    assert "Reverses" in admin.open(reversal_link(admin.get(page).text)).text
    for unknown in (format_id(IdKind.TRANSACTION, new_id()), "txn_x"):
        assert admin.get(f"{path}/{unknown}").status_code == 404
    exported = admin.get(f"{path}.csv?search=order+1").text
    assert len(exported.splitlines()) == 2


def reversal_link(html: str) -> str:
    found = re.search(r'href="([^"]+/transactions/txn_[0-9a-f]{32})">\$[0-9.]+ went back', html)
    assert found is not None
    return found[1]


def test_keys_are_required_and_not_required(system: System, account: Account, admin: Visitor) -> None:
    page = f"{base(account.business)}/settings"
    for is_required in (True, False):
        form = admin.open(page).form("/settings/keys")
        assert admin.send(form).status_code == 303
        assert read_business(system, account.business).requires_keys is is_required
    assert "Stopped requiring keys" in admin.open(page).text


def test_what_people_write_is_shown_and_never_carried_out(system: System, account: Account, admin: Visitor) -> None:
    for email in ('"<script>alert(1)</script>"@example.com', "=cmd|x@example.com", "'onload=x@example.com"):
        allocate(system.database, allocation_of(account, email, 100))
    for page in ("", "/users", "/transactions"):
        text = admin.get(base(account.business) + page).text
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    rows = list(csv.DictReader(io.StringIO(admin.get(f"{base(account.business)}/transactions.csv").text)))
    assert "'=cmd|x@example.com" in {row["email"] for row in rows}


def test_a_business_with_a_name_of_markup(system: System) -> None:
    other = open_account(system.database, name='<img src=x onerror="alert(1)">')
    text = sign_in(system, other.business).get(base(other.business)).text
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text


def test_assets_are_kept_for_ever_under_names_that_change_with_them(client: httpx.Client) -> None:
    page = client.get("/dashboard/sign-in").text
    for pattern, media_type in ((r'href="([^"]+\.css)"', "text/css"), (r'src="([^"]+\.js)"', "text/javascript")):
        found = re.search(pattern, page)
        assert found is not None
        response = client.get(found[1])
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(media_type)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_other_methods_are_refused_in_a_page(admin: Visitor, account: Account) -> None:
    response = admin.client.put(f"{base(account.business)}/settings")
    assert response.status_code == 405
    assert "<h1>" in response.text


def test_a_forged_form_id_of_another_business_blocks_nothing(system: System, account: Account, admin: Visitor) -> None:
    other = open_account(system.database)
    stranger = sign_in(system, other.business)
    form = admin.open(f"{base(account.business)}/settings").form("/settings/payouts")
    theirs = stranger.open(f"{base(other.business)}/settings").form("/settings/payouts")
    stranger.follow(stranger.send(theirs, form_id=form.values["form_id"]))
    assert "Payouts are disabled" in admin.follow(admin.send(form)).text
    assert not read_business(system, account.business).payouts_enabled


def test_who_is_a_member_of_nothing_may_still_sign_out(system: System, account: Account) -> None:
    visitor = Visitor(system)
    assert visitor.send(Form("/dashboard/sign-out", "post", {})).status_code == 303
