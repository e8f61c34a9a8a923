"""Payout users seen by themselves: where the hash may stand, who gets in, and what they see."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.resources.query_parameters import users_cursor
from core.database.connection import Database
from core.ids import IdKind, format_id
from core.parties import payout_users
from core.parties.businesses import set_payouts_enabled
from core.parties.payout_users import UserStatus
from tests.core.builders import allocate, allocation_of, withdraw
from tests.servers import Account, System, open_account

UNAUTHORIZED = {"error": "Unauthorized"}
NOT_AN_OBJECT = {"error": "The request body must be a JSON object."}
EMAIL = "user@example.com"
HEADER = "X-Payout-Hash"
UNKNOWN_HASH = "0123456789abcdef" * 4
PATHS = ["/payout/user", "/payout/history"]
USER_FIELDS = {"email", "balance", "currency", "status", "created_at", "updated_at"}
ROW_FIELDS = {"id", "type", "amount", "currency", "balance_after", "reverses", "created_at"}


def pay(system: System, client: httpx.Client, account: Account, email: str = EMAIL, amount: int = 1) -> str:
    response = system.pay(client, account, email, amount)
    assert response.status_code == 201
    return str(response.json()["hash"])


def set_status(database: Database, account: Account, status: UserStatus, email: str = EMAIL) -> None:
    with database.transaction() as connection:
        user = payout_users.find_payout_user(connection, account.business.id, email)
        payout_users.set_status(connection, account.business.id, user.id, status)


def read_user(client: httpx.Client, hash_: str) -> dict[str, Any]:
    response = client.get("/payout/user", headers={HEADER: hash_})
    assert response.status_code == 200, response.text
    user: dict[str, Any] = response.json()
    return user


def read_history(client: httpx.Client, hash_: str, **parameters: Any) -> dict[str, Any]:
    response = client.get("/payout/history", params=parameters, headers={HEADER: hash_})
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


def walk(client: httpx.Client, hash_: str, limit: int) -> Iterator[dict[str, Any]]:
    """Give all rows, page after page, asked for in the bodies of POST."""
    body: dict[str, Any] = {"payout_hash": hash_, "limit": limit}
    while True:
        response = client.post("/payout/history", json=body)
        assert response.status_code == 200, response.text
        page = response.json()
        assert page.keys() == {"data", "has_more", "next_cursor"}
        assert len(page["data"]) == limit or not page["has_more"]
        yield from page["data"]
        if not page["has_more"]:
            assert page["next_cursor"] is None
            return
        body["cursor"] = page["next_cursor"]


def shape_of(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """Return all that a caller can tell responses apart by, save for the time and the request's id."""
    headers = {name: value for name, value in response.headers.items() if name not in {"x-request-id", "date"}}
    return response.status_code, response.content, headers


# What they see


def test_a_user_sees_balance_and_status(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account, "User@Example.com", 250)
    response = client.get("/payout/user", headers={HEADER: hash_})
    user = response.json()
    assert user == {
        "email": EMAIL,
        "balance": 250,
        "currency": "USD",
        "status": "active",
        "created_at": user["created_at"],
        "updated_at": user["created_at"],
    }
    assert user["created_at"].endswith("Z")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-request-id"]


def test_a_user_sees_the_same_as_the_business(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    pay(system, client, account, EMAIL, 41)
    (user,) = client.get("/payout/users", headers=account.headers).json()["data"]
    assert read_user(client, hash_) == {name: user[name] for name in USER_FIELDS}
    rows = client.get("/payout/transactions", params={"type": "allocation"}, headers=account.headers).json()["data"]
    own = [
        {name: row[name] for name in ROW_FIELDS - {"balance_after"}} | {"balance_after": row["user_balance_after"]}
        for row in rows
    ]
    assert read_history(client, hash_) == {"data": own, "has_more": False, "next_cursor": None}


def test_a_user_sees_nothing_of_the_business_or_of_others(
    system: System, client: httpx.Client, account: Account
) -> None:
    hash_ = pay(system, client, account)
    other_hash = pay(system, client, account, "other@example.com")
    elsewhere = open_account(system.database)
    elsewhere_hash = pay(system, client, elsewhere, EMAIL, 7)
    keyed = allocation_of(account, EMAIL, 30, idempotency_key="secret-order-17")
    undone = allocation_of(account, EMAIL, 500, idempotency_key="secret-order-18")
    allocate(system.database, keyed)
    allocate(system.database, undone)
    withdraw(system.database, undone)
    response = client.get("/payout/history", headers={HEADER: hash_})
    rows = response.json()["data"]
    assert [(row["type"], row["amount"], row["balance_after"]) for row in rows] == [
        ("reversal", 500, 31),
        ("allocation", 500, 531),
        ("allocation", 30, 31),
        ("allocation", 1, 1),
    ]
    assert [row["reverses"] for row in rows] == [rows[1]["id"], None, None, None]
    assert rows[1]["id"] == format_id(IdKind.TRANSACTION, undone.id)
    assert all(row.keys() == ROW_FIELDS for row in rows)
    for hidden in ("secret-order", "other@", "ACME", "usr_", account.business.id.hex, hash_):
        assert hidden not in response.text
    assert [row["amount"] for row in read_history(client, other_hash)["data"]] == [1]
    assert [row["amount"] for row in read_history(client, elsewhere_hash)["data"]] == [7]
    assert read_user(client, elsewhere_hash)["balance"] == 7


def test_filters_of_the_business_have_no_say_here(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    pay(system, client, account, "other@example.com")
    (other,) = client.get("/payout/users", params={"email": "other@example.com"}, headers=account.headers).json()[
        "data"
    ]
    expected = read_history(client, hash_)
    foreign = {"user": other["id"], "email": "other@example.com", "type": "funding", "from": "x", "business_id": "x"}
    refused = client.get("/payout/history", params=foreign, headers={HEADER: hash_})
    errors = {name: [f"The {name} parameter is not known."] for name in foreign}
    assert (refused.status_code, refused.json()) == (400, errors)
    response = client.post("/payout/history", json=foreign | {"payout_hash": hash_})
    assert (response.status_code, response.json()) == (200, expected)


def test_a_user_cannot_ask_for_csv(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    for path in PATHS:
        response = client.get(path, headers={HEADER: hash_, "Accept": "text/csv"})
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")


# Where the hash stands


def test_the_hash_is_taken_from_header_body_and_query(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    for path in PATHS:
        expected = client.get(path, headers={HEADER: hash_}).json()
        for method in ("GET", "POST"):
            responses = [
                client.request(method, path, headers={HEADER: hash_}),
                client.request(method, path, headers={HEADER.lower(): hash_}),
                client.request(method, path, headers={HEADER: hash_}, content=b" \n"),
                client.request(method, path, headers={HEADER: hash_}, content=b"{}"),
                client.request(method, path, json={"payout_hash": hash_}),
                client.request(method, path, params={"payout_hash": hash_}),
                client.request(method, path, params={"payout_hash": hash_}, json={}),
            ]
            for response in responses:
                assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", [UNKNOWN_HASH, "x"])
def test_the_first_place_with_a_hash_decides(
    system: System, client: httpx.Client, account: Account, path: str, wrong: str
) -> None:
    hash_ = pay(system, client, account)
    for header, body, query in (
        (wrong, hash_, hash_),
        (wrong, hash_, None),
        (wrong, None, hash_),
        (None, wrong, hash_),
    ):
        response = send(client, path, header, body, query)
        assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
    for header, body, query in (
        (hash_, wrong, wrong),
        (hash_, wrong, None),
        (hash_, None, wrong),
        (None, hash_, wrong),
    ):
        assert send(client, path, header, body, query).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("empty", ["", " ", None])
def test_an_empty_place_counts_as_absent(
    system: System, client: httpx.Client, account: Account, path: str, empty: str | None
) -> None:
    hash_ = pay(system, client, account)
    header = None if empty is None else ""  # clients trim it themselves
    for sent in ((header, hash_, empty), (header, empty, hash_), (hash_, empty, empty)):
        assert send(client, path, *sent).status_code == 200
    assert send(client, path, header, empty, empty).status_code == 401


def test_a_null_in_the_body_counts_as_absent(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    response = client.post("/payout/user", params={"payout_hash": hash_}, json={"payout_hash": None})
    assert response.status_code == 200


def send(client: httpx.Client, path: str, header: str | None, body: str | None, query: str | None) -> httpx.Response:
    return client.post(
        path,
        headers={} if header is None else {HEADER: header},
        params={} if query is None else {"payout_hash": query},
        json={} if body is None else {"payout_hash": body},
    )


def test_an_api_key_does_not_matter_here(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    for path in PATHS:
        assert client.get(path, headers=account.headers).status_code == 401
        assert client.get(path, headers=account.headers | {HEADER: account.secret_key}).status_code == 401
        assert client.get(path, headers={"Authorization": f"Bearer {hash_}"}).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer x", HEADER: hash_}).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_other_methods_answer_405_with_allow(client: httpx.Client, method: str) -> None:
    for path in PATHS:
        response = client.request(method, path)
        assert (response.status_code, response.json()) == (405, {"error": "Method not allowed"})
        assert {"GET", "POST"} <= set(response.headers["allow"].replace(" ", "").split(","))


# Who does not get in


@pytest.mark.parametrize("path", PATHS)
def test_whoever_does_not_get_in_is_answered_alike(
    system: System, client: httpx.Client, account: Account, path: str
) -> None:
    hash_ = pay(system, client, account)
    inactive = pay(system, client, account, "inactive@example.com")
    set_status(system.database, account, UserStatus.INACTIVE, "inactive@example.com")
    hashes = [
        UNKNOWN_HASH,
        inactive,
        hash_.upper(),
        hash_[:-1],
        hash_ + "0",
        hash_[1:] + "0" if hash_[0] != "0" else hash_[1:] + "1",
        "0x" + hash_[2:],
        "g" * 64,
        "0" * 64,
        "x",
        f'"{hash_}"',
        f"{hash_},{hash_}",
        "' OR 1=1 --",
        "0" * 5_000,
    ]
    bodies: list[Any] = [
        *hashes,
        f" {hash_}",
        f"{hash_}\n",
        f"{hash_}\0",
        "\u0660" * 64,
        "\ud800",
        0,
        1e300,
        True,
        False,
        [],
        [hash_],
        {"payout_hash": hash_},
    ]
    shapes = [
        *(shape_of(client.request(method, path)) for method in ("GET", "POST")),
        *(shape_of(client.get(path, headers={HEADER: each})) for each in hashes),
        shape_of(client.get(path, headers={HEADER.encode(): b"\xff" * 64})),
        *(shape_of(client.get(path, params={"payout_hash": each})) for each in hashes),
        *(shape_of(client.post(path, content=json.dumps({"payout_hash": each}))) for each in bodies),
        *(shape_of(client.post(path, json={"limit": 0, "cursor": 0, "payout_hash": each})) for each in hashes),
        shape_of(client.get(path, params={"limit": "x", "cursor": "x"})),
        shape_of(client.get(path, params={"payout_hash": f"{hash_}\n"})),
        shape_of(client.get(f"{path}?payout_hash=%ff")),
    ]
    assert shapes == [shapes[0]] * len(shapes)
    status_code, content, headers = shapes[0]
    assert (status_code, content) == (401, b'{"error":"Unauthorized"}')
    assert headers["content-type"] == "application/json"
    assert client.get(path, headers={HEADER: hash_}).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body", [b"[]", b"null", b'"x"', b"1", b"{", b"payout_hash=x", b'{"a": "\xff"}', b"[" * 10_000]
)
def test_a_body_that_is_no_object_is_told_only_to_those_who_get_in(
    system: System, client: httpx.Client, account: Account, path: str, body: bytes
) -> None:
    hash_ = pay(system, client, account)
    for headers, params in (({HEADER: hash_}, {}), ({}, {"payout_hash": hash_})):
        response = client.post(path, content=body, headers=headers, params=params)
        assert (response.status_code, response.json()) == (400, NOT_AN_OBJECT)
    nobody = shape_of(client.get(path))
    assert shape_of(client.post(path, content=body)) == nobody
    assert shape_of(client.post(path, content=body, headers={HEADER: UNKNOWN_HASH})) == nobody
    set_status(system.database, account, UserStatus.INACTIVE)
    assert shape_of(client.post(path, content=body, headers={HEADER: hash_})) == nobody


def test_a_deactivated_user_is_out_at_once_and_in_again_when_activated(
    system: System, client: httpx.Client, account: Account
) -> None:
    hash_ = pay(system, client, account)
    before = read_user(client, hash_)
    id_ = client.get("/payout/users", headers=account.headers).json()["data"][0]["id"]
    for _ in range(2):
        client.patch(f"/payout/users/{id_}", json={"status": "inactive"}, headers=account.headers)
        for path in PATHS:
            response = client.get(path, headers={HEADER: hash_})
            assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
        client.patch(f"/payout/users/{id_}", json={"status": "active"}, headers=account.headers)
        user = read_user(client, hash_)
        assert user == before | {"updated_at": user["updated_at"]}
        assert len(read_history(client, hash_)["data"]) == 1


def test_money_for_an_inactive_user_waits(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    set_status(system.database, account, UserStatus.INACTIVE)
    assert pay(system, client, account, EMAIL, 299) == hash_
    assert client.get("/payout/user", headers={HEADER: hash_}).status_code == 401
    assert client.get("/balance", headers=account.headers).json()["payout_balance"] == 1_000_000 - 300
    (user,) = client.get("/payout/users", headers=account.headers).json()["data"]
    assert (user["balance"], user["status"]) == (300, "inactive")
    set_status(system.database, account, UserStatus.ACTIVE)
    assert read_user(client, hash_)["balance"] == 300
    assert [row["amount"] for row in read_history(client, hash_)["data"]] == [299, 1]


def test_a_user_whose_business_disabled_payouts_still_gets_in(
    system: System, client: httpx.Client, account: Account
) -> None:
    hash_ = pay(system, client, account)
    with system.database.transaction() as connection:
        set_payouts_enabled(connection, account.business.id, enabled=False)
    assert read_user(client, hash_)["balance"] == 1


# Pages


def test_the_own_history_goes_from_the_newest_to_the_oldest(
    system: System, client: httpx.Client, account: Account
) -> None:
    hash_ = pay(system, client, account)
    for amount in range(2, 8):
        allocate(system.database, allocation_of(account, EMAIL, amount), allocation_of(account, "x@example.com", 50))
    for limit in (1, 3, 6, 7, 100):
        assert [row["amount"] for row in walk(client, hash_, limit)] == [7, 6, 5, 4, 3, 2, 1]


def test_a_page_has_25_rows_where_nothing_is_said(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    allocate(system.database, *(allocation_of(account, EMAIL, 1) for _ in range(25)))
    page = read_history(client, hash_)
    assert (len(page["data"]), page["has_more"]) == (25, True)
    rest = read_history(client, hash_, cursor=page["next_cursor"])
    assert (len(rest["data"]), rest["has_more"], rest["next_cursor"]) == (1, False, None)


def test_walking_while_rows_are_added_sees_each_old_one_once(
    system: System, client: httpx.Client, account: Account
) -> None:
    hash_ = pay(system, client, account)
    allocate(system.database, *(allocation_of(account, EMAIL, 1) for _ in range(8)))
    old = [row["id"] for row in read_history(client, hash_)["data"]]
    seen = []
    for row in walk(client, hash_, 2):
        seen.append(row["id"])
        allocate(system.database, allocation_of(account, EMAIL, 1), allocation_of(account, "other@example.com", 1))
    assert seen == old


def test_a_cursor_of_another_user_shows_own_rows_only(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account, EMAIL, 5)
    other = pay(system, client, account, "other@example.com", 7)
    pay(system, client, account, "other@example.com", 8)
    cursor = read_history(client, other, limit=1)["next_cursor"]
    assert [row["amount"] for row in read_history(client, hash_, cursor=cursor)["data"]] == [5]


@pytest.mark.parametrize("limit", [1, 1.0, "1"])
def test_limit_and_cursor_may_stand_in_the_body(
    system: System, client: httpx.Client, account: Account, limit: Any
) -> None:
    hash_ = pay(system, client, account, EMAIL, 5)
    pay(system, client, account, EMAIL, 7)
    page = client.post("/payout/history", json={"payout_hash": hash_, "limit": limit}).json()
    assert [row["amount"] for row in page["data"]] == [7]
    body = {"limit": limit, "cursor": page["next_cursor"]}
    rest = client.post("/payout/history", json=body, headers={HEADER: hash_}).json()
    assert [row["amount"] for row in rest["data"]] == [5]
    assert rest["has_more"] is False


def test_the_body_counts_more_than_the_query(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    pay(system, client, account)
    for query in ("limit=100", "limit=0", "limit=1&limit=2"):
        response = client.post(f"/payout/history?{query}", json={"limit": 1}, headers={HEADER: hash_})
        assert response.status_code == 200
        assert len(response.json()["data"]) == 1


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (0, "The limit must be at least 1."),
        (-1, "The limit must be at least 1."),
        (101, "The limit may not be greater than 100."),
        (10**400, "The limit may not be greater than 100."),
        (1.5, "The limit must be an integer."),
        (True, "The limit must be an integer."),
        ("", "The limit must be an integer."),
        ("x", "The limit must be an integer."),
        ([1], "The limit must be an integer."),
        ({}, "The limit must be an integer."),
    ],
)
def test_every_wrong_field_of_the_body_is_reported(
    system: System, client: httpx.Client, account: Account, limit: Any, text: str
) -> None:
    hash_ = pay(system, client, account)
    cursors: list[Any] = ["", "x", 5, True, [], {}, "\ud800", users_cursor(uuid4())]
    for cursor in cursors:
        body = json.dumps({"payout_hash": hash_, "limit": limit, "cursor": cursor})
        response = client.post("/payout/history", content=body)
        assert (response.status_code, response.json()) == (
            400,
            {"limit": [text], "cursor": ["The cursor is invalid."]},
        )


def test_a_repeated_parameter_is_refused(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    response = client.get("/payout/history?limit=1&limit=1", headers={HEADER: hash_})
    assert (response.status_code, response.json()) == (400, {"limit": ["The limit may be given only once."]})


# Secrecy


def test_no_hash_is_ever_logged(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    inactive = pay(system, client, account, "inactive@example.com")
    set_status(system.database, account, UserStatus.INACTIVE, "inactive@example.com")
    sent = (hash_, inactive, UNKNOWN_HASH, hash_.upper())
    for path in (*PATHS, "/payout/nowhere", "/balance"):
        for each in sent:
            client.get(path, headers={HEADER: each})
            client.get(path, params={"payout_hash": each, "limit": "x"})
            client.post(path, params={"payout_hash": each}, content=b"[")
            client.post(path, json={"payout_hash": each, "cursor": each})
            client.put(path, params={"payout_hash": each})
    logs = system.logs().lower()
    assert not any(each.lower() in logs for each in sent)


def test_no_answer_repeats_the_hash(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = pay(system, client, account)
    for path in PATHS:
        for response in (
            client.get(path, headers={HEADER: hash_}),
            client.get(path, params={"payout_hash": hash_, "cursor": hash_, "limit": hash_}),
            client.post(path, json={"payout_hash": hash_, "cursor": hash_, "limit": hash_}),
            client.post(path, params={"payout_hash": hash_}, content=b"["),
            client.put(path, params={"payout_hash": hash_}),
        ):
            assert hash_ not in response.text
            assert hash_ not in str(response.headers)
