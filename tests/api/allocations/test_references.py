"""References of single calls, over HTTP, on the real parts."""

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from core.ids import IdKind, format_id
from core.parties.businesses import set_payouts_enabled, set_requires_keys
from tests.core.builders import read_history
from tests.polling import wait_until
from tests.servers import Account, System, open_account, verify_books

EMAIL = "user@example.com"
REUSED = {"error": "Reference was already used with different parameters"}
KEY_REUSED = {"error": "Idempotency-Key was already used with different parameters"}
KEY_REQUIRED = {"error": "Idempotency-Key is required"}
MUST_BE_STRING = "The reference must be a string."
MAX = "The reference may not be greater than 255 characters."
CONTROL = "The reference may not contain control characters."


def pay(client: httpx.Client, account: Account, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = account.headers | ({} if key is None else {"Idempotency-Key": key})
    return client.post("/payout/create", content=json.dumps({"email": EMAIL, "amount": 100} | fields), headers=headers)


def listed(client: httpx.Client, account: Account, **parameters: Any) -> list[dict[str, Any]]:
    response = client.get("/payout/transactions", params=parameters, headers=account.headers)
    assert response.status_code == 200, response.text
    rows: list[dict[str, Any]] = response.json()["data"]
    return rows


def test_a_reference_pays_once(system: System, client: httpx.Client, account: Account) -> None:
    first = pay(client, account, reference="order-1")
    assert first.status_code == 201
    assert "idempotent-replayed" not in first.headers
    for key in (None, "a-key", "another"):
        again = pay(client, account, key, reference="order-1")
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["idempotent-replayed"] == "true"
    for fields in ({"amount": 101}, {"email": "other@example.com"}):
        other = pay(client, account, reference="order-1", **fields)
        assert (other.status_code, other.json()) == (422, REUSED)
    assert [row.reference for row in read_history(system.database, account.business.id)] == ["order-1"]


def test_the_idempotency_key_is_looked_at_first(client: httpx.Client, account: Account) -> None:
    pay(client, account, "key", reference="order-1")
    other = pay(client, account, "key", amount=101, reference="order-1")
    assert (other.status_code, other.json()) == (422, KEY_REUSED)


@pytest.mark.parametrize("same", ["order 1", " order 1", "order 1\u00a0\n"])
def test_white_space_around_a_reference_is_trimmed(client: httpx.Client, account: Account, same: str) -> None:
    pay(client, account, reference="order 1")
    assert pay(client, account, reference=same).headers.get("idempotent-replayed") == "true"
    assert [row["reference"] for row in listed(client, account, type="allocation")] == ["order 1"]


@pytest.mark.parametrize("none", [None, "", " \t"])
def test_an_empty_reference_is_none(client: httpx.Client, account: Account, none: str | None) -> None:
    for _ in range(2):
        response = pay(client, account, reference=none)
        assert response.status_code == 201
        assert "idempotent-replayed" not in response.headers
    assert [row["reference"] for row in listed(client, account, type="allocation")] == [None, None]


@pytest.mark.parametrize(
    ("reference", "texts"),
    [
        (1234, [MUST_BE_STRING]),
        (["order-1"], [MUST_BE_STRING]),
        (False, [MUST_BE_STRING]),
        ("x" * 256, [MAX]),
        ("a\0b", [CONTROL]),
        ("a\nb", [CONTROL]),
        ("a\x7fb", [CONTROL]),
        ("a\u0085b", [CONTROL]),
        ("\ud800", [CONTROL]),
        ("a\tb" + "x" * 256, [MAX, CONTROL]),
    ],
)
def test_any_other_reference_is_refused_by_field(
    system: System, client: httpx.Client, account: Account, reference: Any, texts: list[str]
) -> None:
    response = pay(client, account, reference=reference)
    assert (response.status_code, response.json()) == (400, {"reference": texts})
    assert read_history(system.database, account.business.id) == []


def test_every_field_reports_in_its_order(client: httpx.Client, account: Account) -> None:
    response = pay(client, account, email="", amount=0, reference=5)
    assert list(response.json()) == ["email", "amount", "reference"]


@pytest.mark.parametrize("reference", ["x" * 255, " " + "x" * 255, "\u00e4" * 255, "\U0001f600", "'=1+1", '{"a":1}'])
def test_255_characters_of_any_kind_are_taken(client: httpx.Client, account: Account, reference: str) -> None:
    assert pay(client, account, reference=reference).status_code == 201
    assert pay(client, account, reference=reference).headers["idempotent-replayed"] == "true"
    (row,) = listed(client, account, reference=reference)
    assert row["reference"] == reference.strip()


def test_calls_at_once_with_one_reference_pay_once(system: System, client: httpx.Client, account: Account) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: pay(client, account, reference="order-1"), range(24)))
    assert {answer.status_code for answer in answers} == {201}
    assert Counter("idempotent-replayed" in answer.headers for answer in answers) == {True: 23, False: 1}
    assert len(read_history(system.database, account.business.id)) == 1


# Lists


def test_lists_are_filtered_by_reference_key_and_amount(client: httpx.Client, account: Account) -> None:
    for number in range(1, 6):
        pay(client, account, f"key-{number}", amount=number * 100, reference=f"order-{number}")
    asked: dict[tuple[tuple[str, Any], ...], list[int]] = {
        (("reference", "order-3"),): [300],
        (("reference", "order-3"), ("type", "funding")): [],
        (("reference", "order"),): [],
        (("idempotency_key", "key-2"),): [200],
        (("idempotency_key", "key-2"), ("reference", "order-3")): [],
        (("min_amount", 200), ("max_amount", 400)): [400, 300, 200],
        (("min_amount", 501), ("type", "allocation")): [],
        (("max_amount", 100),): [100],
    }
    for parameters, amounts in asked.items():
        assert [row["amount"] for row in listed(client, account, **dict(parameters))] == amounts, parameters
    file = client.get(
        "/payout/transactions", params={"reference": "order-3"}, headers=account.headers | {"Accept": "text/csv"}
    )
    assert file.text.splitlines()[0].endswith(",reference")
    assert [line.rsplit(",", 1)[1] for line in file.text.splitlines()[1:]] == ["order-3"]


def test_one_business_does_not_find_anothers_reference(
    client: httpx.Client, account: Account, system: System, other_account: Account
) -> None:
    pay(client, account, reference="order-1")
    assert listed(client, other_account, reference="order-1") == []
    assert pay(client, other_account, reference="order-1", amount=7).status_code == 201
    assert verify_books(system.database).balanced


@pytest.fixture
def other_account(system: System) -> Account:
    return open_account(system.database)


@pytest.mark.parametrize("path", ["/payout/transactions", "/payout/users", "/payout/batches"])
def test_a_parameter_that_is_not_known_is_refused_by_name(client: httpx.Client, account: Account, path: str) -> None:
    parameters = {"form": "2026-11-01", "limit": "0"}
    for accept in ("application/json", "text/csv"):
        headers = account.headers | {"Accept": accept}
        response = client.get(path, params=parameters, headers=headers)
        assert (response.status_code, response.json()) == (
            400,
            {"form": ["The form parameter is not known."], "limit": ["The limit must be at least 1."]},
        )
    assert client.get(path, params={"form": "x"}).status_code == 401


def test_a_payment_is_read_with_its_reference(client: httpx.Client, account: Account, system: System) -> None:
    pay(client, account, reference="order-1")
    (row,) = read_history(system.database, account.business.id)
    path = f"/payout/transactions/{format_id(IdKind.TRANSACTION, row.id)}"
    assert client.get(path, headers=account.headers).json()["reference"] == "order-1"


# Keys required


@pytest.fixture
def strict_account(system: System, account: Account) -> Account:
    with system.database.transaction() as connection:
        set_requires_keys(connection, account.business.id, required=True)
    return account


def test_a_call_without_a_name_is_refused_where_keys_are_required(
    system: System, client: httpx.Client, strict_account: Account
) -> None:
    for fields in ({}, {"reference": " "}, {"email": "", "amount": "x"}):
        response = pay(client, strict_account, **fields)
        assert (response.status_code, response.json()) == (400, KEY_REQUIRED), fields
    assert pay(client, strict_account, "key").status_code == 201
    assert pay(client, strict_account, reference="order-1").status_code == 201
    refused = pay(client, strict_account, "other-key", email="")
    assert refused.json() == {"email": ["The email field is required."]}
    refused = pay(client, strict_account, reference=5)
    assert refused.json() == {"reference": [MUST_BE_STRING]}
    assert len(read_history(system.database, strict_account.business.id)) == 2


def test_disabled_payouts_come_before_the_key(system: System, client: httpx.Client, strict_account: Account) -> None:
    with system.database.transaction() as connection:
        set_payouts_enabled(connection, strict_account.business.id, enabled=False)
    for fields in ({}, {"email": ""}):
        assert pay(client, strict_account, **fields).status_code == 403


def test_a_batch_needs_a_key_where_keys_are_required(client: httpx.Client, strict_account: Account) -> None:
    good = {"allocations": [{"email": EMAIL, "amount": 1, "reference": "order-1"}]}
    bodies: list[dict[str, Any]] = [good, {"allocations": []}, {"allocations": [{"email": ""}]}]
    for body in bodies:
        response = client.post("/payout/batches", json=body, headers=strict_account.headers)
        assert (response.status_code, response.json()) == (400, KEY_REQUIRED)
    headers = strict_account.headers | {"Idempotency-Key": "key"}
    assert client.post("/payout/batches", json=good, headers=headers).status_code == 202


# Clients and proxies that send a POST again by themselves


@pytest.mark.parametrize(
    ("key", "fields", "paid"),
    [("a-key", {}, 1), (None, {"reference": "order-1"}, 1), ("a-key", {"reference": "order-1"}, 1), (None, {}, 2)],
)
def test_a_call_whose_answer_is_lost_and_that_is_sent_again_pays_once_if_it_has_a_name(
    system: System, client: httpx.Client, account: Account, key: str | None, fields: dict[str, str], paid: int
) -> None:
    """What Java's HttpURLConnection, OkHttp, curl and proxies do: the connection ends after the commit."""
    body = json.dumps({"email": EMAIL, "amount": 100} | fields).encode()
    named = f"Idempotency-Key: {key}\r\n" if key else ""
    head = (
        f"POST /payout/create HTTP/1.1\r\nHost: a\r\nAuthorization: {account.headers['Authorization']}\r\n{named}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(system.address) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: system.read_paid(account) == (1, 100))
    again = pay(client, account, key, **fields)
    assert again.status_code == 201
    assert system.read_paid(account) == (paid, paid * 100)
    assert ("idempotent-replayed" in again.headers) == (paid == 1)
