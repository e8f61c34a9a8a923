"""`Idempotency-Key`, over HTTP, on the real parts."""

import socket
import string
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from core.credentials import KeyKind
from core.database.connection import Database
from core.parties import api_keys, businesses
from tests.servers import Account, System, open_account, verify_books

MALFORMED = {"error": "Idempotency-Key must be 1 to 255 visible ASCII characters"}
REUSED = {"error": "Idempotency-Key was already used with different parameters"}


def pay(
    client: httpx.Client, account: Account, key: str | bytes, email: str = "user@example.com", amount: object = 100
) -> httpx.Response:
    headers: dict[bytes, bytes] = {
        b"Authorization": account.headers["Authorization"].encode(),
        b"Idempotency-Key": key.encode() if isinstance(key, str) else key,
    }
    return client.post("/payout/create", json={"email": email, "amount": amount}, headers=headers)


def paid(database: Database, business_id: UUID) -> tuple[int, int]:
    """Return how many allocations a business has, and their sum."""
    query = sa.text(
        "SELECT count(*), COALESCE(sum(amount), 0) FROM payout_transactions "
        "WHERE business_id = :id AND type = 'allocation'"
    )
    with database.transaction() as connection:
        count, total = connection.execute(query, {"id": business_id}).one()
        return count, int(total)


def fund(database: Database, business_id: UUID, cents: int) -> None:
    with database.transaction() as connection:
        businesses.fund_business(connection, business_id, cents)


def assert_paid_now(response: httpx.Response) -> None:
    assert response.status_code == 201, response.text
    assert "idempotent-replayed" not in response.headers


def assert_replayed(response: httpx.Response, original: httpx.Response) -> None:
    assert (response.status_code, response.json()) == (201, original.json())
    assert response.headers["idempotent-replayed"] == "true"


def test_retry_with_the_same_key_pays_once(system: System, client: httpx.Client, account: Account) -> None:
    first = pay(client, account, "key")
    assert_paid_now(first)
    for _ in range(3):
        assert_replayed(pay(client, account, "key"), first)
    assert paid(system.database, account.business.id) == (1, 100)


def test_retry_in_another_spelling_pays_once(system: System, client: httpx.Client, account: Account) -> None:
    first = pay(client, account, "key", "user@bücher.example", 100)
    assert_replayed(pay(client, account, "key", " USER@xn--bcher-kva.EXAMPLE ", 100.0), first)
    assert paid(system.database, account.business.id) == (1, 100)


@pytest.mark.parametrize(("email", "amount"), [("user@example.com", 101), ("other@example.com", 100)])
def test_key_with_other_values_answers_422(
    system: System, client: httpx.Client, account: Account, email: str, amount: int
) -> None:
    first = pay(client, account, "key")
    reused = pay(client, account, "key", email, amount)
    assert (reused.status_code, reused.json()) == (422, REUSED)
    assert_replayed(pay(client, account, "key"), first)
    assert paid(system.database, account.business.id) == (1, 100)


def test_keys_differ_in_case(system: System, client: httpx.Client, account: Account) -> None:
    assert_paid_now(pay(client, account, "key"))
    assert_paid_now(pay(client, account, "KEY"))
    assert paid(system.database, account.business.id) == (2, 200)


def test_key_belongs_to_the_business(system: System, client: httpx.Client, account: Account) -> None:
    other = open_account(system.database)
    assert_paid_now(pay(client, account, "key"))
    assert_paid_now(pay(client, other, "key", amount=7))
    assert paid(system.database, other.business.id) == (1, 7)


def test_key_of_live_mode_is_free_in_test_mode(system: System, client: httpx.Client, account: Account) -> None:
    with system.database.transaction() as connection:
        key, secret = api_keys.create_api_key(connection, account.business.twin_id, KeyKind.SECRET)
    assert_paid_now(pay(client, account, "key"))
    assert_paid_now(pay(client, Account(account.business, key.id, secret), "key", amount=7))
    assert paid(system.database, account.business.twin_id) == (1, 7)


def test_key_is_the_same_whichever_api_key_is_used(system: System, client: httpx.Client, account: Account) -> None:
    with system.database.transaction() as connection:
        key, secret = api_keys.create_api_key(connection, account.business.id, KeyKind.SECRET)
    first = pay(client, account, "key")
    assert_replayed(pay(client, Account(account.business, key.id, secret), "key"), first)


def test_replay_needs_no_balance(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, funds_cents=100)
    first = pay(client, account, "key")
    assert_replayed(pay(client, account, "key"), first)
    assert pay(client, account, "key", amount=50).json() == REUSED
    assert pay(client, account, "another", amount=50).json() == {"error": "Insufficient payout balance"}


def test_revoked_key_replays_nothing(system: System, client: httpx.Client, account: Account) -> None:
    assert_paid_now(pay(client, account, "key"))
    with system.database.transaction() as connection:
        api_keys.revoke_api_key(connection, account.api_key_id)
    assert pay(client, account, "key").status_code == 401


def test_insufficient_balance_leaves_the_key_free(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, funds_cents=99)
    for _ in range(2):
        assert pay(client, account, "key").status_code == 400
    fund(system.database, account.business.id, 1)
    first = pay(client, account, "key")
    assert_paid_now(first)
    assert_replayed(pay(client, account, "key"), first)


def test_disabled_payouts_leave_the_key_free(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, payouts_enabled=False)
    assert pay(client, account, "key").status_code == 403
    with system.database.transaction() as connection:
        businesses.set_payouts_enabled(connection, account.business.id, enabled=True)
    assert_paid_now(pay(client, account, "key", amount=7))


def test_bad_request_and_bad_api_key_leave_the_key_free(client: httpx.Client, account: Account) -> None:
    assert pay(client, account, "key", amount=0).status_code == 400
    assert pay(client, Account(account.business, account.api_key_id, "sk_live_x"), "key").status_code == 401
    assert_paid_now(pay(client, account, "key", amount=7))


def test_50_concurrent_calls_with_one_key_pay_once(system: System, account: Account) -> None:
    with system.client(limits=httpx.Limits(max_connections=50)) as client, ThreadPoolExecutor(50) as threads:
        responses = list(threads.map(lambda _: pay(client, account, "key"), range(50)))
    assert Counter(response.status_code for response in responses) == {201: 50}
    assert len({response.json()["hash"] for response in responses}) == 1
    assert Counter(response.headers.get("idempotent-replayed") for response in responses) == {None: 1, "true": 49}
    assert paid(system.database, account.business.id) == (1, 100)
    assert verify_books(system.database).balanced


def test_50_concurrent_calls_with_one_key_and_other_amounts_pay_once(system: System, account: Account) -> None:
    with system.client(limits=httpx.Limits(max_connections=50)) as client, ThreadPoolExecutor(50) as threads:
        responses = list(threads.map(lambda number: pay(client, account, "key", amount=1 + number % 2), range(50)))
    assert Counter(response.status_code for response in responses) == {201: 25, 422: 25}
    assert paid(system.database, account.business.id)[0] == 1
    assert verify_books(system.database).balanced


@pytest.mark.parametrize(
    "key",
    [
        "k",
        "x" * 255,
        "".join(sorted(string.ascii_letters + string.digits + string.punctuation)),
        "'; DROP TABLE payout_transactions; --",
        "0",
        "null",
    ],
)
def test_every_visible_ascii_character_may_be_in_a_key(
    system: System, client: httpx.Client, account: Account, key: str
) -> None:
    key = key.replace(" ", "_")
    first = pay(client, account, key)
    assert_paid_now(first)
    assert_replayed(pay(client, account, key), first)


@pytest.mark.parametrize("key", ["", "x" * 256, "x" * 5000, "a b", "a\tb", "é".encode(), b"\xff", b"a\x80"])
def test_malformed_key_answers_400(system: System, client: httpx.Client, account: Account, key: str | bytes) -> None:
    response = pay(client, account, key)
    assert (response.status_code, response.json()) == (400, MALFORMED)
    assert paid(system.database, account.business.id) == (0, 0)


def test_malformed_key_comes_after_authentication_and_settings(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, payouts_enabled=False)
    assert pay(client, account, "a b").status_code == 403
    with system.database.transaction() as connection:
        api_keys.revoke_api_key(connection, account.api_key_id)
    assert pay(client, account, "a b").status_code == 401


def test_malformed_key_comes_before_insufficient_balance(system: System, client: httpx.Client) -> None:
    response = pay(client, open_account(system.database, funds_cents=0), "a b")
    assert (response.status_code, response.json()) == (400, MALFORMED)


def test_white_space_around_a_key_is_not_part_of_it(system: System, client: httpx.Client, account: Account) -> None:
    with socket.create_connection(system.address) as connection:
        body = b'{"email": "user@example.com", "amount": 1}'
        connection.sendall(
            b"POST /payout/create HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIdempotency-Key:  padded \r\n"
            + f"Authorization: Bearer {account.secret_key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert connection.makefile("rb").readline().split()[1] == b"201"
    headers = account.headers | {"Idempotency-Key": "padded"}
    replay = client.post("/payout/create", content=body, headers=headers)
    assert (replay.status_code, replay.headers.get("Idempotent-Replayed")) == (201, "true")
