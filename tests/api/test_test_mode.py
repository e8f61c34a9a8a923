"""Test mode: a business and its test twin know nothing of each other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from core.credentials import KeyKind
from core.ids import new_id
from core.parties import api_keys
from core.parties.businesses import PLAY_MONEY_CENTS, get_business, set_payouts_enabled
from tests.core.builders import allocate, allocation_of, make_allocation, withdraw
from tests.servers import Account, System, open_account, verify_books

LIVE_MONEY_CENTS = 1_000_000
UNAUTHORIZED = {"error": "Unauthorized"}
NOT_FOUND = {"error": "Not found"}
DISABLED = {"error": "Payouts are currently disabled. Please enable them in Settings."}
INSUFFICIENT = {"error": "Insufficient payout balance"}
EMAIL = "user@example.com"
CSV = {"Accept": "text/csv"}

Pair = tuple[Account, Account]


def open_twin(system: System, account: Account) -> Account:
    """Return the test twin of an account's business, with a key of its own."""
    with system.database.transaction() as connection:
        twin = get_business(connection, account.business.twin_id)
        key, secret_key = api_keys.create_api_key(connection, twin.id, KeyKind.SECRET)
    return Account(twin, key.id, secret_key)


@pytest.fixture(params=["live before test", "test before live"])
def pair(request: pytest.FixtureRequest, system: System, account: Account) -> Pair:
    """A business and its twin, in both orders: what holds from one side must hold from the other."""
    twin = open_twin(system, account)
    assert account.secret_key.startswith("sk_live_")
    assert twin.secret_key.startswith("sk_test_")
    return (account, twin) if request.param == "live before test" else (twin, account)


def pay(system: System, client: httpx.Client, account: Account, email: str = EMAIL, amount: int = 1) -> str:
    response = system.pay(client, account, email, amount)
    assert response.status_code == 201, response.text
    return str(response.json()["hash"])


def read(client: httpx.Client, account: Account, path: str, **parameters: Any) -> Any:
    response = client.get(path, params=parameters, headers=account.headers)
    assert response.status_code == 200, response.text
    return response.json()


def rows_of(client: httpx.Client, account: Account, path: str, **parameters: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read(client, account, path, limit=100, **parameters)["data"]
    return rows


def everything(client: httpx.Client, account: Account) -> list[Any]:
    """Return all that a business can read of itself."""
    paths = ("/balance", "/payout/users?limit=100", "/payout/transactions?limit=100")
    exports = [client.get(path, headers=account.headers | CSV).text for path in paths[1:]]
    return [*(client.get(path, headers=account.headers).json() for path in paths), *exports]


def balance_of(client: httpx.Client, account: Account) -> int:
    return int(read(client, account, "/balance")["payout_balance"])


def own_user(client: httpx.Client, hash_: str) -> httpx.Response:
    return client.get("/payout/user", headers={"X-Payout-Hash": hash_})


def own_history(client: httpx.Client, hash_: str) -> list[dict[str, Any]]:
    response = client.get("/payout/history", headers={"X-Payout-Hash": hash_})
    assert response.status_code == 200, response.text
    rows: list[dict[str, Any]] = response.json()["data"]
    return rows


def test_a_twin_begins_with_play_money(system: System, client: httpx.Client) -> None:
    live = open_account(system.database, funds_cents=0)
    twin = open_twin(system, live)
    assert read(client, live, "/balance") == {"balance": 0, "payout_balance": 0}
    assert read(client, twin, "/balance") == {"balance": PLAY_MONEY_CENTS, "payout_balance": PLAY_MONEY_CENTS}
    assert rows_of(client, live, "/payout/transactions") == []
    assert [(row["type"], row["amount"]) for row in rows_of(client, twin, "/payout/transactions")] == [
        ("funding", PLAY_MONEY_CENTS)
    ]
    assert rows_of(client, twin, "/payout/users") == []


def test_paying_in_one_mode_leaves_the_other_untouched(system: System, client: httpx.Client, pair: Pair) -> None:
    one, other = pair
    pay(system, client, other)
    before = everything(client, other)
    pay(system, client, one, EMAIL, 700)
    pay(system, client, one, "new@example.com", 7)
    assert everything(client, other) == before
    assert balance_of(client, one) == one.business.payout_balance - 707
    assert {user["email"]: user["balance"] for user in rows_of(client, one, "/payout/users")} == {
        EMAIL: 700,
        "new@example.com": 7,
    }
    assert verify_books(system.database).balanced


def test_play_money_pays_nobody_live(system: System, client: httpx.Client) -> None:
    live = open_account(system.database, funds_cents=0)
    twin = open_twin(system, live)
    hash_ = pay(system, client, twin)
    refused = system.pay(client, live, EMAIL, 1)
    assert (refused.status_code, refused.json()) == (400, INSUFFICIENT)
    assert own_user(client, hash_).json()["balance"] == 1
    assert rows_of(client, live, "/payout/users") == []


def test_live_money_pays_nobody_in_test_mode(system: System, client: httpx.Client) -> None:
    live = open_account(system.database, funds_cents=2 * PLAY_MONEY_CENTS)
    twin = open_twin(system, live)
    pay(system, client, twin, EMAIL, PLAY_MONEY_CENTS)
    refused = system.pay(client, twin, EMAIL, 1)
    assert (refused.status_code, refused.json()) == (400, INSUFFICIENT)
    assert balance_of(client, live) == 2 * PLAY_MONEY_CENTS


def test_the_same_email_gets_another_hash_and_another_id(system: System, client: httpx.Client, pair: Pair) -> None:
    one, other = pair
    hashes = [pay(system, client, one, EMAIL, 5), pay(system, client, other, EMAIL, 7)]
    assert hashes[0] != hashes[1]
    assert [own_user(client, hash_).json()["balance"] for hash_ in hashes] == [5, 7]
    assert [[row["amount"] for row in own_history(client, hash_)] for hash_ in hashes] == [[5], [7]]
    ids = {rows_of(client, each, "/payout/users", email=EMAIL)[0]["id"] for each in pair}
    assert len(ids) == 2


def test_ids_of_one_mode_are_unknown_in_the_other(system: System, client: httpx.Client, pair: Pair) -> None:
    one, other = pair
    for each in pair:
        pay(system, client, each)
    users = rows_of(client, one, "/payout/users")
    transactions = rows_of(client, one, "/payout/transactions")
    before = everything(client, one)
    paths = [f"/payout/users/{row['id']}" for row in users]
    paths += [f"/payout/transactions/{row['id']}" for row in transactions]
    assert len(paths) == 3
    for path in paths:
        assert client.get(path, headers=one.headers).status_code == 200
        response = client.get(path, headers=other.headers)
        assert (response.status_code, response.json()) == (404, NOT_FOUND)
    for body in ({"status": "inactive"}, {}, {"status": "x"}):
        response = client.patch(paths[0], json=body, headers=other.headers)
        assert (response.status_code, response.json()) == (404, NOT_FOUND)
    assert everything(client, one) == before


def test_filters_and_cursors_of_one_mode_find_nothing_of_it_in_the_other(
    system: System, client: httpx.Client, pair: Pair
) -> None:
    one, other = pair
    for number in range(3):
        pay(system, client, one, f"{number}@example.com")
    pay(system, client, other, "mine@example.com")
    user = rows_of(client, one, "/payout/users", email="0@example.com")[0]["id"]
    assert rows_of(client, other, "/payout/transactions", user=user) == []
    assert rows_of(client, other, "/payout/users", email="0@example.com") == []
    emails = {"mine@example.com", None}
    for path in ("/payout/users", "/payout/transactions"):
        cursor = read(client, one, path, limit=1)["next_cursor"]
        assert {row["email"] for row in rows_of(client, other, path, cursor=cursor)} <= emails
        assert {row["email"] for row in rows_of(client, other, path)} <= emails
        assert "0@example.com" not in client.get(path, headers=other.headers | CSV).text


def test_idempotency_keys_do_not_collide_across_modes(system: System, client: httpx.Client, pair: Pair) -> None:
    one, other = pair

    def create(account: Account, amount: int) -> httpx.Response:
        headers = account.headers | {"Idempotency-Key": "order-17"}
        return client.post("/payout/create", json={"email": EMAIL, "amount": amount}, headers=headers)

    first, second, third = create(one, 5), create(other, 5), create(other, 6)
    assert (first.status_code, second.status_code, third.status_code) == (201, 201, 422)
    assert first.json() != second.json()
    assert "idempotent-replayed" not in second.headers
    for account, answer in ((one, first), (other, second)):
        replay = create(account, 5)
        assert (replay.status_code, replay.json()) == (201, answer.json())
        assert replay.headers["idempotent-replayed"] == "true"
        assert balance_of(client, account) == account.business.payout_balance - 5
        keys = [row["idempotency_key"] for row in rows_of(client, account, "/payout/transactions", type="allocation")]
        assert keys == ["order-17"]


def test_a_reversal_in_one_mode_frees_no_key_in_the_other(system: System, client: httpx.Client, pair: Pair) -> None:
    one, other = pair
    kept, undone = (allocation_of(each, EMAIL, 5, idempotency_key="once") for each in (other, one))
    allocate(system.database, kept, undone)
    before = everything(client, other)
    assert withdraw(system.database, undone)
    assert everything(client, other) == before
    assert balance_of(client, one) == one.business.payout_balance


def test_a_user_deactivated_in_one_mode_is_active_in_the_other(
    system: System, client: httpx.Client, pair: Pair
) -> None:
    one, other = pair
    hashes = [pay(system, client, each) for each in pair]
    user = rows_of(client, one, "/payout/users")[0]["id"]
    assert client.patch(f"/payout/users/{user}", json={"status": "inactive"}, headers=one.headers).status_code == 200
    assert [own_user(client, hash_).status_code for hash_ in hashes] == [401, 200]
    assert [user["status"] for user in rows_of(client, other, "/payout/users")] == ["active"]


@pytest.mark.parametrize("write", [str.upper, lambda hash_: hash_[::-1], lambda hash_: f"test_{hash_}"])
def test_no_spelling_of_a_hash_reaches_the_other_mode(
    system: System, client: httpx.Client, pair: Pair, write: Callable[[str], str]
) -> None:
    one, other = pair
    hash_ = pay(system, client, one)
    pay(system, client, other)
    response = own_user(client, write(hash_))
    assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
    # A key of the other mode beside it does not change whose hash it is.
    headers = other.headers | {"X-Payout-Hash": hash_}
    mine = rows_of(client, one, "/payout/transactions", type="allocation")[0]["id"]
    for sent in (headers, headers | {"Authorization": one.headers["Authorization"]}):
        assert [row["id"] for row in client.get("/payout/history", headers=sent).json()["data"]] == [mine]


def test_disabling_live_payouts_leaves_test_mode_on(system: System, client: httpx.Client, account: Account) -> None:
    twin = open_twin(system, account)
    with system.database.transaction() as connection:
        set_payouts_enabled(connection, account.business.id, enabled=False)
    refused = system.pay(client, account, EMAIL, 1)
    assert (refused.status_code, refused.json()) == (403, DISABLED)
    pay(system, client, twin)
    assert balance_of(client, account) == LIVE_MONEY_CENTS


def test_disabling_test_payouts_leaves_live_mode_on(system: System, client: httpx.Client, account: Account) -> None:
    twin = open_twin(system, account)
    with system.database.transaction() as connection:
        set_payouts_enabled(connection, twin.business.id, enabled=False)
    refused = system.pay(client, twin, EMAIL, 1)
    assert (refused.status_code, refused.json()) == (403, DISABLED)
    pay(system, client, account)
    assert balance_of(client, twin) == PLAY_MONEY_CENTS


@pytest.mark.parametrize("path", ["/balance", "/payout/users", "/payout/transactions"])
def test_a_key_under_the_other_modes_prefix_is_unknown(client: httpx.Client, pair: Pair, path: str) -> None:
    for account in pair:
        _, mode, random = account.secret_key.split("_")
        key = f"sk_{'test' if mode == 'live' else 'live'}_{random}"
        for headers in ({"Authorization": f"Bearer {key}"}, {"Authorization": f"Bearer sk_{mode}_{random[::-1]}"}):
            response = client.get(path, headers=headers)
            assert (response.status_code, response.json()) == (401, UNAUTHORIZED)


def test_revoking_a_key_of_one_mode_leaves_the_other(system: System, client: httpx.Client, pair: Pair) -> None:
    one, other = pair
    for account in pair:
        pay(system, client, account)
    with system.database.transaction() as connection:
        api_keys.revoke_api_key(connection, one.api_key_id)
    assert system.pay(client, one, EMAIL, 1).status_code == 401
    for path in ("/balance", "/payout/users", "/payout/transactions"):
        assert client.get(path, headers=one.headers).status_code == 401
        assert client.get(path, headers=other.headers).status_code == 200
    pay(system, client, other)


def test_nothing_in_a_call_picks_another_mode_than_the_key(system: System, client: httpx.Client, pair: Pair) -> None:
    one, other = pair
    before = everything(client, other)
    wanted: dict[str, str | bool] = {
        "mode": other.business.mode,
        "business_id": str(other.business.id),
        "twin": True,
        "test": True,
    }
    headers = one.headers | {"X-Mode": other.business.mode, "X-Business-Id": str(other.business.id)}
    body = {"email": EMAIL, "amount": 1} | wanted
    assert client.post("/payout/create", params=wanted, json=body, headers=headers).status_code == 201
    for path in ("/balance", "/payout/users", "/payout/transactions"):
        assert client.get(path, headers=headers).json() == read(client, one, path)
    assert client.get("/balance", params=wanted, headers=headers).json() == read(client, one, "/balance")
    for path in ("/payout/users", "/payout/transactions"):
        refused = client.get(path, params=wanted, headers=headers)
        assert (refused.status_code, refused.json()) == (
            400,
            {name: [f"The {name} parameter is not known."] for name in wanted},
        )
    assert everything(client, other) == before


def test_with_two_keys_at_once_one_mode_is_meant_for_good(system: System, client: httpx.Client, pair: Pair) -> None:
    """Which of two headers counts is not ours to say; that no call mixes them, is."""
    one, other = pair
    headers = [("Authorization", one.headers["Authorization"]), ("Authorization", other.headers["Authorization"])]
    before = {each.business.id: everything(client, each) for each in pair}
    response = client.post("/payout/create", json={"email": EMAIL, "amount": 9}, headers=headers)
    changed = [each for each in pair if everything(client, each) != before[each.business.id]]
    if response.status_code == 201:
        (paid,) = changed
        assert balance_of(client, paid) == paid.business.payout_balance - 9
        assert [user["email"] for user in rows_of(client, paid, "/payout/users")] == [EMAIL]
    else:
        assert (response.status_code, changed) == (401, [])


def test_a_key_of_one_mode_cannot_carry_an_allocation_of_the_other(
    system: System, client: httpx.Client, pair: Pair
) -> None:
    """Not even behind the API: the ledger asks for a key of the very business that is debited."""
    one, other = pair
    before = [everything(client, each) for each in pair]
    outcomes = allocate(
        system.database,
        make_allocation(one.business.id, other.api_key_id),
        make_allocation(other.business.id, one.api_key_id),
        make_allocation(one.business.id, new_id()),
    )
    assert {str(outcome) for outcome in outcomes} == {"unauthorized"}
    assert [everything(client, each) for each in pair] == before


def test_both_modes_at_once_each_pay_their_own(system: System, account: Account) -> None:
    twin = open_twin(system, account)
    calls = [(each, f"{number % 5}@example.com", 1 + number % 3) for number in range(60) for each in (account, twin)]
    with system.client() as client, ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(lambda call: system.pay(client, *call), calls))
        assert {response.status_code for response in responses} == {201}
        for each, start in ((account, LIVE_MONEY_CENTS), (twin, PLAY_MONEY_CENTS)):
            assert balance_of(client, each) == start - sum(amount for payer, _, amount in calls if payer is each)
            rows = rows_of(client, each, "/payout/transactions", type="allocation")
            assert len(rows) == 60
            assert len(rows_of(client, each, "/payout/users")) == 5
    hashes = {
        each.business.id: {
            response.json()["hash"] for response, call in zip(responses, calls, strict=True) if call[0] is each
        }
        for each in (account, twin)
    }
    assert [len(found) for found in hashes.values()] == [5, 5]
    assert not set.intersection(*hashes.values())
    assert verify_books(system.database).balanced
