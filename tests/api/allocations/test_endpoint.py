"""POST /payout/create, over HTTP, on the real parts: every row of the contract's tables."""

import random
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from api.local.valkey import EmbeddedValkey
from api.web.responses import REFUSAL_BY_OUTCOME
from core.credentials import KeyKind, payout_hash
from core.database.connection import Database
from core.database.tables import payout_transactions, payout_users
from core.messages import Outcome
from core.parties import api_keys, businesses
from tests.servers import HASH_SECRET, Account, Servers, System, open_account, run_system, run_valkey, verify_books

UNAUTHORIZED = {"error": "Unauthorized"}
DISABLED = {"error": "Payouts are currently disabled. Please enable them in Settings."}
INSUFFICIENT = {"error": "Insufficient payout balance"}
NOT_AN_OBJECT = {"error": "The request body must be a JSON object."}

EMAIL_REQUIRED = "The email field is required."
EMAIL_STRING = "The email must be a string."
EMAIL_FORMAT = "The email must be a valid email address."
EMAIL_MAX = "The email may not be greater than 255 characters."
AMOUNT_REQUIRED = "The amount field is required."
AMOUNT_INTEGER = "The amount must be an integer."
AMOUNT_MIN = "The amount must be at least 1."
AMOUNT_MAX = "The amount may not be greater than 100000000."

GOOD = b'{"email": "user@example.com", "amount": 1}'
BAD_FIELDS = b'{"email": "nobody", "amount": 0}'
NOT_JSON = b"amount=1"


def post(client: httpx.Client, account: Account, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    return client.post("/payout/create", content=body, headers=account.headers | (headers or {}))


def balance_of(database: Database, business_id: UUID) -> int:
    with database.transaction() as connection:
        return businesses.get_business(connection, business_id).payout_balance


def count_users(database: Database, business_id: UUID) -> int:
    query = sa.select(sa.func.count()).select_from(payout_users).where(payout_users.c.business_id == business_id)
    with database.transaction() as connection:
        return int(connection.execute(query).scalar_one())


def read_history(database: Database, business_id: UUID) -> dict[str, tuple[int, int]]:
    """Return how many allocations each e-mail has, and their sum."""
    query = (
        sa.select(payout_users.c.email, sa.func.count(), sa.func.sum(payout_transactions.c.amount))
        .join_from(
            payout_transactions,
            payout_users,
            (payout_users.c.business_id == payout_transactions.c.business_id)
            & (payout_users.c.id == payout_transactions.c.payout_user_id),
        )
        .where(payout_transactions.c.business_id == business_id, payout_transactions.c.type == "allocation")
        .group_by(payout_users.c.email)
    )
    with database.transaction() as connection:
        return {email: (count, int(total)) for email, count, total in connection.execute(query)}


def revoke(database: Database, api_key_id: UUID) -> None:
    with database.transaction() as connection:
        api_keys.revoke_api_key(connection, api_key_id)


def switch_payouts(database: Database, account: Account, *, enabled: bool) -> None:
    with database.transaction() as connection:
        businesses.set_payouts_enabled(connection, account.business.id, enabled=enabled)


def make_key(database: Database, business_id: UUID, kind: KeyKind = KeyKind.SECRET) -> str:
    with database.transaction() as connection:
        return api_keys.create_api_key(connection, business_id, kind)[1]


# Success


def test_first_allocation_answers_201_with_64_hex_digits(
    system: System, client: httpx.Client, account: Account
) -> None:
    response = system.pay(client, account, "user@example.com", 10_000)
    assert response.status_code == 201
    assert list(response.json()) == ["hash"]
    assert len(bytes.fromhex(response.json()["hash"])) == 32
    assert response.headers["content-type"] == "application/json"
    assert "idempotent-replayed" not in response.headers


def test_hash_is_the_keyed_one_in_lower_case(system: System, client: httpx.Client, account: Account) -> None:
    response = system.pay(client, account, " User@Example.COM ", 1)
    assert response.json() == {"hash": payout_hash(HASH_SECRET.encode(), account.business.id, "user@example.com")}
    assert response.json()["hash"].islower()


def test_same_email_in_capitals_is_the_same_user(system: System, client: httpx.Client, account: Account) -> None:
    first = system.pay(client, account, "user@example.com", 10_000)
    second = system.pay(client, account, " USER@EXAMPLE.COM ", 5)
    assert second.status_code == 201
    assert second.json() == first.json()


def test_domain_in_unicode_and_in_punycode_is_the_same_user(
    system: System, client: httpx.Client, account: Account
) -> None:
    first = system.pay(client, account, "user@bücher.example", 1)
    second = system.pay(client, account, "user@XN--BCHER-KVA.example", 1)
    composed = system.pay(client, account, "usér@example.com", 1)
    decomposed = system.pay(client, account, "use\u0301r@example.com", 1)
    assert {response.status_code for response in (first, second, composed, decomposed)} == {201}
    assert first.json() == second.json()
    assert composed.json() == decomposed.json() != first.json()


def test_another_business_gets_another_hash(system: System, client: httpx.Client, account: Account) -> None:
    other = open_account(system.database)
    first = system.pay(client, account, "user@example.com", 1)
    second = system.pay(client, other, "user@example.com", 1)
    assert first.json() != second.json()


def test_same_call_twice_pays_twice(system: System, client: httpx.Client, account: Account) -> None:
    for _ in range(2):
        assert system.pay(client, account, "user@example.com", 300).status_code == 201
    assert read_history(system.database, account.business.id) == {"user@example.com": (2, 600)}
    assert balance_of(system.database, account.business.id) == 1_000_000 - 600


def test_whole_balance_can_be_paid_out(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, funds_cents=100_000_000)
    assert system.pay(client, account, "user@example.com", 100_000_000).status_code == 201
    assert balance_of(system.database, account.business.id) == 0


# Authentication


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "{key}",
        "Basic {key}",
        "Token {key}",
        "Bearer{key}",
        "Bearer:{key}",
        "Bearer {key}x",
        "Bearer {key} {key}",
        "Bearer {key},",
        'Bearer "{key}"',
        "Bearer sk_live_" + "A" * 40,
        "Bearer sk_test_" + "A" * 40,
        "Bearer sk_live_",
        "Bearer sk_live_' OR 1=1 --",
        "Bearer " + "A" * 10_000,
    ],
)
def test_bad_authorization_answers_401(
    system: System, client: httpx.Client, account: Account, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.format(key=account.secret_key)}
    for body in (GOOD, BAD_FIELDS, NOT_JSON, b""):
        response = client.post("/payout/create", content=body, headers=headers)
        assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
        assert response.headers["www-authenticate"] == "Bearer"
    assert count_users(system.database, account.business.id) == 0


def test_authorization_that_is_not_ascii_answers_401(client: httpx.Client) -> None:
    for value in (b"Bearer sk_live_\xff\xfe", "Bearer sk_live_é".encode()):
        response = client.post("/payout/create", content=GOOD, headers={b"Authorization": value})
        assert (response.status_code, response.json()) == (401, UNAUTHORIZED)


def test_key_in_other_case_answers_401(client: httpx.Client, account: Account) -> None:
    key = account.secret_key[:8] + account.secret_key[8:].swapcase()
    response = client.post("/payout/create", content=GOOD, headers={"Authorization": f"Bearer {key}"})
    assert (response.status_code, response.json()) == (401, UNAUTHORIZED)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_scheme_may_be_in_any_case(client: httpx.Client, account: Account, scheme: str) -> None:
    response = post(client, account, GOOD, {"Authorization": f"{scheme} {account.secret_key}"})
    assert response.status_code == 201


def test_public_key_answers_401(system: System, client: httpx.Client, account: Account) -> None:
    key = make_key(system.database, account.business.id, KeyKind.PUBLIC)
    for sent in (key, key.replace("pk_", "sk_")):
        for body in (GOOD, BAD_FIELDS):
            response = post(client, account, body, {"Authorization": f"Bearer {sent}"})
            assert (response.status_code, response.json()) == (401, UNAUTHORIZED)


def test_test_key_acts_on_the_twin_only(system: System, client: httpx.Client, account: Account) -> None:
    key = make_key(system.database, account.business.twin_id)
    assert key.startswith("sk_test_")
    live = system.pay(client, account, "live@example.com", 1)
    response = post(client, account, b'{"email":"user@example.com","amount":7}', {"Authorization": f"Bearer {key}"})
    assert response.status_code == 201
    assert read_history(system.database, account.business.id) == {"live@example.com": (1, 1)}
    assert read_history(system.database, account.business.twin_id) == {"user@example.com": (1, 7)}
    assert balance_of(system.database, account.business.id) == 1_000_000 - 1
    assert balance_of(system.database, account.business.twin_id) == businesses.PLAY_MONEY_CENTS - 7
    same_email = post(client, account, b'{"email":"live@example.com","amount":7}', {"Authorization": f"Bearer {key}"})
    assert same_email.json() != live.json()


def test_test_key_works_while_live_payouts_are_disabled(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, payouts_enabled=False)
    key = make_key(system.database, account.business.twin_id)
    assert post(client, account, GOOD, {"Authorization": f"Bearer {key}"}).status_code == 201


@pytest.mark.parametrize("used_before", [True, False])
def test_revoked_key_answers_401_at_once(
    system: System, client: httpx.Client, account: Account, used_before: bool
) -> None:
    if used_before:
        assert post(client, account, GOOD).status_code == 201
    revoke(system.database, account.api_key_id)
    for body in (GOOD, BAD_FIELDS, NOT_JSON):
        response = post(client, account, body)
        assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
        assert response.headers["www-authenticate"] == "Bearer"
    assert balance_of(system.database, account.business.id) == 1_000_000 - used_before


def test_revoking_one_key_leaves_the_other(system: System, client: httpx.Client, account: Account) -> None:
    other = make_key(system.database, account.business.id)
    revoke(system.database, account.api_key_id)
    assert post(client, account, GOOD, {"Authorization": f"Bearer {other}"}).status_code == 201


# Payouts disabled


@pytest.mark.parametrize("used_before", [True, False])
def test_disabled_payouts_answer_403_at_once(
    system: System, client: httpx.Client, account: Account, used_before: bool
) -> None:
    if used_before:
        assert post(client, account, GOOD).status_code == 201
    switch_payouts(system.database, account, enabled=False)
    for body in (GOOD, BAD_FIELDS, NOT_JSON, b'{"email": "user@example.com", "amount": 100000000}'):
        response = post(client, account, body)
        assert (response.status_code, response.json()) == (403, DISABLED)
    assert balance_of(system.database, account.business.id) == 1_000_000 - used_before
    switch_payouts(system.database, account, enabled=True)
    assert post(client, account, GOOD).status_code == 201


# Precedence


@pytest.mark.parametrize("body", [GOOD, BAD_FIELDS, NOT_JSON, b'{"email": "user@example.com", "amount": 2}'])
def test_revoked_key_comes_before_disabled_payouts(system: System, client: httpx.Client, body: bytes) -> None:
    account = open_account(system.database, funds_cents=1, payouts_enabled=False)
    assert post(client, account, body).status_code == 403
    revoke(system.database, account.api_key_id)
    assert (response := post(client, account, body)).status_code == 401, response.text


def test_field_errors_come_before_insufficient_balance(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, funds_cents=0)
    response = post(client, account, b'{"email": "user@example.com", "amount": 100000001}')
    assert (response.status_code, response.json()) == (400, {"amount": [AMOUNT_MAX]})
    response = post(client, account, b'{"email": "nobody", "amount": 100000000}')
    assert (response.status_code, response.json()) == (400, {"email": [EMAIL_FORMAT]})


# Insufficient balance


def test_insufficient_balance_leaves_no_trace(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, funds_cents=100)
    response = system.pay(client, account, "user@example.com", 101)
    assert (response.status_code, response.json()) == (400, INSUFFICIENT)
    assert balance_of(system.database, account.business.id) == 100
    assert count_users(system.database, account.business.id) == 0
    assert read_history(system.database, account.business.id) == {}


def test_insufficient_balance_leaves_an_existing_user_alone(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, funds_cents=100)
    assert system.pay(client, account, "user@example.com", 60).status_code == 201
    assert system.pay(client, account, "user@example.com", 41).status_code == 400
    assert read_history(system.database, account.business.id) == {"user@example.com": (1, 60)}
    assert system.pay(client, account, "user@example.com", 40).status_code == 201


# Field errors

LONG_LOCAL = "x" * 300 + "@example.com"
LONGEST = "a" * 64 + "@" + ".".join(["b" * 60] * 3) + ".ccc.com"
assert len(LONGEST) == 255


@pytest.mark.parametrize(
    ("email", "errors"),
    [
        (None, [EMAIL_REQUIRED]),
        ("null", [EMAIL_REQUIRED]),
        ('""', [EMAIL_REQUIRED]),
        ('"  \\t\\n "', [EMAIL_REQUIRED]),
        ('"\\u00a0"', [EMAIL_REQUIRED]),
        ("5", [EMAIL_STRING, EMAIL_FORMAT]),
        ("0", [EMAIL_STRING, EMAIL_FORMAT]),
        ("1.5", [EMAIL_STRING, EMAIL_FORMAT]),
        ("true", [EMAIL_STRING, EMAIL_FORMAT]),
        ("false", [EMAIL_STRING, EMAIL_FORMAT]),
        ('["user@example.com"]', [EMAIL_STRING, EMAIL_FORMAT]),
        ('{"address": "user@example.com"}', [EMAIL_STRING, EMAIL_FORMAT]),
        ('"user"', [EMAIL_FORMAT]),
        ('"user@"', [EMAIL_FORMAT]),
        ('"@example.com"', [EMAIL_FORMAT]),
        ('"user@localhost"', [EMAIL_FORMAT]),
        ('"user@example..com"', [EMAIL_FORMAT]),
        ('"user@.example.com"', [EMAIL_FORMAT]),
        ('"user@-example.com"', [EMAIL_FORMAT]),
        ('"us er@example.com"', [EMAIL_FORMAT]),
        ('"user@exam ple.com"', [EMAIL_FORMAT]),
        ('"user@@example.com"', [EMAIL_FORMAT]),
        ('"User <user@example.com>"', [EMAIL_FORMAT]),
        ('"user@example.com, other@example.com"', [EMAIL_FORMAT]),
        ('"user\\n@example.com"', [EMAIL_FORMAT]),
        ('"us\\u0000er@example.com"', [EMAIL_FORMAT]),
        ('"user@exam\\u0000ple.com"', [EMAIL_FORMAT]),
        ('"\\ud800@example.com"', [EMAIL_FORMAT]),
        ('"user@\\udfff.com"', [EMAIL_FORMAT]),
        ('"user@[127.0.0.1]"', [EMAIL_FORMAT]),
        (f'"{"x" * 300}"', [EMAIL_FORMAT, EMAIL_MAX]),
        (f'"{LONG_LOCAL}"', [EMAIL_FORMAT, EMAIL_MAX]),
    ],
)
def test_every_broken_email_rule_is_reported(
    client: httpx.Client, account: Account, email: str | None, errors: list[str]
) -> None:
    field = "" if email is None else f'"email": {email}, '
    response = post(client, account, f'{{{field}"amount": 1}}'.encode())
    assert (response.status_code, response.json()) == (400, {"email": errors})


@pytest.mark.parametrize(
    "email",
    [
        "user@example.com",
        " \\t user@example.com \\r\\n",
        "user+tag@example.com",
        "u.s-e_r@sub.example.co.uk",
        "o'neil@example.com",
        "用户@例え.jp",
        "user@example.test",
        "\\u0075ser@example.com",
        LONGEST,
        " " * 50 + LONGEST + " " * 50,
    ],
)
def test_well_formed_email_passes(client: httpx.Client, account: Account, email: str) -> None:
    response = post(client, account, f'{{"email": "{email}", "amount": 1}}'.encode())
    assert response.status_code == 201, response.text


@pytest.mark.parametrize(
    ("amount", "errors"),
    [
        (None, [AMOUNT_REQUIRED]),
        ("null", [AMOUNT_REQUIRED]),
        ('""', [AMOUNT_REQUIRED]),
        ('"  "', [AMOUNT_REQUIRED]),
        ('"100"', [AMOUNT_INTEGER]),
        ('"abc"', [AMOUNT_INTEGER]),
        ('"\\ud800"', [AMOUNT_INTEGER]),
        ("true", [AMOUNT_INTEGER]),
        ("false", [AMOUNT_INTEGER]),
        ("[1]", [AMOUNT_INTEGER]),
        ("[]", [AMOUNT_INTEGER]),
        ("{}", [AMOUNT_INTEGER]),
        ("1.5", [AMOUNT_INTEGER]),
        ("1.00000000000000000000000001", [AMOUNT_INTEGER]),
        ("99999999.99999999999999999999", [AMOUNT_INTEGER]),
        ("0.5", [AMOUNT_INTEGER, AMOUNT_MIN]),
        ("1e-1", [AMOUNT_INTEGER, AMOUNT_MIN]),
        ("-1.5", [AMOUNT_INTEGER, AMOUNT_MIN]),
        ("1e-400", [AMOUNT_INTEGER, AMOUNT_MIN]),
        ("1e-99999999999999999999", [AMOUNT_INTEGER, AMOUNT_MIN]),
        ("0", [AMOUNT_MIN]),
        ("-0", [AMOUNT_MIN]),
        ("-0.0", [AMOUNT_MIN]),
        ("0e99999999999999999999", [AMOUNT_MIN]),
        ("-1", [AMOUNT_MIN]),
        ("-1e3", [AMOUNT_MIN]),
        ("-1e999999", [AMOUNT_MIN]),
        ("-" + "9" * 400, [AMOUNT_MIN]),
        ("100000001", [AMOUNT_MAX]),
        ("100000001.0", [AMOUNT_MAX]),
        ("9223372036854775807", [AMOUNT_MAX]),
        ("9223372036854775808", [AMOUNT_MAX]),
        ("18446744073709551617", [AMOUNT_MAX]),
        ("9" * 400, [AMOUNT_MAX]),
        ("9" * 5000, [AMOUNT_MAX]),
        ("9" * 400 + ".0", [AMOUNT_MAX]),
        ("1e400", [AMOUNT_MAX]),
        ("1e999999", [AMOUNT_MAX]),
        ("1e99999999999999999999", [AMOUNT_MAX]),
        ("100000000.5", [AMOUNT_INTEGER, AMOUNT_MAX]),
    ],
)
def test_every_broken_amount_rule_is_reported(
    client: httpx.Client, account: Account, amount: str | None, errors: list[str]
) -> None:
    field = "" if amount is None else f', "amount": {amount}'
    response = post(client, account, f'{{"email": "user@example.com"{field}}}'.encode())
    assert (response.status_code, response.json()) == (400, {"amount": errors})


@pytest.mark.parametrize(
    ("amount", "cents"),
    [
        ("1", 1),
        ("1.0", 1),
        ("100.0", 100),
        ("100.000000000000000000000000000", 100),
        ("1e3", 1000),
        ("1E+3", 1000),
        ("1e00000000000000000000003", 1000),
        ("1.5e1", 15),
        ("1500e-2", 15),
        ("100000000", 100_000_000),
        ("1e8", 100_000_000),
    ],
)
def test_every_spelling_of_an_integer_passes(system: System, client: httpx.Client, amount: str, cents: int) -> None:
    account = open_account(system.database, funds_cents=100_000_000)
    response = post(client, account, f'{{"email": "user@example.com", "amount": {amount}}}'.encode())
    assert response.status_code == 201, response.text
    assert read_history(system.database, account.business.id) == {"user@example.com": (1, cents)}


def test_errors_of_both_fields_are_reported_in_the_contract_s_order(client: httpx.Client, account: Account) -> None:
    response = post(client, account, b'{"amount": -0.5, "email": 7}')
    assert response.status_code == 400
    expected = {"email": [EMAIL_STRING, EMAIL_FORMAT], "amount": [AMOUNT_INTEGER, AMOUNT_MIN]}
    assert list(response.json().items()) == list(expected.items())
    response = post(client, account, b"{}")
    assert list(response.json().items()) == [("email", [EMAIL_REQUIRED]), ("amount", [AMOUNT_REQUIRED])]


# Bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        NOT_JSON,
        b"null",
        b"true",
        b"5",
        b'"user@example.com"',
        b"[]",
        b"[" + GOOD + b"]",
        b"{",
        GOOD[:-1],
        GOOD + b"}",
        GOOD + GOOD,
        GOOD + b"\x00",
        b"\xef\xbb\xbf" + GOOD,
        GOOD.decode().encode("utf-16"),
        GOOD.decode().encode("utf-32-be"),
        b'{"email": "\xff@example.com", "amount": 1}',
        b'{"email": "\xed\xa0\x80@example.com", "amount": 1}',
        b'{"email": "us\x00er@example.com", "amount": 1}',
        b'{"email": "user@example.com", "amount": NaN}',
        b'{"email": "user@example.com", "amount": Infinity}',
        b'{"email": "user@example.com", "amount": -Infinity}',
        b'{"email": "user@example.com", "amount": 01}',
        b'{"email": "user@example.com", "amount": +1}',
        b'{"email": "user@example.com", "amount": 0x1}',
        b'{"email": "user@example.com", "amount": 1_000}',
        b'{"email": "user@example.com", "amount": 1.}',
        b'{"email": "user@example.com", "amount": 1,}',
        b"{'email': 'user@example.com', 'amount': 1}",
        b"[" * 5000 + b"]" * 5000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"email": "user@example.com", "amount": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"[" * 60_000,
    ],
)
def test_body_that_is_no_json_object_answers_400(client: httpx.Client, account: Account, body: bytes) -> None:
    response = post(client, account, body)
    assert (response.status_code, response.json()) == (400, NOT_AN_OBJECT)


EMAIL_ONCE = "The email field must be given once."
AMOUNT_ONCE = "The amount field must be given once."
REFERENCE_ONCE = "The reference field must be given once."


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        (b'{"email": "user@example.com", "amount": 1, "amount": 100}', {"amount": [AMOUNT_ONCE]}),
        (b'{"email": "user@example.com", "amount": 1, "amount": 1}', {"amount": [AMOUNT_ONCE]}),
        (b'{"email": "user@example.com", "amount": 1, "am\\u006funt": 100}', {"amount": [AMOUNT_ONCE]}),
        (b'{"email": "user@example.com", "amount": "1", "amount": 1}', {"amount": [AMOUNT_ONCE]}),
        (
            b'{"email": "a@example.com", "email": "b@example.com", "amount": 0}',
            {"email": [EMAIL_ONCE], "amount": [AMOUNT_MIN]},
        ),
        (
            b'{"email": "a@example.com", "amount": 1, "reference": "a", "reference": "b"}',
            {"reference": [REFERENCE_ONCE]},
        ),
    ],
)
def test_a_field_that_is_named_twice_is_refused(
    system: System, client: httpx.Client, account: Account, body: bytes, errors: dict[str, list[str]]
) -> None:
    response = post(client, account, body)
    assert (response.status_code, response.json()) == (400, errors)
    assert read_history(system.database, account.business.id) == {}


def test_a_name_that_is_there_twice_outside_of_the_fields_is_no_matter(
    system: System, client: httpx.Client, account: Account
) -> None:
    body = b'{"email": "user@example.com", "amount": 1, "note": {"amount": 5}, "more": "\\"amount\\"", "x": 1, "x": 2}'
    assert post(client, account, body).status_code == 201
    assert read_history(system.database, account.business.id) == {"user@example.com": (1, 1)}


@pytest.mark.parametrize(
    "extra",
    [
        b'"note": "x"',
        b'"__proto__": {}, "__type__": "uuid", "__value__": "x"',
        b'"Email": "other@example.com", "AMOUNT": 5',
        b'"": null, "amount ": 5',
        b'"deep": ' + b"[" * 100 + b"]" * 100,
        b'"huge": 1e999999, "long": ' + b"9" * 500,
        b'"surrogate": "\\ud800", "nul": "\\u0000"',
        b'"business_id": "x", "payout_hash": "y", "id": "z"',
    ],
)
def test_unknown_fields_are_ignored(client: httpx.Client, account: Account, extra: bytes) -> None:
    assert post(client, account, b"{" + extra + b', "email": "user@example.com", "amount": 1}').status_code == 201


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "application/json; charset=latin-1",
        "text/plain",
        "text/csv",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "application/x-msgpack",
        "nonsense",
        "a/b/c; ;;=",
    ],
)
def test_content_type_is_not_policed(client: httpx.Client, account: Account, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert post(client, account, GOOD, headers).status_code == 201
    assert post(client, account, BAD_FIELDS, headers).json() == {"email": [EMAIL_FORMAT], "amount": [AMOUNT_MIN]}


@pytest.mark.parametrize("accept", ["*/*", "text/html", "text/csv", "application/xml", "nonsense"])
def test_answer_is_json_whatever_is_accepted(client: httpx.Client, account: Account, accept: str) -> None:
    for body, status_code in ((GOOD, 201), (BAD_FIELDS, 400), (NOT_JSON, 400)):
        response = post(client, account, body, {"Accept": accept})
        assert response.status_code == status_code
        assert response.headers["content-type"] == "application/json"


def test_body_of_64_kib_passes_and_one_byte_more_answers_413(client: httpx.Client, account: Account) -> None:
    assert post(client, account, GOOD.ljust(65_536)).status_code == 201
    response = post(client, account, GOOD.ljust(65_537))
    assert (response.status_code, response.json()) == (413, {"error": "Request body too large"})
    assert response.headers["x-request-id"]


def test_body_of_10_mb_answers_413(client: httpx.Client, account: Account) -> None:
    response = post(client, account, GOOD.ljust(10_000_000))
    assert (response.status_code, response.json()) == (413, {"error": "Request body too large"})


def test_body_of_10_mb_without_a_length_answers_413(client: httpx.Client, account: Account) -> None:
    chunks = (b" " * 10_000 for _ in range(1000))
    response = client.post("/payout/create", content=chunks, headers=account.headers)
    assert (response.status_code, response.json()) == (413, {"error": "Request body too large"})


def test_body_in_chunks_is_read_whole(client: httpx.Client, account: Account) -> None:
    chunks = (GOOD[position : position + 1] for position in range(len(GOOD)))
    assert client.post("/payout/create", content=chunks, headers=account.headers).status_code == 201


# Rules for every endpoint


@pytest.mark.parametrize("path", ["/", "/nothing", "/payout", "/payout/create/x", "/payout/%00", "/%ff", "/schema/x"])
def test_unknown_path_answers_404(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        response = client.request(method, path)
        assert (response.status_code, response.json()) == (404, {"error": "Not found"})
        assert response.headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_other_method_answers_405_with_allow(client: httpx.Client, account: Account, method: str) -> None:
    response = client.request(method, "/payout/create", headers=account.headers)
    assert (response.status_code, response.json()) == (405, {"error": "Method not allowed"})
    assert "POST" in [allowed.strip() for allowed in response.headers["allow"].split(",")]
    assert method not in [allowed.strip() for allowed in response.headers["allow"].split(",")]
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("sane", ["req-1", "A" * 128, "0199f0a2-7d5c-7cc0-8d1e-3b6f5a4b2c1d", "a/b+c=d.e_f:g;h@i"])
def test_sane_request_id_comes_back(client: httpx.Client, account: Account, sane: str) -> None:
    headers = {"X-Request-Id": sane}
    answers = [
        post(client, account, GOOD, headers),
        post(client, account, BAD_FIELDS, headers),
        post(client, account, GOOD.ljust(100_000), headers),
        client.post("/payout/create", headers=headers),
        client.get("/nothing", headers=headers),
        client.get("/payout/create", headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [201, 400, 413, 401, 404, 405]
    assert [answer.headers.get_list("x-request-id") for answer in answers] == [[sane]] * len(answers)


@pytest.mark.parametrize("insane", [None, b"", b"a b", b"A" * 129, "é".encode(), b"<script>", b'"quoted"', b"a\tb"])
def test_request_id_that_is_not_sane_is_replaced(client: httpx.Client, account: Account, insane: bytes | None) -> None:
    headers: dict[bytes, bytes] = {} if insane is None else {b"X-Request-Id": insane}
    headers[b"Authorization"] = account.headers["Authorization"].encode()
    ids = [client.post("/payout/create", content=GOOD, headers=headers).headers["x-request-id"] for _ in range(2)]
    assert ids[0] != ids[1]
    for id_ in ids:
        assert len(bytes.fromhex(id_)) == 16


def test_hash_and_key_are_in_no_header(client: httpx.Client, account: Account) -> None:
    response = post(client, account, GOOD)
    headers = str(response.headers)
    assert response.json()["hash"] not in headers
    assert account.secret_key not in headers


# Concurrency


def test_64_threads_over_10_businesses_are_all_in_the_history(system: System) -> None:
    accounts = [open_account(system.database, funds_cents=100_000_000) for _ in range(10)]
    chance = random.Random(1)  # noqa: S311
    emails = [f"user{number}@example.com" for number in range(20)]
    # A few businesses have most of the calls.
    calls = [
        (
            accounts[min(chance.randrange(10), chance.randrange(10))],
            "".join(chance.choice((letter.upper(), letter)) for letter in chance.choice(emails)),
            chance.randrange(1, 1000),
        )
        for _ in range(1200)
    ]
    expected: dict[tuple[UUID, str], tuple[int, int]] = {}
    for account, email, amount in calls:
        count, total = expected.get((account.business.id, email.lower()), (0, 0))
        expected[account.business.id, email.lower()] = (count + 1, total + amount)

    with system.client(limits=httpx.Limits(max_connections=64)) as client, ThreadPoolExecutor(64) as threads:
        responses = list(threads.map(lambda call: system.pay(client, *call), calls))

    assert Counter(response.status_code for response in responses) == {201: len(calls)}
    for (account, email, _), response in zip(calls, responses, strict=True):
        assert response.json()["hash"] == payout_hash(HASH_SECRET.encode(), account.business.id, email.lower())
    found = {
        (account.business.id, email): entry
        for account in accounts
        for email, entry in read_history(system.database, account.business.id).items()
    }
    assert found == expected
    assert verify_books(system.database).discrepancies == []


def test_balance_for_n_of_2n_concurrent_calls_lets_exactly_n_through(system: System) -> None:
    account = open_account(system.database, funds_cents=50 * 7 + 6)
    with system.client(limits=httpx.Limits(max_connections=64)) as client, ThreadPoolExecutor(64) as threads:
        responses = list(
            threads.map(lambda number: system.pay(client, account, f"u{number % 9}@example.com", 7), range(100))
        )
    assert Counter(response.status_code for response in responses) == {201: 50, 400: 50}
    assert all(response.json() == INSUFFICIENT for response in responses if response.status_code == 400)
    assert balance_of(system.database, account.business.id) == 6
    assert sum(count for count, _ in read_history(system.database, account.business.id).values()) == 50
    assert verify_books(system.database).balanced


def test_refused_calls_among_good_ones_do_not_touch_them(system: System) -> None:
    good = open_account(system.database)
    refused = [open_account(system.database, funds_cents=0), open_account(system.database, payouts_enabled=False)]
    calls = [(account, f"u{number}@example.com", 1) for number in range(40) for account in (good, *refused)]
    with system.client(limits=httpx.Limits(max_connections=64)) as client, ThreadPoolExecutor(64) as threads:
        responses = list(threads.map(lambda call: system.pay(client, *call), calls))
    assert [response.status_code for response in responses] == [201, 400, 403] * 40


# A system with little patience, for what is rare otherwise: 429 and 500


@pytest.fixture(scope="module")
def own_valkey() -> Iterator[EmbeddedValkey]:
    """Not the session's, for workers on one queue must share a database."""
    with run_valkey() as running:
        yield running


@pytest.fixture(scope="module")
def hasty_system(servers: Servers, own_valkey: EmbeddedValkey) -> Iterator[System]:
    with run_system(
        Servers(servers.postgres_url, own_valkey.url),
        waiting_max="1",
        resend_after_s="0.3",
        reply_timeout_s="1.2",
        resolve_timeout_s="0.6",
        transaction_timeout_s="0.5",
        row_lock_timeout_s="0.4",
        lock_wait_s="0.3",
    ) as running:
        yield running


def test_one_caller_too_many_answers_429_with_retry_after(hasty_system: System) -> None:
    account = open_account(hasty_system.database)
    with hasty_system.client() as client, ThreadPoolExecutor(3) as threads:
        with hasty_system.database.transaction() as connection:
            lock = sa.text("SELECT FROM businesses WHERE id = :id FOR UPDATE")
            connection.execute(lock, {"id": account.business.id})
            calls = [threads.submit(hasty_system.pay, client, account, "user@example.com", 1) for _ in range(3)]
            done = as_completed(calls)
            refused = [next(done).result() for _ in range(2)]
        assert next(done).result().status_code in {201, 500}
        for response in refused:
            assert (response.status_code, response.json()) == (429, {"error": "Too many requests"})
            assert int(response.headers["retry-after"]) >= 1
            assert response.headers["x-request-id"]
        assert hasty_system.pay(client, account, "user@example.com", 1).status_code == 201
    assert verify_books(hasty_system.database).balanced


def test_500_debits_nothing_and_leaves_the_idempotency_key_free(hasty_system: System) -> None:
    account = open_account(hasty_system.database)
    headers = {"Idempotency-Key": "once"}
    set_balance = sa.text("UPDATE payout_users SET balance = :balance WHERE business_id = :id")
    with hasty_system.client() as client:
        first = hasty_system.pay(client, account, "user@example.com", 1)
        with hasty_system.database.transaction() as connection:
            connection.execute(set_balance, {"balance": 2**63 - 1, "id": account.business.id})
        failed = post(client, account, GOOD, headers)
        assert (failed.status_code, failed.json()) == (500, {"error": "Internal server error"})
        assert failed.headers["x-request-id"]
        assert read_history(hasty_system.database, account.business.id) == {"user@example.com": (1, 1)}
        with hasty_system.database.transaction() as connection:
            connection.execute(set_balance, {"balance": 1, "id": account.business.id})
        again = post(client, account, GOOD, headers)
    assert again.status_code == 201
    assert again.json() == first.json()
    assert "idempotent-replayed" not in again.headers
    assert verify_books(hasty_system.database).balanced


def test_500_while_the_business_is_locked_is_never_paid(hasty_system: System) -> None:
    account = open_account(hasty_system.database)
    with hasty_system.client() as client:
        with hasty_system.database.transaction() as connection:
            lock = sa.text("SELECT FROM businesses WHERE id = :id FOR UPDATE")
            connection.execute(lock, {"id": account.business.id})
            response = hasty_system.pay(client, account, "user@example.com", 1)
        assert (response.status_code, response.json()) == (500, {"error": "Internal server error"})
        assert hasty_system.pay(client, account, "other@example.com", 1).status_code == 201
    assert read_history(hasty_system.database, account.business.id) == {"other@example.com": (1, 1)}
    assert verify_books(hasty_system.database).balanced


def test_every_refusal_text_of_the_contract_is_in_the_table() -> None:
    texts = {outcome: (refusal.status_code, refusal.error) for outcome, refusal in REFUSAL_BY_OUTCOME.items()}
    assert texts == {
        Outcome.UNAUTHORIZED: (401, UNAUTHORIZED["error"]),
        Outcome.PAYOUTS_DISABLED: (403, DISABLED["error"]),
        Outcome.INSUFFICIENT_BALANCE: (400, INSUFFICIENT["error"]),
        Outcome.IDEMPOTENCY_KEY_REUSED: (422, "Idempotency-Key was already used with different parameters"),
        Outcome.REFERENCE_REUSED: (422, "Reference was already used with different parameters"),
        Outcome.IDEMPOTENCY_KEY_REQUIRED: (400, "Idempotency-Key is required"),
        Outcome.EXPIRED: (500, "Internal server error"),
        Outcome.FAILED: (500, "Internal server error"),
    }


def test_invalid_utf8_in_an_unknown_field_is_no_json(client: httpx.Client, account: Account) -> None:
    body = b'{"email": "user@example.com", "amount": 1, "note": "\xff"}'
    response = client.post("/payout/create", content=body, headers=account.headers)
    assert (response.status_code, response.json()) == (400, {"error": "The request body must be a JSON object."})


@pytest.mark.parametrize(
    "behind", [b" ", b"\x16\x03\x01", b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"]
)
def test_what_is_no_http_behind_a_payment_is_not_taken_for_its_answer(
    system: System, account: Account, behind: bytes
) -> None:
    head = f"POST /payout/create HTTP/1.1\r\nHost: t\r\nContent-Length: {len(GOOD)}\r\n"
    head += f"Authorization: {account.headers['Authorization']}\r\n\r\n"
    with socket.create_connection(system.address, timeout=20) as connection:
        connection.sendall(head.encode() + GOOD + behind)
        connection.shutdown(socket.SHUT_WR)
        answers = b"".join(iter(lambda: connection.recv(65_536), b""))
    first, _, rest = answers.partition(b"HTTP/1.1 400 Bad Request")
    assert first.startswith(b"HTTP/1.1 201 Created")
    assert b"x-request-id" in rest
    assert rest.endswith(b'{"error":"Bad request"}')
    assert read_history(system.database, account.business.id) == {"user@example.com": (1, 1)}


def test_client_that_offers_http_2_is_served(system: System, account: Account) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    with system.client() as client:
        answers = [post(client, account, GOOD, offer) for _ in range(3)]
        batch = client.post(
            "/payout/batches", json={"allocations": [{"email": "a@b.co", "amount": 1}]}, headers=account.headers | offer
        )
    assert [answer.status_code for answer in [*answers, batch]] == [201, 201, 201, 202]


def test_two_keys_are_none(system: System, account: Account) -> None:
    with system.client() as client:
        for path, content in (
            ("/payout/create", GOOD),
            ("/payout/batches", b'{"allocations": [{"email": "a@b.co", "amount": 1}]}'),
        ):
            key = ("Authorization", account.headers["Authorization"])
            twice = client.post(
                path, content=content, headers=[key, ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
            )
            assert (twice.status_code, twice.json()) == (
                400,
                {"error": "Idempotency-Key must be 1 to 255 visible ASCII characters"},
            )
            assert client.post(path, content=content, headers=[key, key]).status_code == 401
            odd = client.post(path, content=content, headers={b"Authorization": key[1].encode() + b"\xa0"})
            assert odd.status_code == 401
    assert read_history(system.database, account.business.id) == {}
