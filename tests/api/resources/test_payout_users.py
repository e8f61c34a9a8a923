"""Balance and payout users, as their business sees them: read, found, activated and deactivated."""

import csv
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.resources.query_parameters import history_cursor
from core.credentials import KeyKind
from core.database.connection import Database
from core.ids import IdKind, format_id, new_id
from core.ledger.history import Position
from core.parties import api_keys
from tests.core.builders import allocate, allocation_of
from tests.servers import Account, System, open_account

UNAUTHORIZED = {"error": "Unauthorized"}
NOT_FOUND = {"error": "Not found"}
NOT_AN_OBJECT = {"error": "The request body must be a JSON object."}
STATUS_REQUIRED = {"status": ["The status field is required."]}
STATUS_INVALID = {"status": ["The selected status is invalid."]}
EMPTY_PAGE = {"data": [], "has_more": False, "next_cursor": None}
CSV = {"Accept": "text/csv"}


def make_key(database: Database, business_id: UUID, kind: KeyKind = KeyKind.SECRET) -> str:
    with database.transaction() as connection:
        return api_keys.create_api_key(connection, business_id, kind)[1]


def pay_all(system: System, account: Account, *emails: str) -> None:
    """Pay each e-mail one cent, in transactions of their own."""
    for email in emails:
        allocate(system.database, allocation_of(account, email, 1))


def read_page(client: httpx.Client, account: Account, **parameters: Any) -> dict[str, Any]:
    response = client.get("/payout/users", params=parameters, headers=account.headers)
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


def walk(client: httpx.Client, account: Account, limit: int) -> Iterator[list[dict[str, Any]]]:
    """Give page after page; the rows and links of each are checked."""
    parameters: dict[str, Any] = {"limit": limit}
    while True:
        page = read_page(client, account, **parameters)
        assert page.keys() == {"data", "has_more", "next_cursor"}
        assert page["has_more"] == (page["next_cursor"] is not None)
        assert len(page["data"]) == limit or not page["has_more"]
        yield page["data"]
        if not page["has_more"]:
            return
        parameters["cursor"] = page["next_cursor"]


def only_user(client: httpx.Client, account: Account, email: str = "user@example.com") -> dict[str, Any]:
    (user,) = read_page(client, account, email=email)["data"]
    found: dict[str, Any] = user
    return found


def set_status(client: httpx.Client, account: Account, user_id: str, body: Any) -> httpx.Response:
    return client.patch(f"/payout/users/{user_id}", json=body, headers=account.headers)


def shape_of(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """Return all that a caller can tell responses apart by, save for the time and the request's id."""
    headers = {name: value for name, value in response.headers.items() if name not in {"x-request-id", "date"}}
    return response.status_code, response.content, headers


# The balance


def test_balance_is_what_is_free_to_allocate(system: System, client: httpx.Client, account: Account) -> None:
    response = client.get("/balance", headers=account.headers)
    assert (response.status_code, response.json()) == (200, {"balance": 0, "payout_balance": 1_000_000})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-request-id"]
    assert system.pay(client, account, "user@example.com", 1_234).status_code == 201
    assert client.get("/balance", headers=account.headers).json() == {"balance": 0, "payout_balance": 998_766}


def test_balance_is_the_callers_own(system: System, client: httpx.Client, account: Account) -> None:
    other = open_account(system.database, funds_cents=5)
    assert client.get("/balance", headers=other.headers).json() == {"balance": 0, "payout_balance": 5}
    assert client.get("/balance", headers=account.headers).json() == {"balance": 0, "payout_balance": 1_000_000}


def test_balance_can_be_read_while_payouts_are_disabled(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, funds_cents=7, payouts_enabled=False)
    assert client.get("/balance", headers=account.headers).json() == {"balance": 0, "payout_balance": 7}
    assert read_page(client, account) == EMPTY_PAGE


# Who may call


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/balance"),
        ("GET", "/payout/users"),
        ("GET", "/payout/users?limit=0&email=x"),
        ("GET", "/payout/users/usr_0"),
        ("PATCH", "/payout/users/usr_0"),
    ],
)
def test_without_a_live_secret_key_the_answer_is_401(
    system: System, client: httpx.Client, account: Account, method: str, path: str
) -> None:
    public = make_key(system.database, account.business.id, KeyKind.PUBLIC)
    revoked = open_account(system.database)
    client.get("/balance", headers=revoked.headers)  # so that the key is known
    with system.database.transaction() as connection:
        api_keys.revoke_api_key(connection, revoked.api_key_id)
    keys = (public, revoked.secret_key, "sk_live_" + "A" * 40, "x")
    for headers in ({}, *({"Authorization": f"Bearer {key}"} for key in keys)):
        for accept in ("*/*", "text/csv"):
            response = client.request(method, path, headers=headers | {"Accept": accept}, content=b"[")
            assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["content-type"] == "application/json"


def test_a_payout_hash_is_no_api_key(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = system.pay(client, account, "user@example.com", 1).json()["hash"]
    headers = {"Authorization": f"Bearer {hash_}", "X-Payout-Hash": hash_}
    for path in ("/balance", "/payout/users"):
        response = client.get(path, params={"payout_hash": hash_}, headers=headers)
        assert (response.status_code, response.json()) == (401, UNAUTHORIZED)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/balance", {"GET"}),
        ("DELETE", "/payout/users", {"GET"}),
        ("DELETE", "/payout/users/usr_0", {"GET", "PATCH"}),
        ("PUT", "/payout/users/usr_0", {"GET", "PATCH"}),
    ],
)
def test_other_methods_answer_405_with_allow(
    client: httpx.Client, account: Account, method: str, path: str, allowed: set[str]
) -> None:
    response = client.request(method, path, headers=account.headers)
    assert (response.status_code, response.json()) == (405, {"error": "Method not allowed"})
    assert allowed <= set(response.headers["allow"].replace(" ", "").split(","))


# The list


def test_a_user_shows_what_the_business_may_know(system: System, client: httpx.Client, account: Account) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    hash_ = system.pay(client, account, "User@Example.com", 250).json()["hash"]
    response = client.get("/payout/users", headers=account.headers)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert hash_ not in response.text
    page = response.json()
    (user,) = page["data"]
    assert page == {"data": [user], "has_more": False, "next_cursor": None}
    assert user["id"].startswith("usr_")
    assert len(bytes.fromhex(user["id"].removeprefix("usr_"))) == 16
    assert user == {
        "id": user["id"],
        "email": "user@example.com",
        "balance": 250,
        "currency": "USD",
        "status": "active",
        "created_at": user["created_at"],
        "updated_at": user["created_at"],
    }
    assert user["created_at"].endswith("Z")
    assert datetime.fromisoformat(user["created_at"]) >= before


def test_another_allocation_updates_the_user(system: System, client: httpx.Client, account: Account) -> None:
    pay_all(system, account, "user@example.com")
    first = only_user(client, account)
    allocate(system.database, allocation_of(account, "user@example.com", 41))
    second = only_user(client, account)
    assert second == first | {"balance": 42, "updated_at": second["updated_at"]}
    assert datetime.fromisoformat(second["updated_at"]) > datetime.fromisoformat(second["created_at"])


def test_a_business_without_users_has_an_empty_page(client: httpx.Client, account: Account) -> None:
    assert read_page(client, account) == EMPTY_PAGE
    assert list(walk(client, account, 1)) == [[]]


def test_users_of_another_business_are_not_listed(system: System, client: httpx.Client, account: Account) -> None:
    other = open_account(system.database)
    pay_all(system, other, "user@example.com", "other@example.com")
    assert read_page(client, account) == EMPTY_PAGE
    assert read_page(client, account, email="user@example.com") == EMPTY_PAGE
    pay_all(system, account, "user@example.com")
    assert [user["balance"] for user in read_page(client, account)["data"]] == [1]


@pytest.mark.parametrize(
    "email",
    ["user@bücher.example", " USER@BÜCHER.EXAMPLE ", "User@xn--bcher-kva.example", "user@XN--BCHER-KVA.Example"],
)
def test_a_user_is_found_by_email_in_any_spelling(
    system: System, client: httpx.Client, account: Account, email: str
) -> None:
    pay_all(system, account, "another@example.com", "user@xn--bcher-kva.example", "user@example.com")
    page = read_page(client, account, email=email)
    assert [user["email"] for user in page["data"]] == ["user@xn--bcher-kva.example"]
    assert (page["has_more"], page["next_cursor"]) == (False, None)


def test_a_composed_and_a_decomposed_letter_find_the_same_user(
    system: System, client: httpx.Client, account: Account
) -> None:
    assert system.pay(client, account, "use\u0301r@example.com", 1).status_code == 201
    found = [only_user(client, account, email) for email in ("use\u0301r@example.com", "US\u00c9R@example.com")]
    assert found[0] == found[1]


@pytest.mark.parametrize("email", ["nobody@example.com", "us_r@example.com", "%@example.com", "user@example.co"])
def test_an_email_that_nobody_has_finds_an_empty_page(
    system: System, client: httpx.Client, account: Account, email: str
) -> None:
    pay_all(system, account, "user@example.com")
    assert read_page(client, account, email=email) == EMPTY_PAGE


def test_an_email_behind_the_cursor_is_not_found_again(system: System, client: httpx.Client, account: Account) -> None:
    pay_all(system, account, "old@example.com", "user@example.com", "new@example.com")
    cursor = read_page(client, account, limit=2)["next_cursor"]
    assert read_page(client, account, limit=2, cursor=cursor, email="user@example.com") == EMPTY_PAGE


def test_pages_go_from_the_newest_to_the_oldest(system: System, client: httpx.Client, account: Account) -> None:
    emails = [f"{number}@example.com" for number in range(7)]
    pay_all(system, account, *emails)
    for limit in (1, 3, 6, 7, 100):
        pages = list(walk(client, account, limit))
        assert [user["email"] for page in pages for user in page] == emails[::-1]
        assert len(pages) == -(-7 // limit)


def test_a_page_has_25_users_where_nothing_is_said(system: System, client: httpx.Client, account: Account) -> None:
    allocate(system.database, *(allocation_of(account, f"{number}@example.com", 1) for number in range(26)))
    page = read_page(client, account)
    assert (len(page["data"]), page["has_more"]) == (25, True)
    rest = read_page(client, account, cursor=page["next_cursor"])
    assert (len(rest["data"]), rest["has_more"], rest["next_cursor"]) == (1, False, None)


def test_users_of_one_transaction_are_each_listed_once(system: System, client: httpx.Client, account: Account) -> None:
    emails = {f"{number}@example.com" for number in range(300)}
    allocate(system.database, *(allocation_of(account, email, 1) for email in emails))
    listed = [user["email"] for page in walk(client, account, 100) for user in page]
    assert len(listed) == 300
    assert set(listed) == emails


def test_walking_among_new_users_sees_each_old_one_once(system: System, client: httpx.Client, account: Account) -> None:
    old = [f"old{number}@example.com" for number in range(9)]
    pay_all(system, account, *old)
    seen = []
    for number, page in enumerate(walk(client, account, 2)):
        seen += [user["email"] for user in page]
        # The old ones are credited, too: that moves none of them.
        pay_all(system, account, f"new{number}@example.com", *old)
    assert seen == old[::-1]


def test_walking_during_a_rush_sees_each_old_user_once(system: System, account: Account) -> None:
    old = [f"old{number}@example.com" for number in range(12)]
    pay_all(system, account, *old)
    done = Event()

    def pay_on(thread: int) -> None:
        with system.client() as client:
            for number in range(1_000):
                if done.is_set():
                    return
                assert system.pay(client, account, f"new{thread}.{number}@example.com", 1).status_code == 201

    with system.client() as client, ThreadPoolExecutor(3) as threads:
        payers = [threads.submit(pay_on, thread) for thread in range(3)]
        try:
            walks = [[user["email"] for page in walk(client, account, 5) for user in page] for _ in range(5)]
        finally:
            done.set()
    assert [payer.result() for payer in payers] == [None] * 3
    for seen in walks:
        assert len(set(seen)) == len(seen)
        assert [email for email in seen if email.startswith("old")] == old[::-1]


def test_a_cursor_of_another_business_shows_none_of_its_users(
    system: System, client: httpx.Client, account: Account
) -> None:
    pay_all(system, account, "mine@example.com")
    other = open_account(system.database)
    pay_all(system, other, "theirs@example.com", "theirs2@example.com")
    cursor = read_page(client, other, limit=1)["next_cursor"]
    page = read_page(client, account, cursor=cursor)
    assert [user["email"] for user in page["data"]] == ["mine@example.com"]


def test_every_wrong_parameter_is_reported(client: httpx.Client, account: Account) -> None:
    wrong = {
        "limit": ["The limit may not be greater than 100."],
        "cursor": ["The cursor is invalid."],
        "email": ["The email must be a valid email address."],
        "unknown": ["The unknown parameter is not known."],
    }
    for accept in ("application/json", "text/csv"):
        response = client.get(
            "/payout/users",
            params={"limit": 101, "cursor": "x", "email": "nobody", "unknown": "x"},
            headers=account.headers | {"Accept": accept},
        )
        assert (response.status_code, response.json()) == (400, wrong)
        assert response.headers["content-type"] == "application/json"


def test_a_cursor_of_the_history_is_refused(client: httpx.Client, account: Account) -> None:
    cursor = history_cursor(Position(datetime.now(UTC), uuid4()))
    response = client.get("/payout/users", params={"cursor": cursor}, headers=account.headers)
    assert (response.status_code, response.json()) == (400, {"cursor": ["The cursor is invalid."]})


@pytest.mark.parametrize("query", ["limit=1&limit=1", "email=a@b.example&email=c@d.example", "cursor=&cursor="])
def test_a_repeated_parameter_is_refused(client: httpx.Client, account: Account, query: str) -> None:
    name = query.partition("=")[0]
    response = client.get(f"/payout/users?{query}", headers=account.headers)
    assert (response.status_code, response.json()) == (400, {name: [f"The {name} may be given only once."]})


@pytest.mark.parametrize("query", ["email=%00@example.com", "email=%", "email=a%0ab@example.com", "email=%ff%fe"])
def test_bytes_that_are_no_text_are_no_email(client: httpx.Client, account: Account, query: str) -> None:
    response = client.get(f"/payout/users?{query}", headers=account.headers)
    assert (response.status_code, response.json()) == (400, {"email": ["The email must be a valid email address."]})


# One user


def test_one_user_is_shown_as_in_the_list(system: System, client: httpx.Client, account: Account) -> None:
    pay_all(system, account, "user@example.com")
    user = only_user(client, account)
    response = client.get(f"/payout/users/{user['id']}", headers=account.headers)
    assert (response.status_code, response.json()) == (200, user)
    assert response.headers["cache-control"] == "no-store"


def foreign_and_impossible_ids(system: System, client: httpx.Client, account: Account) -> list[str]:
    """Return ids that the account must not be able to tell apart."""
    other = open_account(system.database)
    pay_all(system, account, "user@example.com")
    pay_all(system, other, "user@example.com")
    foreign = only_user(client, other)["id"]
    digits = only_user(client, account)["id"].removeprefix("usr_")
    return [
        foreign,
        format_id(IdKind.PAYOUT_USER, new_id()),
        f"txn_{digits}",
        digits,
        f"usr_{UUID(digits)}",
        f"USR_{digits}",
        f"usr_{digits}0",
        f"usr_{digits[:-1]}",
        f"usr_{digits}%20",
        f"usr_{digits}%0A",
        f"usr_{digits[:-1]}%00",
        "usr_" + "%D9%A0" * 32,
        "usr_" + "g" * 32,
        "usr_",
        "x",
        "%ff",
        "'%20OR%201=1%20--",
        format_id(IdKind.BUSINESS, account.business.id),
    ]


def test_all_that_is_not_the_callers_user_answers_404_alike(
    system: System, client: httpx.Client, account: Account
) -> None:
    ids = foreign_and_impossible_ids(system, client, account)
    shapes = [shape_of(client.get(f"/payout/users/{id_}", headers=account.headers)) for id_ in ids]
    assert shapes == [shapes[0]] * len(ids)
    response = client.get(f"/payout/users/{ids[0]}", headers=account.headers)
    assert (response.status_code, response.json()) == (404, NOT_FOUND)


# Activating and deactivating


def test_a_user_is_deactivated_and_activated_again(system: System, client: httpx.Client, account: Account) -> None:
    pay_all(system, account, "user@example.com", "other@example.com")
    before = only_user(client, account)
    for status in ("inactive", "active"):
        response = set_status(client, account, before["id"], {"status": status})
        assert response.status_code == 200
        user = response.json()
        assert user == before | {"status": status, "updated_at": user["updated_at"]}
        assert datetime.fromisoformat(user["updated_at"]) > datetime.fromisoformat(before["updated_at"])
        assert only_user(client, account) == user
        assert only_user(client, account, "other@example.com")["status"] == "active"


def test_a_status_that_a_user_has_already_changes_nothing(
    system: System, client: httpx.Client, account: Account
) -> None:
    pay_all(system, account, "user@example.com")
    user = only_user(client, account)
    assert set_status(client, account, user["id"], {"status": "active"}).json() == user
    inactive = set_status(client, account, user["id"], {"status": "inactive"}).json()
    again = set_status(client, account, user["id"], {"status": "inactive"})
    assert (again.status_code, again.json()) == (200, inactive)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"{}", STATUS_REQUIRED),
        (b'{"Status": "inactive"}', STATUS_REQUIRED),
        (b'{"status": null}', STATUS_REQUIRED),
        (b'{"status": ""}', STATUS_REQUIRED),
        (b'{"status": " "}', STATUS_REQUIRED),
        (b'{"status": "deleted"}', STATUS_INVALID),
        (b'{"status": "INACTIVE"}', STATUS_INVALID),
        (b'{"status": " inactive"}', STATUS_INVALID),
        (b'{"status": "inactive\\u0000"}', STATUS_INVALID),
        (b'{"status": "\\ud800"}', STATUS_INVALID),
        (b'{"status": 0}', STATUS_INVALID),
        (b'{"status": 1e999999999}', STATUS_INVALID),
        (b'{"status": false}', STATUS_INVALID),
        (b'{"status": []}', STATUS_INVALID),
        (b'{"status": ["inactive"]}', STATUS_INVALID),
        (b'{"status": {"status": "inactive"}}', STATUS_INVALID),
        (b"", NOT_AN_OBJECT),
        (b"null", NOT_AN_OBJECT),
        (b'"inactive"', NOT_AN_OBJECT),
        (b'[{"status": "inactive"}]', NOT_AN_OBJECT),
        (b'{"status": "inactive"', NOT_AN_OBJECT),
        (b'{"status": "inactive"}}', NOT_AN_OBJECT),
        (b"{'status': 'inactive'}", NOT_AN_OBJECT),
        (b"status=inactive", NOT_AN_OBJECT),
        (b'{"status": "inactive\xff"}', NOT_AN_OBJECT),
        (b'{"status": NaN}', NOT_AN_OBJECT),
        (b'{"status": ' + b"[" * 10_000, NOT_AN_OBJECT),
    ],
)
def test_a_wrong_body_changes_nothing(
    system: System, client: httpx.Client, account: Account, body: bytes, answer: dict[str, Any]
) -> None:
    pay_all(system, account, "user@example.com")
    user = only_user(client, account)
    response = client.patch(f"/payout/users/{user['id']}", content=body, headers=account.headers)
    assert (response.status_code, response.json()) == (400, answer)
    assert response.headers["content-type"] == "application/json"
    assert only_user(client, account) == user


def test_fields_other_than_the_status_are_ignored(system: System, client: httpx.Client, account: Account) -> None:
    pay_all(system, account, "user@example.com")
    user = only_user(client, account)
    body = {"status": "inactive", "balance": 999, "email": "x", "id": "x", "created_at": None, "unknown": [1]}
    response = set_status(client, account, user["id"], body)
    assert response.json() == user | {"status": "inactive", "updated_at": response.json()["updated_at"]}
    assert only_user(client, account) == response.json()


def test_the_content_type_of_a_body_does_not_matter(system: System, client: httpx.Client, account: Account) -> None:
    pay_all(system, account, "user@example.com")
    user = only_user(client, account)
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"):
        for status in ("inactive", "active"):
            response = client.patch(
                f"/payout/users/{user['id']}",
                content=f'{{"status": "{status}"}}',
                headers=account.headers | {"Content-Type": content_type},
            )
            assert (response.status_code, response.json()["status"]) == (200, status)


@pytest.mark.parametrize("body", [b'{"status": "inactive"}', b'{"status": "x"}', b"{}", b"["])
def test_changing_what_is_not_the_callers_user_answers_404_alike(
    system: System, client: httpx.Client, account: Account, body: bytes
) -> None:
    other = open_account(system.database)
    pay_all(system, other, "user@example.com")
    before = only_user(client, other)
    ids = [before["id"], *foreign_and_impossible_ids(system, client, account)]
    shapes = [shape_of(client.patch(f"/payout/users/{id_}", content=body, headers=account.headers)) for id_ in ids]
    assert shapes == [shapes[0]] * len(ids)
    assert shapes[0][0] == 404
    assert only_user(client, other) == before
    assert only_user(client, account)["status"] == "active"


def test_a_revoked_key_changes_nothing(system: System, client: httpx.Client, account: Account) -> None:
    pay_all(system, account, "user@example.com")
    user = only_user(client, account)
    with system.database.transaction() as connection:
        api_keys.revoke_api_key(connection, account.api_key_id)
    response = set_status(client, account, user["id"], {"status": "inactive"})
    assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
    headers = {"Authorization": f"Bearer {make_key(system.database, account.business.id)}"}
    assert client.get(f"/payout/users/{user['id']}", headers=headers).json() == user


# CSV


def read_csv(client: httpx.Client, account: Account, **parameters: Any) -> list[dict[str, str]]:
    response = client.get("/payout/users", params=parameters, headers=account.headers | CSV)
    assert response.status_code == 200
    return list(csv.DictReader(io.StringIO(response.text, newline="")))


def test_users_come_as_csv_with_dollars_beside_cents(system: System, client: httpx.Client, account: Account) -> None:
    allocate(system.database, allocation_of(account, "rich@example.com", 123_405))
    allocate(system.database, allocation_of(account, "poor@example.com", 7))
    poor, rich = read_page(client, account)["data"]
    assert set_status(client, account, poor["id"], {"status": "inactive"}).status_code == 200
    poor = only_user(client, account, "poor@example.com")
    response = client.get("/payout/users", headers=account.headers | CSV)
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="payout-users.csv"'
    assert response.text.split("\r\n") == [
        "id,email,balance_cents,balance_dollars,currency,status,created_at,updated_at",
        f"{poor['id']},poor@example.com,7,0.07,USD,inactive,{poor['created_at']},{poor['updated_at']}",
        f"{rich['id']},rich@example.com,123405,1234.05,USD,active,{rich['created_at']},{rich['updated_at']}",
        "",
    ]


def test_csv_without_users_is_its_head(client: httpx.Client, account: Account) -> None:
    response = client.get("/payout/users", headers=account.headers | CSV)
    assert response.text == "id,email,balance_cents,balance_dollars,currency,status,created_at,updated_at\r\n"


def test_csv_is_the_whole_selection_whatever_the_limit(system: System, client: httpx.Client, account: Account) -> None:
    emails = [f"{number}@example.com" for number in range(30)]
    pay_all(system, account, *emails)
    assert [row["email"] for row in read_csv(client, account)] == emails[::-1]
    assert [row["email"] for row in read_csv(client, account, limit=1)] == emails[::-1]
    assert [row["email"] for row in read_csv(client, account, email=" 7@EXAMPLE.com")] == ["7@example.com"]
    assert read_csv(client, account, email="nobody@example.com") == []


@pytest.mark.parametrize("email", ["=cmd@example.com", "+a@example.com", "-a@example.com", "=1+1@example.com"])
def test_no_email_is_a_formula_in_csv(system: System, client: httpx.Client, account: Account, email: str) -> None:
    assert system.pay(client, account, email, 1).status_code == 201
    assert [row["email"] for row in read_csv(client, account)] == ["'" + email]
    assert only_user(client, account, email)["email"] == email


def test_other_emails_are_in_csv_as_they_are(system: System, client: httpx.Client, account: Account) -> None:
    emails = ["a=b@example.com", "o'neil@example.com", "'a@example.com", "a+b@example.com", "usér@example.com"]
    pay_all(system, account, *emails)
    assert [row["email"] for row in read_csv(client, account)] == emails[::-1]
