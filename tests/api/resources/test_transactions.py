"""The history, as the business sees it: selected, walked through, and exported as a whole."""

import csv
import io
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from threading import Event
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.resources.query_parameters import users_cursor
from core.credentials import KeyKind
from core.ids import IdKind, format_id, new_id
from core.ledger import statements
from core.parties import api_keys
from core.parties.businesses import fund_business
from tests.core.builders import HASH_SECRET, allocate, allocation_of, withdraw
from tests.servers import Account, System, open_account

UNAUTHORIZED = {"error": "Unauthorized"}
NOT_FOUND = {"error": "Not found"}
EMPTY_PAGE = {"data": [], "has_more": False, "next_cursor": None}
CSV = {"Accept": "text/csv"}
PATH = "/payout/transactions"
EMAIL = "user@example.com"
COLUMNS = [
    "id",
    "type",
    "user",
    "email",
    "amount_cents",
    "amount_dollars",
    "currency",
    "payout_balance_after_cents",
    "payout_balance_after_dollars",
    "user_balance_after_cents",
    "user_balance_after_dollars",
    "idempotency_key",
    "reverses",
    "batch",
    "created_at",
    "reference",
]
LONG_ROWS = 10_000
EXPORTS_AT_ONCE = 8
IMPATIENT_S = 30


def read_page(client: httpx.Client, account: Account, **parameters: Any) -> dict[str, Any]:
    response = client.get(PATH, params=parameters, headers=account.headers)
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


def read_rows(client: httpx.Client, account: Account, **parameters: Any) -> list[dict[str, Any]]:
    """Return a selection that fits one page."""
    page = read_page(client, account, limit=100, **parameters)
    assert not page["has_more"]
    rows: list[dict[str, Any]] = page["data"]
    return rows


def walk(client: httpx.Client, account: Account, limit: int, **parameters: Any) -> Iterator[list[dict[str, Any]]]:
    """Give page after page; the rows and links of each are checked."""
    parameters["limit"] = limit
    while True:
        page = read_page(client, account, **parameters)
        assert page.keys() == {"data", "has_more", "next_cursor"}
        assert page["has_more"] == (page["next_cursor"] is not None)
        assert len(page["data"]) == limit or not page["has_more"]
        yield page["data"]
        if not page["has_more"]:
            return
        parameters["cursor"] = page["next_cursor"]


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def export(client: httpx.Client, account: Account, **parameters: Any) -> list[dict[str, str]]:
    response = client.get(PATH, params=parameters, headers=account.headers | CSV)
    assert response.status_code == 200, response.text
    return read_csv(response.text)


def transaction_id(allocation_id: Any) -> str:
    return format_id(IdKind.TRANSACTION, allocation_id)


def pay_each(system: System, account: Account, *emails: str) -> list[str]:
    """Pay each e-mail one cent, in transactions of their own; return the ids, oldest first."""
    allocations = [allocation_of(account, email, 1) for email in emails]
    for allocation in allocations:
        allocate(system.database, allocation)
    return [transaction_id(allocation.id) for allocation in allocations]


def pay_at_once(system: System, account: Account, count: int, **options: Any) -> list[str]:
    """Pay one user many times in one transaction, whose rows have one time; return the ids in the list's order."""
    allocations = [allocation_of(account, EMAIL, 1, **options) for _ in range(count)]
    allocate(system.database, *allocations)
    return sorted((transaction_id(allocation.id) for allocation in allocations), reverse=True)


def shape_of(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """Return all that a caller can tell responses apart by, save for the time and the request's id."""
    headers = {name: value for name, value in response.headers.items() if name not in {"x-request-id", "date"}}
    return response.status_code, response.content, headers


# What a row says


def test_an_allocation_is_shown_with_the_balances_after_it(
    system: System, client: httpx.Client, account: Account
) -> None:
    headers = account.headers | {"Idempotency-Key": "order-17"}
    hash_ = client.post("/payout/create", json={"email": "User@Example.com", "amount": 300}, headers=headers).json()[
        "hash"
    ]
    response = client.get(PATH, params={"type": "allocation"}, headers=account.headers)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert hash_ not in response.text
    (row,) = response.json()["data"]
    (user,) = client.get("/payout/users", headers=account.headers).json()["data"]
    assert row == {
        "id": row["id"],
        "type": "allocation",
        "user": user["id"],
        "email": EMAIL,
        "amount": 300,
        "currency": "USD",
        "payout_balance_after": 999_700,
        "user_balance_after": 300,
        "idempotency_key": "order-17",
        "reverses": None,
        "batch": None,
        "created_at": user["created_at"],
        "reference": None,
    }
    assert len(bytes.fromhex(row["id"].removeprefix("txn_"))) == 16
    assert row["created_at"].endswith("Z")


def test_a_funding_names_nobody(client: httpx.Client, account: Account) -> None:
    (row,) = read_rows(client, account)
    assert row == {
        "id": row["id"],
        "type": "funding",
        "user": None,
        "email": None,
        "amount": 1_000_000,
        "currency": "USD",
        "payout_balance_after": 1_000_000,
        "user_balance_after": None,
        "idempotency_key": None,
        "reverses": None,
        "batch": None,
        "created_at": row["created_at"],
        "reference": None,
    }


def test_a_reversal_names_what_it_undid(system: System, client: httpx.Client, account: Account) -> None:
    kept = allocation_of(account, EMAIL, 5)
    undone = allocation_of(account, EMAIL, 300, idempotency_key="order-17")
    allocate(system.database, kept)
    allocate(system.database, undone)
    assert withdraw(system.database, undone)
    reversal, allocation, _, _ = read_rows(client, account)
    assert allocation["id"] == transaction_id(undone.id)
    assert (allocation["idempotency_key"], allocation["reverses"]) == ("order-17", None)
    assert reversal == {
        "id": reversal["id"],
        "type": "reversal",
        "user": allocation["user"],
        "email": EMAIL,
        "amount": 300,
        "currency": "USD",
        "payout_balance_after": 999_995,
        "user_balance_after": 5,
        "idempotency_key": None,
        "reverses": allocation["id"],
        "batch": None,
        "created_at": reversal["created_at"],
        "reference": None,
    }
    assert client.get(f"{PATH}/{reversal['id']}", headers=account.headers).json() == reversal


def test_a_key_that_a_reversal_freed_stands_at_both_allocations(
    system: System, client: httpx.Client, account: Account
) -> None:
    first, second = (allocation_of(account, EMAIL, 300, idempotency_key="once") for _ in range(2))
    allocate(system.database, first)
    withdraw(system.database, first)
    allocate(system.database, second)
    rows = read_rows(client, account, type="allocation")
    assert [(row["id"], row["idempotency_key"]) for row in rows] == [
        (transaction_id(second.id), "once"),
        (transaction_id(first.id), "once"),
    ]


def test_a_replayed_call_adds_no_row(system: System, client: httpx.Client, account: Account) -> None:
    headers = account.headers | {"Idempotency-Key": "once"}
    body = {"email": EMAIL, "amount": 1}
    assert [client.post("/payout/create", json=body, headers=headers).status_code for _ in range(2)] == [201, 201]
    assert len(read_rows(client, account, type="allocation")) == 1


# One row


def test_one_row_is_shown_as_in_the_list(system: System, client: httpx.Client, account: Account) -> None:
    pay_each(system, account, EMAIL)
    for row in read_rows(client, account):
        for accept in ("*/*", "text/csv"):
            response = client.get(f"{PATH}/{row['id']}", headers=account.headers | {"Accept": accept})
            assert (response.status_code, response.json()) == (200, row)
            assert response.headers["cache-control"] == "no-store"


def test_all_that_is_not_the_callers_answers_404_alike(system: System, client: httpx.Client, account: Account) -> None:
    other = open_account(system.database)
    (own,) = pay_each(system, account, EMAIL)
    (foreign,) = pay_each(system, other, EMAIL)
    with system.database.transaction() as connection:
        _, test_key = api_keys.create_api_key(connection, account.business.twin_id, KeyKind.SECRET)
    twin = client.get(PATH, headers={"Authorization": f"Bearer {test_key}"}).json()["data"]
    digits = own.removeprefix("txn_")
    ids = [
        foreign,
        twin[0]["id"],
        read_rows(client, other, type="funding")[0]["id"],
        transaction_id(new_id()),
        read_rows(client, account, type="allocation")[0]["user"],
        digits,
        f"usr_{digits}",
        f"TXN_{digits}",
        f"txn_{digits}0",
        f"txn_{digits}%20",
        f"txn_{digits[:-1]}%00",
        "txn_" + "%D9%A0" * 32,
        "txn_",
        "x",
        "%ff",
    ]
    shapes = [shape_of(client.get(f"{PATH}/{id_}", headers=account.headers)) for id_ in ids]
    assert shapes == [shapes[0]] * len(ids)
    response = client.get(f"{PATH}/{foreign}", headers=account.headers)
    assert (response.status_code, response.json()) == (404, NOT_FOUND)


def test_the_history_cannot_be_written(client: httpx.Client, account: Account) -> None:
    for method, path in (("POST", PATH), ("DELETE", f"{PATH}/x"), ("PATCH", f"{PATH}/x"), ("PUT", f"{PATH}/x")):
        response = client.request(method, path, headers=account.headers)
        assert (response.status_code, response.json()) == (405, {"error": "Method not allowed"})
        assert "GET" in response.headers["allow"]


# Selections


def test_rows_are_selected_by_type(system: System, client: httpx.Client, account: Account) -> None:
    undone = allocation_of(account, EMAIL, 2)
    allocate(system.database, undone)
    pay_each(system, account, EMAIL, "other@example.com")
    withdraw(system.database, undone)
    with system.database.transaction() as connection:
        fund_business(connection, account.business.id, 77)
    every = read_rows(client, account)
    assert [row["type"] for row in every] == ["funding", "reversal", *["allocation"] * 3, "funding"]
    for type_ in ("funding", "allocation", "reversal"):
        expected = [row for row in every if row["type"] == type_]
        assert read_rows(client, account, type=type_) == expected
        assert [row for page in walk(client, account, 1, type=type_) for row in page] == expected
        assert [row["id"] for row in export(client, account, type=type_)] == [row["id"] for row in expected]


def test_rows_are_selected_by_user(system: System, client: httpx.Client, account: Account) -> None:
    undone = allocation_of(account, EMAIL, 2)
    allocate(system.database, undone)
    pay_each(system, account, "other@example.com", EMAIL)
    withdraw(system.database, undone)
    every = read_rows(client, account)
    for user in {row["user"] for row in every if row["user"]}:
        expected = [row for row in every if row["user"] == user]
        assert read_rows(client, account, user=user) == expected
        assert [row for page in walk(client, account, 1, user=user) for row in page] == expected
        assert [row["id"] for row in export(client, account, user=user)] == [row["id"] for row in expected]
        allocations = [row for row in expected if row["type"] == "allocation"]
        assert read_rows(client, account, user=user, type="allocation") == allocations
        assert read_rows(client, account, user=user, type="funding") == []


def test_a_user_of_another_business_has_no_rows_here(system: System, client: httpx.Client, account: Account) -> None:
    other = open_account(system.database)
    pay_each(system, other, EMAIL)
    foreign = read_rows(client, other, type="allocation")[0]["user"]
    nobody = format_id(IdKind.PAYOUT_USER, uuid4())
    assert read_page(client, account, user=foreign) == read_page(client, account, user=nobody) == EMPTY_PAGE


def test_from_is_included_and_to_is_not(system: System, client: httpx.Client, account: Account) -> None:
    ids = pay_each(system, account, *(f"{number}@example.com" for number in range(5)))[::-1]
    times = {row["id"]: row["created_at"] for row in read_rows(client, account, type="allocation")}
    assert list(times) == ids
    middle = times[ids[2]]

    def select(**parameters: str) -> list[str]:
        found = [row["id"] for row in read_rows(client, account, type="allocation", **parameters)]
        assert [row["id"] for row in export(client, account, type="allocation", **parameters)] == found
        return found

    assert select(**{"from": middle}) == ids[:3]
    assert select(to=middle) == ids[3:]
    assert select(**{"from": middle, "to": times[ids[0]]}) == ids[1:3]
    assert select(**{"from": middle, "to": middle}) == []
    assert select(**{"from": times[ids[0]], "to": times[ids[4]]}) == []
    assert [
        row["id"] for page in walk(client, account, 1, **{"from": times[ids[3]], "to": times[ids[0]]}) for row in page
    ] == ids[1:4]


@pytest.mark.parametrize("minutes", [0, 120, -345, 839])
@pytest.mark.parametrize("plus", ["%2B", "+", " "])
def test_a_moment_may_be_given_with_any_offset(
    system: System, client: httpx.Client, account: Account, minutes: int, plus: str
) -> None:
    (first, _, last) = pay_each(system, account, "a@example.com", "b@example.com", "c@example.com")
    created_at = client.get(f"{PATH}/{last}", headers=account.headers).json()["created_at"]
    local = datetime.fromisoformat(created_at).astimezone(timezone(timedelta(minutes=minutes)))
    text = local.isoformat().replace("+", plus)
    found = client.get(f"{PATH}?type=allocation&from={text}", headers=account.headers).json()["data"]
    assert [row["id"] for row in found] == [last]
    found = client.get(f"{PATH}?type=allocation&to={text}", headers=account.headers).json()["data"]
    assert last not in {row["id"] for row in found}
    assert first in {row["id"] for row in found}


def test_a_date_is_a_whole_day_in_utc(system: System, client: httpx.Client, account: Account) -> None:
    (id_,) = pay_each(system, account, EMAIL)
    created_at = datetime.fromisoformat(client.get(f"{PATH}/{id_}", headers=account.headers).json()["created_at"])
    day, day_before, day_after = ((created_at + timedelta(days=days)).date().isoformat() for days in (0, -1, 1))

    def finds(**parameters: str) -> bool:
        return id_ in {row["id"] for row in read_rows(client, account, **parameters)}

    assert finds(**{"from": day})
    assert finds(to=day)
    assert finds(**{"from": day, "to": day})
    assert finds(**{"from": day_before, "to": day_after})
    assert not finds(**{"from": day_after})
    assert not finds(to=day_before)
    assert not finds(**{"from": day_after, "to": day_before})


@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("0001-01-01", "9999-12-31"),
        ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
        ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z"),
    ],
)
def test_all_of_time_is_the_whole_history(
    system: System, client: httpx.Client, account: Account, since: str, until: str
) -> None:
    pay_each(system, account, EMAIL)
    assert read_rows(client, account, **{"from": since, "to": until}) == read_rows(client, account)
    assert read_rows(client, account, **{"from": until}) == []
    assert read_rows(client, account, to=since) == []


def test_every_wrong_parameter_is_reported_as_json(client: httpx.Client, account: Account) -> None:
    query = {"limit": "x", "cursor": "x", "type": "x", "user": "x", "from": "x", "to": "x", "email": "x"}
    for accept in ("application/json", "text/csv"):
        response = client.get(PATH, params=query, headers=account.headers | {"Accept": accept})
        assert (response.status_code, response.json()) == (
            400,
            {
                "limit": ["The limit must be an integer."],
                "cursor": ["The cursor is invalid."],
                "type": ["The selected type is invalid."],
                "user": ["The selected user is invalid."],
                "from": ["The from is not a valid date."],
                "to": ["The to is not a valid date."],
                "email": ["The email parameter is not known."],
            },
        )
        assert response.headers["content-type"] == "application/json"


def test_a_cursor_of_users_is_refused(client: httpx.Client, account: Account) -> None:
    response = client.get(PATH, params={"cursor": users_cursor(uuid4())}, headers=account.headers)
    assert (response.status_code, response.json()) == (400, {"cursor": ["The cursor is invalid."]})


# Who may call


@pytest.mark.parametrize("path", [PATH, f"{PATH}?limit=0", f"{PATH}/txn_0"])
@pytest.mark.parametrize("accept", ["*/*", "text/csv"])
def test_without_a_live_secret_key_the_answer_is_401_in_json(
    system: System, client: httpx.Client, account: Account, path: str, accept: str
) -> None:
    assert client.get(PATH, headers=account.headers).status_code == 200
    with system.database.transaction() as connection:
        _, public = api_keys.create_api_key(connection, account.business.id, KeyKind.PUBLIC)
        api_keys.revoke_api_key(connection, account.api_key_id)
    for headers in ({}, account.headers, {"Authorization": f"Bearer {public}"}, {"Authorization": "Bearer sk_live_x"}):
        response = client.get(path, headers=headers | {"Accept": accept})
        assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/json"


def test_rows_of_another_business_are_not_listed(system: System, client: httpx.Client, account: Account) -> None:
    other = open_account(system.database)
    pay_each(system, other, EMAIL, "other@example.com")
    cursor = read_page(client, other, limit=1)["next_cursor"]
    assert [row["type"] for row in read_rows(client, account)] == ["funding"]
    assert all(row["type"] == "funding" for row in read_page(client, account, cursor=cursor)["data"])
    assert [row["type"] for row in export(client, account)] == ["funding"]


# Pages


def test_pages_go_from_the_newest_to_the_oldest(system: System, client: httpx.Client, account: Account) -> None:
    ids = pay_each(system, account, *(f"{number}@example.com" for number in range(7)))[::-1]
    for limit in (1, 3, 6, 7, 100):
        pages = list(walk(client, account, limit, type="allocation"))
        assert [row["id"] for page in pages for row in page] == ids
        assert len(pages) == -(-7 // limit)


def test_a_page_has_25_rows_where_nothing_is_said(system: System, client: httpx.Client, account: Account) -> None:
    pay_at_once(system, account, 25)
    page = read_page(client, account)
    assert (len(page["data"]), page["has_more"]) == (25, True)
    rest = read_page(client, account, cursor=page["next_cursor"])
    assert ([row["type"] for row in rest["data"]], rest["has_more"]) == (["funding"], False)


def test_rows_of_one_time_are_each_listed_once(system: System, client: httpx.Client, account: Account) -> None:
    first, second = pay_at_once(system, account, 130), pay_at_once(system, account, 60)
    rows = [row for page in walk(client, account, 50, type="allocation") for row in page]
    assert len({row["created_at"] for row in rows}) == 2
    assert [row["id"] for row in rows] == second + first


def test_walking_while_rows_are_added_sees_each_old_one_once(
    system: System, client: httpx.Client, account: Account
) -> None:
    pay_each(system, account, *[EMAIL] * 9)
    user = read_rows(client, account, type="allocation")[0]["user"]
    selections: list[dict[str, str]] = [{}, {"type": "allocation"}, {"user": user}, {"from": "2000-01-01"}]
    for selection in selections:
        old = [row["id"] for row in read_rows(client, account, **selection)]
        seen = []
        for page in walk(client, account, 2, **selection):
            seen += [row["id"] for row in page]
            pay_each(system, account, EMAIL, "new@example.com")
        assert seen == old


def test_walking_during_a_rush_sees_each_old_row_once(system: System, account: Account) -> None:
    old = pay_each(system, account, *[EMAIL] * 12)[::-1]
    done = Event()

    def pay_on() -> None:
        with system.client() as client:
            while not done.is_set():
                assert system.pay(client, account, EMAIL, 1).status_code == 201

    with system.client() as client, ThreadPoolExecutor(3) as threads:
        payers = [threads.submit(pay_on) for _ in range(3)]
        try:
            walks = [[row["id"] for page in walk(client, account, 5) for row in page] for _ in range(5)]
            exports = [[row["id"] for row in export(client, account)] for _ in range(3)]
        finally:
            done.set()
    assert [payer.result() for payer in payers] == [None] * 3
    for seen in walks + exports:
        assert len(set(seen)) == len(seen)
        assert [id_ for id_ in seen if id_ in old] == old


# CSV


def test_csv_has_decimal_dollars_beside_cents(system: System, client: httpx.Client, account: Account) -> None:
    undone = allocation_of(account, EMAIL, 123_405, idempotency_key="order-17")
    allocate(system.database, allocation_of(account, EMAIL, 7))
    allocate(system.database, undone)
    withdraw(system.database, undone)
    rows = read_rows(client, account)
    ids, times = ([row[name] for row in rows] for name in ("id", "created_at"))
    response = client.get(PATH, headers=account.headers | CSV)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="transactions.csv"'
    assert response.headers["x-request-id"]
    user = rows[0]["user"]
    assert response.text.split("\r\n") == [
        ",".join(COLUMNS),
        f"{ids[0]},reversal,{user},{EMAIL},123405,1234.05,USD,999993,9999.93,7,0.07,,{ids[1]},,{times[0]},",
        f"{ids[1]},allocation,{user},{EMAIL},123405,1234.05,USD,876588,8765.88,123412,1234.12,order-17,,,{times[1]},",
        f"{ids[2]},allocation,{user},{EMAIL},7,0.07,USD,999993,9999.93,7,0.07,,,,{times[2]},",
        f"{ids[3]},funding,,,1000000,10000.00,USD,1000000,10000.00,,,,,,{times[3]},",
        "",
    ]


def test_csv_of_an_empty_selection_is_its_head(client: httpx.Client, account: Account) -> None:
    response = client.get(PATH, params={"type": "reversal"}, headers=account.headers | CSV)
    assert (response.status_code, response.text) == (200, ",".join(COLUMNS) + "\r\n")


def test_csv_is_the_whole_selection_whatever_the_limit(system: System, client: httpx.Client, account: Account) -> None:
    ids = pay_at_once(system, account, 30)
    assert [row["id"] for row in export(client, account, type="allocation")] == ids
    assert [row["id"] for row in export(client, account, type="allocation", limit=1)] == ids


def test_what_stands_in_a_key_stays_in_its_cell(system: System, client: httpx.Client, account: Account) -> None:
    keys = ["a,b", 'a"b', '"', '""', ",", "a;b", "a'b", "'a", "a=b", "a+b", "1@2", "\\n", "<script>", "|"]
    for key in keys:
        headers = account.headers | {"Idempotency-Key": key}
        body = {"email": EMAIL, "amount": 1}
        assert client.post("/payout/create", json=body, headers=headers).status_code == 201
    rows = export(client, account, type="allocation")
    assert [row["idempotency_key"] for row in rows] == keys[::-1]
    assert [row["idempotency_key"] for row in read_rows(client, account, type="allocation")] == keys[::-1]
    assert all(list(row) == COLUMNS for row in rows)


@pytest.mark.parametrize("email", ["=cmd@example.com", "+a@example.com", "-a@example.com", "=1+1@example.com"])
def test_no_email_is_a_formula_in_csv(system: System, client: httpx.Client, account: Account, email: str) -> None:
    assert system.pay(client, account, email, 1).status_code == 201
    assert [row["email"] for row in export(client, account, type="allocation")] == ["'" + email]
    assert [row["email"] for row in read_rows(client, account, type="allocation")] == [email]


@pytest.mark.parametrize(
    "key", ["=cmd|'/C", "@SUM(1+1)", "+1", "-1", "=", '=HYPERLINK("http://example.com/","x")', "@", "-2+3+cmd|'"]
)
def test_no_idempotency_key_is_a_formula_in_csv(
    system: System, client: httpx.Client, account: Account, key: str
) -> None:
    headers = account.headers | {"Idempotency-Key": key}
    body = {"email": EMAIL, "amount": 1}
    assert client.post("/payout/create", json=body, headers=headers).status_code == 201
    assert [row["idempotency_key"] for row in export(client, account, type="allocation")] == ["'" + key]
    assert [row["idempotency_key"] for row in read_rows(client, account, type="allocation")] == [key]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/csv", "text/csv"),
        ("text/csv; charset=utf-8", "text/csv"),
        ("text/csv;q=0.5", "text/csv"),
        ("text/*", "text/csv"),
        ("text/csv, application/json;q=0.9", "text/csv"),
        ("text/csv, */*;q=0.1", "text/csv"),
        ("application/json;q=0.1, text/csv;q=0.2", "text/csv"),
        ("text/html, text/csv", "text/csv"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("application/json, text/csv", "application/json"),
        ("text/csv;q=0.1, application/json", "application/json"),
        ("text/csv;q=0.1, */*", "application/json"),
        ("text/html", "application/json"),
        ("text/html, */*;q=0.8", "application/json"),
        ("application/xml", "application/json"),
        ("", "application/json"),
        (",", "application/json"),
        ("csv", "application/json"),
        (";;;", "application/json"),
        ("text/csvx", "application/json"),
        ("application/json;q=x", "application/json"),
        ('application/json;a="', "application/json"),
        ("application/json;q=nan", "application/json"),
    ],
)
def test_the_accepted_type_decides_between_a_page_and_csv(
    client: httpx.Client, account: Account, accept: str, media_type: str
) -> None:
    for path in (PATH, "/payout/users"):
        response = client.get(path, headers=account.headers | {"Accept": accept})
        assert response.status_code == 200
        assert response.headers["content-type"].partition(";")[0] == media_type


def test_without_an_accept_header_the_answer_is_a_page(client: httpx.Client, account: Account) -> None:
    request = client.build_request("GET", PATH, headers=account.headers)
    del request.headers["accept"]
    response = client.send(request)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")


# Exports of many rows. Each fills more than what sockets buffer, so that the server has to wait for its caller.


@pytest.fixture(scope="module")
def long_history(system: System) -> tuple[Account, list[str]]:
    """A business with many rows in few transactions; and the ids, in the list's order."""
    account = open_account(system.database)
    ids: list[str] = []
    for first in range(0, LONG_ROWS, LONG_ROWS // 4):
        allocations = [
            allocation_of(account, f"{'e' * 60}@{'d' * 60}.example", 1, idempotency_key=f"{number:0>250}")
            for number in range(first, first + LONG_ROWS // 4)
        ]
        with system.database.transaction() as connection:
            statements.allocate(connection, HASH_SECRET, allocations)
        ids = sorted((transaction_id(allocation.id) for allocation in allocations), reverse=True) + ids
    return account, ids


@contextmanager
def slow_client(system: System) -> Iterator[httpx.Client]:
    """A client that buffers no more than this, so that the server cannot write all of a long export ahead."""
    transport = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)])
    with system.client(transport=transport) as client:
        yield client


def test_an_export_of_many_rows_is_complete_and_in_order(
    client: httpx.Client, long_history: tuple[Account, list[str]]
) -> None:
    account, ids = long_history
    rows = [row for row in export(client, account, type="allocation") if row["idempotency_key"]]
    assert [row["id"] for row in rows] == ids
    assert sorted(int(row["idempotency_key"]) for row in rows) == list(range(LONG_ROWS))


def test_an_export_misses_and_repeats_nothing_while_rows_are_added(
    system: System, long_history: tuple[Account, list[str]]
) -> None:
    account, ids = long_history
    with (
        slow_client(system) as client,
        client.stream("GET", PATH, params={"type": "allocation"}, headers=account.headers | CSV) as response,
    ):
        parts = response.iter_text()
        text = next(parts)
        for _ in range(3):
            pay_each(system, account, EMAIL, "new@example.com")
            text += next(parts)
        text += "".join(parts)
    seen = [row["id"] for row in read_csv(text)]
    known = set(ids)
    assert len(set(seen)) == len(seen)
    assert [id_ for id_ in seen if id_ in known] == ids


def test_an_export_whose_key_is_revoked_is_not_taken_for_complete(
    system: System, long_history: tuple[Account, list[str]]
) -> None:
    account, ids = long_history
    with system.database.transaction() as connection:
        key, secret_key = api_keys.create_api_key(connection, account.business.id, KeyKind.SECRET)
    headers = {"Authorization": f"Bearer {secret_key}"} | CSV
    parts: list[str] = []
    with slow_client(system) as client, client.stream("GET", PATH, headers=headers) as response:
        assert response.status_code == 200
        with system.database.transaction() as connection:
            api_keys.revoke_api_key(connection, key.id)
        with pytest.raises(httpx.RemoteProtocolError):
            parts.extend(response.iter_text())
    assert ids[-1] not in "".join(parts)
    assert secret_key not in system.logs()


def start_exports(slow: httpx.Client, account: Account, exports: ExitStack) -> None:
    """Begin as many exports as may run at once, as soon as those given up before have made room."""
    give_up_at = time.monotonic() + IMPATIENT_S
    started = 0
    while started < EXPORTS_AT_ONCE:
        response = exports.enter_context(slow.stream("GET", PATH, headers=account.headers | CSV))
        started += response.status_code == 200
        if response.status_code == 429 and time.monotonic() < give_up_at:
            time.sleep(0.02)
        else:
            assert response.status_code == 200


def test_too_many_exports_answer_429_and_those_given_up_make_room(
    system: System, client: httpx.Client, long_history: tuple[Account, list[str]]
) -> None:
    account, _ = long_history
    for _ in range(2):
        with slow_client(system) as slow, ExitStack() as exports:
            start_exports(slow, account, exports)
            refused = client.get("/payout/users", headers=account.headers | CSV)
            assert (refused.status_code, refused.json()) == (429, {"error": "Too many requests"})
            assert int(refused.headers["retry-after"]) >= 1
            # Pages are no exports, and payments go on.
            assert len(read_page(client, account, limit=100)["data"]) == 100
            assert system.pay(client, account, EMAIL, 1).status_code == 201
