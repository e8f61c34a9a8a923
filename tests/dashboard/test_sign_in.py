"""Signing in, staying signed in, and everything that must end it."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import msgspec
import pytest
import redis

from core import admin_actions
from core.parties import accounts, members
from core.parties.audit import COMMAND_LINE, list_entries
from core.parties.members import Role
from core.sealing import Seal
from tests.dashboard.visitors import (
    PASSWORD,
    Document,
    Form,
    Visitor,
    add_member,
    base,
    hash_of_password,
    new_email,
    sign_in,
)
from tests.servers import Account, System, open_account


def session_of(visitor: Visitor) -> str:
    return visitor.client.cookies["payouts_session"]


def test_a_member_signs_in_and_out(system: System, account: Account) -> None:
    visitor = add_member(system, account.business)
    assert visitor.get("/dashboard").headers["location"] == "/dashboard/sign-in"
    response = visitor.sign_in()
    assert (response.status_code, response.headers["location"]) == (303, "/dashboard")
    assert visitor.get("/dashboard").headers["location"] == base(account.business)
    page = visitor.open(base(account.business))
    assert "$10,000.00" in page.text
    session = session_of(visitor)
    assert visitor.send(page.form("/sign-out")).status_code == 303
    assert visitor.get(base(account.business)).status_code == 303
    # The session is over, not just its cookie.
    visitor.client.cookies.set("payouts_session", session)
    assert visitor.get(base(account.business)).headers["location"].startswith("/dashboard/sign-in?next=")


def test_the_email_counts_in_any_spelling(system: System, account: Account) -> None:
    visitor = add_member(system, account.business)
    visitor.email = f"  {visitor.email.upper()} "
    assert visitor.sign_in().status_code == 303


def test_unknown_emails_and_wrong_passwords_are_answered_alike(system: System, account: Account) -> None:
    known = add_member(system, account.business)
    unknown = Visitor(system, new_email())

    def answer(visitor: Visitor) -> tuple[int, str]:
        response = visitor.sign_in("wrong, but long enough")
        text = re.sub(r'value="[0-9a-f]{32,64}"', "", response.text)
        return response.status_code, text.replace(visitor.email, "")

    assert answer(known) == answer(unknown)
    assert answer(known)[0] == 422
    assert "The e-mail or the password is wrong." in answer(known)[1]


def test_cookies_are_out_of_reach(system: System, account: Account) -> None:
    visitor = add_member(system, account.business)
    cookies = visitor.sign_in().headers.get_list("set-cookie")
    (cookie,) = [each for each in cookies if each.startswith("payouts_session=")]
    assert {"HttpOnly", "Path=/", "SameSite=lax"} <= set(cookie.split("; "))
    assert "Domain" not in cookie


def test_cookies_are_for_https_alone_where_the_request_came_by_it(system: System, account: Account) -> None:
    member = add_member(system, account.business)
    visitor = Visitor(system, member.email, https=True)
    page = visitor.get("/dashboard/sign-in")
    assert "max-age" in page.headers["strict-transport-security"]
    cookie = page.headers["set-cookie"].partition(";")[0]
    form = Document(page.text).form("/sign-in")
    data = {**form.values, "email": visitor.email, "password": PASSWORD}
    response = visitor.client.post(form.action, data=data, headers={"Cookie": cookie})
    assert response.status_code == 303
    (set_,) = [each for each in response.headers.get_list("set-cookie") if "payouts_session=" in each]
    assert set_.startswith("__Host-payouts_session=")
    assert {"Secure", "HttpOnly", "Path=/"} <= set(set_.split("; "))


def test_redis_holds_neither_ids_of_sessions_nor_emails(system: System, account: Account) -> None:
    visitor = sign_in(system, account.business)
    with redis.Redis.from_url(system.environment["PAYOUTS_REDIS_URL"]) as client:
        keys = [key for key in client.scan_iter("payouts:*", count=1000) if client.type(key) == b"string"]
        held = b" ".join(keys) + b" ".join(value for key in keys if (value := client.get(key)))
    assert any(key.startswith(b"payouts:sealed-session:") for key in keys)
    assert session_of(visitor).encode() not in held
    assert visitor.email.encode() not in held


def key_of(visitor: Visitor) -> str:
    """Return where in Redis a browser's session is."""
    return f"payouts:sealed-session:{hashlib.sha256(session_of(visitor).encode()).hexdigest()}"


def count_session_forgeries(system: System) -> float:
    metrics = httpx.get(f"{system.base_url}/metrics", trust_env=False).text
    (found,) = re.findall(r'^payouts_forgeries_total\{reason="session"\} (\S+)$', metrics, re.MULTILINE)
    return float(found)


def test_session_s_record_that_is_copied_or_forged_signs_nobody_in(system: System, account: Account) -> None:
    """Somebody with a session of their own, who can write to Redis, wants to be an admin."""
    admin = sign_in(system, account.business)
    other = open_account(system.database)
    viewer = sign_in(system, other.business, Role.VIEWER)
    with redis.Redis.from_url(system.environment["PAYOUTS_REDIS_URL"]) as client:
        own, copied = client.get(key_of(viewer)), client.get(key_of(admin))
        assert isinstance(own, bytes)
        with system.database.transaction() as connection:
            victim = accounts.find_account_by_email(connection, admin.email)
        assert victim is not None
        record = {
            "account_id": victim.id.bytes,
            "password_changed_at": victim.password_changed_at,
            "began_at_s": 1 << 40,
        }
        plain = msgspec.msgpack.encode(record)
        forgeries = [copied, plain, Seal(b"x" * 32, "sessions").seal(plain, key_of(viewer).encode()), own[:-1], b""]
        for forged in forgeries:
            before = count_session_forgeries(system)
            client.set(key_of(viewer), forged)
            page = viewer.get(f"{base(account.business)}/settings")
            assert page.status_code in {303, 401}
            assert admin.email not in page.text
            assert count_session_forgeries(system) > before
        client.set(key_of(viewer), own)
        assert viewer.get(base(other.business)).status_code == 200
    assert "a session's record was dropped" in system.logs()


def test_notice_that_is_copied_or_forged_is_not_shown(system: System, account: Account) -> None:
    admin = sign_in(system, account.business)
    with redis.Redis.from_url(system.environment["PAYOUTS_REDIS_URL"]) as client:
        notice = msgspec.msgpack.encode({"text": "Call this number.", "is_error": False})
        client.set(key_of(admin).replace("session", "notice"), notice)
        page = admin.get(base(account.business))
    assert page.status_code == 200
    assert "Call this number" not in page.text


def test_signing_in_gives_a_new_session(system: System, account: Account) -> None:
    visitor = sign_in(system, account.business)
    first = session_of(visitor)
    # A second sign-in in the same browser, with a form from before.
    other = Visitor(system, visitor.email)
    form = other.open("/dashboard/sign-in").form("/sign-in")
    other.client.cookies.set("payouts_session", first)
    assert other.send(form, email=visitor.email, password=PASSWORD).status_code == 303
    new = [cookie.value for cookie in other.client.cookies.jar if cookie.name == "payouts_session"]
    assert len(set(new) - {first}) == 1
    assert visitor.get(base(account.business)).status_code == 303


@pytest.mark.parametrize("cookie", ["", "x", "A" * 43, "../" * 20, "%00" * 10, "é".encode().hex()])
def test_made_up_sessions_lead_to_the_sign_in(client: httpx.Client, account: Account, cookie: str) -> None:
    response = client.get(base(account.business), headers={"Cookie": f"payouts_session={cookie}"})
    assert response.status_code == 303
    assert response.headers["location"] == f"/dashboard/sign-in?next={quote(base(account.business), safe='')}"


def test_who_signs_in_comes_back_to_the_page(system: System, account: Account) -> None:
    visitor = add_member(system, account.business)
    wanted = f"{base(account.business)}/transactions?type=funding&email=a%2Bb%40example.com"
    response = visitor.get(wanted)
    assert visitor.sign_in(path=response.headers["location"]).headers["location"] == wanted


@pytest.mark.parametrize(
    "wanted",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "/%09/evil.example/\t",
        "javascript:alert(1)",
        "http:evil.example",
        "/dashboard\r\nSet-Cookie: a=b",
        "/dashboard.evil.example",
        "//evil.example/dashboard/",
        "/payout/create",
        "",
    ],
)
def test_nobody_is_sent_elsewhere(system: System, account: Account, wanted: str) -> None:
    visitor = add_member(system, account.business)
    response = visitor.sign_in(path=f"/dashboard/sign-in?next={quote(wanted, safe='')}")
    assert (response.status_code, response.headers["location"]) == (303, "/dashboard")


def test_the_sign_in_form_needs_its_token(system: System, account: Account) -> None:
    visitor = add_member(system, account.business)
    form = visitor.open("/dashboard/sign-in").form("/sign-in")
    sent = {"email": visitor.email, "password": PASSWORD}
    stranger = Visitor(system)
    stolen = stranger.open("/dashboard/sign-in").form("/sign-in").values["csrf_token"]
    for token in ("", "0" * 64, stolen, "é"):
        response = visitor.client.post(form.action, data={**form.values, **sent, "csrf_token": token})
        assert response.status_code == 403
        assert "payouts_session" not in visitor.client.cookies
    assert Visitor(system).client.post(form.action, data={**form.values, **sent}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_forms_of_other_sites_are_refused(system: System, account: Account, headers: dict[str, str]) -> None:
    visitor = sign_in(system, account.business)
    form = visitor.open(f"{base(account.business)}/settings").form("/settings/payouts")
    data = {**form.values, "enabled": "no"}
    assert visitor.client.post(form.action, data=data, headers=headers).status_code == 403
    same = {"Origin": system.base_url, "Sec-Fetch-Site": "same-origin"}
    assert visitor.client.post(form.action, data=data, headers=same).status_code == 303


def end_sessions(system: System) -> None:
    """Do what time does."""
    with redis.Redis.from_url(system.environment["PAYOUTS_REDIS_URL"]) as client:
        for key in client.scan_iter("payouts:sealed-session:*"):
            client.delete(key)


def test_an_ended_session_does_nothing_and_says_so(system: System, account: Account) -> None:
    visitor = sign_in(system, account.business)
    settings = f"{base(account.business)}/settings"
    form = visitor.open(settings).form("/settings/payouts")
    end_sessions(system)
    response = visitor.client.post(form.action, data=form.values, headers={"Referer": f"{system.base_url}{settings}"})
    assert response.status_code == 401
    page = Document(response.text)
    assert "You are signed out" in page.text
    assert page.links == [f"/dashboard/sign-in?next={quote(settings, safe='')}"]
    elsewhere = {"Referer": f"https://evil.example{settings}"}
    response = visitor.client.post(form.action, data=form.values, headers=elsewhere)
    assert Document(response.text).links == ["/dashboard/sign-in"]
    with system.database.transaction() as connection:
        assert list_entries(connection, account.business.id, 10) == []
    assert visitor.get(settings).headers["location"] == f"/dashboard/sign-in?next={quote(settings, safe='')}"


def let_time_pass(system: System) -> None:
    """Let every wait be over."""
    with redis.Redis.from_url(system.environment["PAYOUTS_REDIS_URL"]) as client:
        for key in client.scan_iter("payouts:sign-in:*"):
            client.hset(key, "not_before", 0)


def test_tries_are_held_up_longer_each_time_and_strangers_lock_nobody_out(system: System, account: Account) -> None:
    member = sign_in(system, account.business)
    attacker = Visitor(system, member.email)
    form = attacker.open("/dashboard/sign-in").form("/sign-in")

    def attempt(password: str) -> httpx.Response:
        return attacker.send(form, email=member.email, password=password)

    assert [attempt(f"guess number {number}").status_code for number in range(5)] == [422] * 5
    held = attempt(PASSWORD)
    assert held.status_code == 429
    assert int(held.headers["retry-after"]) >= 1
    assert "too many tries" in held.text
    # The member's own browser is not held up by what others did.
    member.client.cookies.delete("payouts_session")
    assert member.sign_in().status_code == 303
    # And who guesses on, waits longer.
    let_time_pass(system)
    assert attempt("guess number 6").status_code == 422
    assert 15 < int(attempt(PASSWORD).headers["retry-after"]) <= 30
    for _ in range(10):
        let_time_pass(system)
        attempt("guess, guess")
    assert 600 < int(attempt(PASSWORD).headers["retry-after"]) <= 900


def test_a_members_own_tries_are_counted_too(system: System, account: Account) -> None:
    visitor = sign_in(system, account.business)
    visitor.client.cookies.delete("payouts_session")
    form = visitor.open("/dashboard/sign-in").form("/sign-in")
    answers = [visitor.send(form, email=visitor.email, password="guess, guess").status_code for _ in range(6)]
    assert answers == [422] * 5 + [429]


def test_a_device_is_known_for_its_own_email_alone(system: System, account: Account) -> None:
    victim = add_member(system, account.business)
    attacker = sign_in(system, account.business)
    attacker.client.cookies.delete("payouts_session")
    form = attacker.open("/dashboard/sign-in").form("/sign-in")
    answers = [attacker.send(form, email=victim.email, password="guess, guess").status_code for _ in range(6)]
    assert answers == [422] * 5 + [429]


def test_thousands_of_tries_starve_nobody(system: System, account: Account) -> None:
    attacker = Visitor(system, new_email())
    form = attacker.open("/dashboard/sign-in").form("/sign-in")

    def attempt(number: int) -> int:
        email = f"someone{number}@example.com"
        return attacker.send(form, email=email, password="guess, guess").status_code

    with ThreadPoolExecutor(16) as threads, system.client() as client:
        answers = threads.map(attempt, range(2_000))
        for number in range(20):
            assert system.pay(client, account, f"user{number}@example.com", 1).status_code == 201
        assert sum(status == 422 for status in answers) <= 60
    assert attempt(1) == 429
    # Others sign in meanwhile.
    assert add_member(system, account.business).sign_in().status_code == 303


@pytest.mark.parametrize("password", ["", "x" * 60_000, "\ud7ff" * 200, "\0"])
def test_odd_passwords_are_wrong_passwords(system: System, account: Account, password: str) -> None:
    visitor = add_member(system, account.business)
    assert visitor.sign_in(password).status_code in {403, 413, 422}


def test_a_new_password_ends_all_other_sessions(system: System, account: Account) -> None:
    here = sign_in(system, account.business)
    there = Visitor(system, here.email)
    assert there.sign_in().status_code == 303
    form = here.open("/dashboard/account").form("/account")
    new = "another long password"
    twice: dict[str, Any] = {"new_password": new, "new_password_again": new}
    wrong = here.send(form, password="not my password", **twice)
    assert (wrong.status_code, "That is not your password." in wrong.text) == (422, True)
    assert here.send(form, password=PASSWORD, new_password=new, new_password_again="different").status_code == 422
    short = here.send(form, password=PASSWORD, new_password="short", new_password_again="short")
    assert "12 to 128 characters" in short.text
    assert "The password is changed." in here.follow(here.send(form, password=PASSWORD, **twice)).text
    assert there.get(base(account.business)).status_code == 303
    assert here.get(base(account.business)).status_code == 200
    assert Visitor(system, here.email).sign_in().status_code == 422
    assert Visitor(system, here.email).sign_in(new).status_code == 303


def test_a_removed_member_sees_nothing_from_then_on(system: System, account: Account) -> None:
    visitor = sign_in(system, account.business)
    form = visitor.open(f"{base(account.business)}/settings").form("/settings/payouts")
    with system.database.transaction() as connection:
        found = accounts.find_account_by_email(connection, visitor.email)
        assert found is not None
        members.add_member(connection, account.business.id, _other_admin(system), Role.ADMIN)
        members.remove_member(connection, account.business.id, found.id)
    assert visitor.get(base(account.business)).status_code == 404
    assert visitor.send(form).status_code == 404
    assert "not a member of a business" in visitor.open("/dashboard").text


def _other_admin(system: System) -> UUID:
    email = new_email()
    with system.database.transaction() as connection:
        created = accounts.create_account(connection, email, hash_of_password())
    assert created is not None
    return created.id


def invite(system: System, account: Account, email: str, role: Role = Role.VIEWER) -> str:
    with system.database.transaction() as connection:
        return admin_actions.invite_member(connection, COMMAND_LINE, account.business.id, email, role)


def test_an_invitation_makes_an_account_once(system: System, account: Account) -> None:
    visitor = Visitor(system, new_email())
    path = f"/dashboard/invitations/{invite(system, account, visitor.email)}"
    page = visitor.open(path)
    assert "a viewer" in page.text
    form = page.form(path)
    assert visitor.send(form, password="short", password_again="short").status_code == 422
    assert visitor.send(form, password=PASSWORD, password_again="different").status_code == 422
    response = visitor.send(form, password=PASSWORD, password_again=PASSWORD)
    assert (response.status_code, response.headers["location"]) == (303, base(account.business))
    assert visitor.get(base(account.business)).status_code == 200
    assert Visitor(system).get(path).status_code == 404
    assert visitor.send(form, password=PASSWORD, password_again=PASSWORD).status_code in {403, 404}
    assert Visitor(system, visitor.email).sign_in().status_code == 303


def test_an_invitation_of_somebody_with_an_account_needs_its_password(system: System, account: Account) -> None:
    other = open_account(system.database, name="Other")
    member = add_member(system, account.business)
    path = f"/dashboard/invitations/{invite(system, other, member.email, Role.ADMIN)}"
    thief = Visitor(system)
    form = thief.open(path).form(path)
    refused = thief.send(form, password="a password of my own", password_again="a password of my own")
    assert (refused.status_code, "That is not your password." in refused.text) == (422, True)
    form = member.open(path).form(path)
    assert member.send(form, password=PASSWORD).headers["location"] == base(other.business)
    page = member.open(base(other.business))
    assert {base(other.business), base(account.business)} <= set(page.links)


@pytest.mark.parametrize("token", ["x", "A" * 43, "%C3%A9", "a b"])
def test_made_up_invitations_are_not_there(client: httpx.Client, token: str) -> None:
    response = client.get(f"/dashboard/invitations/{token}")
    assert response.status_code == 404
    assert "not valid any more" in response.text


def test_signing_out_needs_the_token_too(system: System, account: Account) -> None:
    visitor = sign_in(system, account.business)
    assert visitor.send(Form("/dashboard/sign-out", "post", {"csrf_token": "x"})).status_code == 403
    assert visitor.get(base(account.business)).status_code == 200
