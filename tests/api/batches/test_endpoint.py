"""Payout batches over HTTP, on the real parts."""

import csv
import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from api.resources.query_parameters import batches_cursor, results_cursor, users_cursor
from core.batches import acceptance, payment, reading, release
from core.batches.acceptance import Accepted, Sorting, Submission
from core.batches.payout_batch import BatchRow
from core.credentials import KeyKind
from core.ids import IdKind, format_id, new_id
from core.parties import api_keys
from core.parties.businesses import PLAY_MONEY_CENTS, fund_business, get_business, set_payouts_enabled
from tests.core.builders import HASH_SECRET
from tests.polling import wait_until
from tests.servers import Account, System, open_account, verify_books

PATH = "/payout/batches"
UNAUTHORIZED = {"error": "Unauthorized"}
DISABLED = {"error": "Payouts are currently disabled. Please enable them in Settings."}
INSUFFICIENT = {"error": "Insufficient payout balance"}
NOT_AN_OBJECT = {"error": "The request body must be a JSON object."}
NOT_FOUND = {"error": "Not found"}
TOO_LARGE = {"error": "Request body too large"}
KEY_MALFORMED = {"error": "Idempotency-Key must be 1 to 255 visible ASCII characters"}
KEY_REUSED = {"error": "Idempotency-Key was already used with different parameters"}
BODY_MAX_BYTES = 32 * 2**20
FUNDS_CENTS = 1_000_000

CSV_TYPE, NDJSON_TYPE = "text/csv", "application/x-ndjson"
ROWS = [
    {"email": "a@example.com", "amount": 100, "reference": "order 1"},
    {"email": "B@Example.com", "amount": 20, "reference": "=order, 2"},
    {"email": "a@example.com", "amount": 3, "reference": None},
]
UNNAMED_ROWS = [{"email": row["email"], "amount": row["amount"]} for row in ROWS]
ROWS_AS_CSV = 'email,amount,reference\na@example.com,100,order 1\nb@example.com,20,"=order, 2"\na@example.com,3,\n'
ROWS_AS_NDJSON = "\n".join(map(json.dumps, ROWS))
COLUMNS = ["row", "email", "amount_cents", "amount_dollars", "reference", "outcome", "hash", "transaction"]


def send(
    client: httpx.Client,
    account: Account,
    rows: Any = None,
    *,
    content: bytes | str | None = None,
    content_type: str = "application/json",
    key: str | None = None,
) -> httpx.Response:
    """Offer rows as JSON, or content as it is."""
    headers = account.headers | {"Content-Type": content_type}
    if key is not None:
        headers["Idempotency-Key"] = key
    if content is None:
        content = json.dumps({"allocations": rows})
    return client.post(PATH, content=content, headers=headers)


def send_accepted(client: httpx.Client, account: Account, rows: Any = None, **options: Any) -> str:
    response = send(client, account, rows, **options)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def read(client: httpx.Client, account: Account, path: str, **parameters: Any) -> Any:
    response = client.get(path, params=parameters, headers=account.headers)
    assert response.status_code == 200, response.text
    return response.json()


def wait_until_finished(client: httpx.Client, account: Account, batch_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        return dict(read(client, account, f"{PATH}/{batch_id}"))

    wait_until(lambda: look()["finished_at"] is not None, look, 60)
    return look()


def pay(client: httpx.Client, account: Account, rows: Any = None, **options: Any) -> str:
    """Offer rows and wait until all are paid; return the batch's id."""
    batch_id = send_accepted(client, account, rows, **options)
    assert wait_until_finished(client, account, batch_id)["status"] == "completed"
    return batch_id


def results_of(client: httpx.Client, account: Account, batch_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read(client, account, f"{PATH}/{batch_id}/results", limit=100)["data"]
    return rows


def accept_unsent(system: System, account: Account, *rows: BatchRow) -> UUID:
    """Accept a batch of which no worker learns, and disable payouts, so that none finds it."""
    batch_id = new_id()
    with system.database.transaction() as connection:
        submission = Submission.of(account.business.id, account.api_key_id, rows, None)
        sorting = acceptance.sort_rows(connection, submission)
        assert isinstance(sorting, Sorting)
        acceptance.load_rows(connection, HASH_SECRET, submission, batch_id, sorting)
        assert isinstance(acceptance.accept(connection, submission, batch_id, sorting), Accepted)
        assert release.release(connection, account.business.id, batch_id) is not None
        set_payouts_enabled(connection, account.business.id, enabled=False)
    return batch_id


def pay_by_hand(system: System, account: Account, batch_id: UUID, first: int, rows_max: int) -> None:
    with system.database.transaction() as connection:
        set_payouts_enabled(connection, account.business.id, enabled=True)
        payment.pay_chunk(connection, account.business.id, batch_id, first, rows_max)
        set_payouts_enabled(connection, account.business.id, enabled=False)


def assert_no_trace(system: System, account: Account) -> None:
    """Nothing of a batch is in the database: no rows either, no money moved."""
    query = sa.text("""
        SELECT
            (SELECT count(*) FROM payout_batches WHERE business_id = :id),
            (SELECT count(*) FROM payout_batch_items WHERE business_id = :id),
            (SELECT count(*) FROM payout_users WHERE business_id = :id),
            payout_balance, reserved_balance
        FROM businesses WHERE id = :id
    """)
    with system.database.transaction() as connection:
        found = tuple(connection.execute(query, {"id": account.business.id}).one())
    assert found == (0, 0, 0, account.business.payout_balance, 0)


def count_batches(system: System, account: Account) -> int:
    with system.database.transaction() as connection:
        return len(reading.list_batches(connection, account.business.id, limit=100))


@pytest.fixture(autouse=True, scope="module")
def _books_balance(system: System) -> Iterator[None]:
    yield
    assert verify_books(system.database).balanced


# Accepting


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("application/json", json.dumps({"allocations": ROWS})),
        ("text/csv; charset=utf-8", ROWS_AS_CSV),
        ("text/csv", "\ufeff" + ROWS_AS_CSV.replace("\n", "\r\n")),
        (NDJSON_TYPE, ROWS_AS_NDJSON),
    ],
)
def test_a_batch_is_accepted_and_then_paid(
    system: System, client: httpx.Client, account: Account, content_type: str, content: str
) -> None:
    response = send(client, account, content=content, content_type=content_type)
    assert response.status_code == 202, response.text
    accepted = response.json()
    assert accepted == {
        "id": accepted["id"],
        "status": "queued",
        "total": 3,
        "amount": 123,
        "processed": 0,
        "allocated_amount": 0,
        "created_at": accepted["created_at"],
        "updated_at": accepted["created_at"],
        "finished_at": None,
        "already_paid": 0,
    }
    assert response.headers["location"] == f"{PATH}/{accepted['id']}"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert "idempotent-replayed" not in response.headers
    assert "x-request-id" in response.headers

    finished = wait_until_finished(client, account, accepted["id"])
    assert finished == accepted | {
        "status": "completed",
        "processed": 3,
        "allocated_amount": 123,
        "updated_at": finished["updated_at"],
        "finished_at": finished["finished_at"],
    }
    assert finished["created_at"] < finished["finished_at"]
    assert read(client, account, "/balance")["payout_balance"] == FUNDS_CENTS - 123
    users = read(client, account, "/payout/users")["data"]
    assert {user["email"]: user["balance"] for user in users} == {"a@example.com": 103, "b@example.com": 20}
    assert verify_books(system.database).balanced


def test_a_batch_larger_than_one_chunk_and_than_an_ordinary_body_is_paid(
    system: System, client: httpx.Client, account: Account
) -> None:
    rows = [{"email": f"user{number % 700}@example.com", "amount": 1 + number % 5} for number in range(1_300)]
    total = sum(int(str(row["amount"])) for row in rows)
    batch_id = send_accepted(client, account, rows)
    # A single call goes in between.
    assert system.pay(client, account, "between@example.com", 7).status_code == 201
    finished = wait_until_finished(client, account, batch_id)
    assert (finished["status"], finished["processed"], finished["allocated_amount"]) == ("completed", 1_300, total)
    assert read(client, account, "/balance")["payout_balance"] == FUNDS_CENTS - total - 7
    with httpx.stream(
        "GET",
        f"{system.base_url}{PATH}/{batch_id}/results",
        headers=account.headers | {"Accept": NDJSON_TYPE},
    ) as response:
        lines = [json.loads(line) for line in response.iter_lines()]
    assert [(line["row"], line["amount"], line["outcome"]) for line in lines] == [
        (number, row["amount"], "allocated") for number, row in enumerate(rows)
    ]
    assert len({line["transaction"] for line in lines}) == 1_300


def test_a_body_of_32_mib_is_taken_and_one_byte_more_is_not(
    system: System, client: httpx.Client, account: Account
) -> None:
    content = json.dumps({"allocations": ROWS[:1]}).encode()
    padded = content + b" " * (BODY_MAX_BYTES - len(content))
    response = send(client, account, content=padded + b" ")
    assert (response.status_code, response.json()) == (413, TOO_LARGE)
    assert_no_trace(system, account)
    pay(client, account, content=padded)


def test_a_body_without_a_length_is_taken_as_a_whole(client: httpx.Client, account: Account) -> None:
    parts = iter([ROWS_AS_CSV[:30].encode(), ROWS_AS_CSV[30:].encode()])
    headers = account.headers | {"Content-Type": "text/csv"}
    response = client.post(PATH, content=parts, headers=headers)
    assert (response.status_code, response.json()["total"]) == (202, 3)


# Refusals


def test_calls_without_a_live_secret_key_are_unauthorized(
    system: System, client: httpx.Client, account: Account
) -> None:
    with system.database.transaction() as connection:
        _, public_key = api_keys.create_api_key(connection, account.business.id, KeyKind.PUBLIC)
    batch_id = send_accepted(client, account, ROWS)
    wait_until_finished(client, account, batch_id)
    with system.database.transaction() as connection:
        api_keys.revoke_api_key(connection, account.api_key_id)
    for key in (None, "sk_live_nobody", public_key, account.secret_key):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        for path in (PATH, f"{PATH}/{batch_id}", f"{PATH}/{batch_id}/results", f"{PATH}/x"):
            response = client.get(path, headers=headers)
            assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
        response = client.post(PATH, json={"allocations": ROWS}, headers=headers)
        assert (response.status_code, response.json()) == (401, UNAUTHORIZED)
        assert response.headers["www-authenticate"] == "Bearer"
    assert count_batches(system, account) == 1


def test_of_several_things_wrong_the_first_answers(system: System, client: httpx.Client) -> None:
    poor = open_account(system.database, funds_cents=0, payouts_enabled=False)
    wrong, costly = [{"email": "nobody", "amount": 5}], [{"email": "a@example.com", "amount": 5}]
    nobody = {"Authorization": "Bearer sk_live_nobody", "Idempotency-Key": "ü".encode()}
    response = client.post(PATH, json={"allocations": wrong}, headers=nobody)  # type: ignore[arg-type]
    assert (response.status_code, response.json()) == (401, UNAUTHORIZED)

    for rows, key in ((wrong, "a key"), (wrong, None), (costly, None)):
        response = send(client, poor, rows, key=key)
        assert (response.status_code, response.json()) == (403, DISABLED)
    for content in ("", "x", '{"allocations": 5}'):
        assert send(client, poor, content=content).json() == DISABLED
    with system.database.transaction() as connection:
        set_payouts_enabled(connection, poor.business.id, enabled=True)
    response = send(client, poor, wrong)
    assert (response.status_code, response.json()) == (
        400,
        {"allocations.0.email": ["The allocations.0.email must be a valid email address."]},
    )
    response = send(client, poor, costly)
    assert (response.status_code, response.json()) == (400, INSUFFICIENT)
    assert_no_trace(system, poor)


@pytest.mark.parametrize(
    ("content_type", "content", "expected"),
    [
        ("application/json", b"", NOT_AN_OBJECT),
        ("application/json", b"[]", NOT_AN_OBJECT),
        ("application/json", ROWS_AS_CSV.encode(), NOT_AN_OBJECT),
        ("application/json", b"{}", {"allocations": ["The allocations field is required."]}),
        (CSV_TYPE, b"email,amount\n", {"allocations": ["The allocations field is required."]}),
        (NDJSON_TYPE, b"", {"allocations": ["The allocations field is required."]}),
        (NDJSON_TYPE, b"{}\n{", {"allocations": ["Line 2 is not JSON."]}),
        (
            CSV_TYPE,
            b"",
            {
                "allocations": [
                    "The file is empty; its first line must name the columns: email,amount or email,amount,reference."
                ]
            },
        ),
        (
            CSV_TYPE,
            b"email,amount\n\xff",
            {
                "allocations": [
                    (
                        "Line 2 is not valid UTF-8; it is probably Windows-1252. "
                        "Save the file as UTF-8 (in Excel: Save As, CSV UTF-8)."
                    )
                ]
            },
        ),
        (
            CSV_TYPE,
            b"email|amount\n",
            {"allocations": ["Line 1 separates columns by bars; use commas, semicolons or tabs."]},
        ),
        (
            CSV_TYPE,
            b"email,amount\na@example.com,1\nb@example.com,10.50\n",
            {
                "allocations.1.amount": [
                    "The allocations.1.amount must be an integer.",
                    "Line 3: the amount '10.50' is not whole cents, written without a point: in cents $10.50 is 1050.",
                ]
            },
        ),
        (
            "application/json",
            json.dumps({"allocations": [*ROWS, ROWS[0]]}).encode(),
            {"allocations.3.reference": ["The allocations.3.reference has a duplicate value."]},
        ),
    ],
)
def test_one_thing_wrong_and_nothing_is_accepted(
    system: System, client: httpx.Client, account: Account, content_type: str, content: bytes, expected: dict[str, Any]
) -> None:
    response = send(client, account, content=content, content_type=content_type, key="key")
    assert (response.status_code, response.json()) == (400, expected)
    assert_no_trace(system, account)
    send_accepted(client, account, ROWS, key="key")


def test_insufficient_funds_leave_no_trace_and_the_key_free(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, funds_cents=122)
    response = send(client, account, ROWS, key="key")
    assert (response.status_code, response.json()) == (400, INSUFFICIENT)
    assert_no_trace(system, account)
    with system.database.transaction() as connection:
        fund_business(connection, account.business.id, 1)
    batch_id = pay(client, account, ROWS, key="key")
    assert read(client, account, "/balance")["payout_balance"] == 0
    assert send(client, account, ROWS, key="key").json()["id"] == batch_id


@pytest.mark.parametrize("key", ["", "a key", "x" * 256, "ü"])
def test_a_malformed_key_is_refused(system: System, client: httpx.Client, account: Account, key: str) -> None:
    headers = {b"Authorization": account.headers["Authorization"].encode(), b"Idempotency-Key": key.encode()}
    response = client.post(PATH, json={"allocations": ROWS}, headers=headers)
    assert (response.status_code, response.json()) == (400, KEY_MALFORMED)
    assert_no_trace(system, account)


def test_other_methods_are_not_allowed(client: httpx.Client, account: Account) -> None:
    for method, path, allowed in (
        ("PUT", PATH, {"GET", "POST"}),
        ("DELETE", f"{PATH}/x", {"GET"}),
        ("POST", f"{PATH}/x", {"GET"}),
        ("POST", f"{PATH}/x/results", {"GET"}),
    ):
        response = client.request(method, path, headers=account.headers)
        assert (response.status_code, response.json()) == (405, {"error": "Method not allowed"})
        assert allowed <= set(response.headers["allow"].replace(" ", "").split(","))


@pytest.mark.parametrize("is_chunked", [True, False])
def test_an_upload_that_breaks_off_is_not_taken_for_a_shorter_one(
    system: System, client: httpx.Client, account: Account, is_chunked: bool
) -> None:
    content = (ROWS_AS_NDJSON + "\n").encode()
    framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(content) * 2}"
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: test\r\n{framing}\r\nContent-Type: {NDJSON_TYPE}\r\n"
        f"Idempotency-Key: once\r\nAuthorization: {account.headers['Authorization']}\r\n\r\n"
    ).encode()
    with socket.create_connection(system.address, timeout=30) as connection:
        connection.sendall(head + (b"%x\r\n%s\r\n" % (len(content), content) if is_chunked else content))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    assert not answer.startswith(b"HTTP/1.1 2")
    assert_no_trace(system, account)
    response = send(client, account, ROWS[:1], key="once")
    assert (response.status_code, "idempotent-replayed" in response.headers) == (202, False)
    assert count_batches(system, account) == 1


@pytest.mark.parametrize("accept", ["application/json", CSV_TYPE, NDJSON_TYPE])
def test_lists_are_answered_200_and_kept_by_nobody(client: httpx.Client, account: Account, accept: str) -> None:
    batch_id = send(client, account, ROWS).json()["id"]
    for path in (PATH, f"{PATH}/{batch_id}/results"):
        response = client.get(path, headers=account.headers | {"Accept": accept})
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(accept)
        assert response.headers["cache-control"] == "no-store"


# Idempotency keys


def test_the_same_rows_in_another_format_replay(client: httpx.Client, account: Account) -> None:
    first = send(client, account, ROWS, key="key")
    assert first.status_code == 202
    batch_id = first.json()["id"]
    finished = wait_until_finished(client, account, batch_id)
    for content, content_type in (
        (json.dumps({"allocations": ROWS, "more": 1}), "application/json"),
        (ROWS_AS_CSV, CSV_TYPE),
        (ROWS_AS_NDJSON, NDJSON_TYPE),
    ):
        again = send(client, account, content=content, content_type=content_type, key="key")
        assert (again.status_code, again.json()) == (202, finished)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["location"] == first.headers["location"]
    assert read(client, account, "/balance")["payout_balance"] == FUNDS_CENTS - 123


def test_other_rows_with_the_same_key_are_refused(client: httpx.Client, account: Account) -> None:
    send_accepted(client, account, ROWS, key="key")
    for rows in (ROWS[:2], ROWS[::-1], [*ROWS, ROWS[2]], [ROWS[0] | {"amount": 101}, *ROWS[1:]]):
        response = send(client, account, rows, key="key")
        assert (response.status_code, response.json()) == (422, KEY_REUSED)
    assert len(read(client, account, PATH)["data"]) == 1


def test_without_keys_and_references_the_same_rows_are_paid_again(client: httpx.Client, account: Account) -> None:
    assert pay(client, account, UNNAMED_ROWS) != pay(client, account, UNNAMED_ROWS)
    assert read(client, account, "/balance")["payout_balance"] == FUNDS_CENTS - 246


def test_of_several_with_one_key_at_once_one_is_accepted(system: System, client: httpx.Client) -> None:
    account = open_account(system.database, funds_cents=200)
    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(lambda _: send(client, account, ROWS, key="key"), range(8)))
    assert [response.status_code for response in responses] == [202] * 8
    assert sum("idempotent-replayed" in response.headers for response in responses) == 7
    (batch_id,) = {response.json()["id"] for response in responses}
    wait_until_finished(client, account, batch_id)
    assert read(client, account, "/balance")["payout_balance"] == 77


def test_a_key_of_a_single_call_is_used_up_for_batches_and_the_other_way_round(
    client: httpx.Client, account: Account
) -> None:
    def pay_one(key: str) -> httpx.Response:
        headers = account.headers | {"Idempotency-Key": key}
        return client.post("/payout/create", json={"email": "a@example.com", "amount": 1}, headers=headers)

    assert pay_one("single").status_code == 201
    pay(client, account, ROWS, key="batch")
    for response in (
        pay_one("batch"),
        send(client, account, ROWS, key="single"),
        send(client, account, [{"email": "a@example.com", "amount": 1}], key="single"),
    ):
        assert (response.status_code, response.json()) == (422, KEY_REUSED)
    assert pay_one("single").headers["idempotent-replayed"] == "true"
    assert send(client, account, ROWS, key="batch").headers["idempotent-replayed"] == "true"
    assert read(client, account, "/balance")["payout_balance"] == FUNDS_CENTS - 124


# Results


def test_results_say_what_became_of_each_row_in_three_formats(
    system: System, client: httpx.Client, account: Account
) -> None:
    hash_ = system.pay(client, account, "A@example.com", 1_000).json()["hash"]
    batch_id = pay(client, account, ROWS)
    path = f"{PATH}/{batch_id}/results"
    page = read(client, account, path)
    assert page.keys() == {"data", "has_more", "next_cursor"}
    assert (page["has_more"], page["next_cursor"]) == (False, None)
    other_hash = system.pay(client, account, "b@example.com", 1).json()["hash"]
    expected = [
        {
            "row": number,
            "email": str(row["email"]).lower(),
            "amount": row["amount"],
            "reference": row["reference"],
            "outcome": "allocated",
            "hash": other_hash if number == 1 else hash_,
            "transaction": page["data"][number]["transaction"],
        }
        for number, row in enumerate(ROWS)
    ]
    assert page["data"] == expected

    response = client.get(path, headers=account.headers | {"Accept": NDJSON_TYPE})
    assert response.headers["content-type"].startswith(NDJSON_TYPE)
    assert response.headers["content-disposition"] == 'attachment; filename="results.ndjson"'
    assert [json.loads(line) for line in response.text.splitlines()] == expected
    assert response.text.endswith("\n")

    response = client.get(path, headers=account.headers | {"Accept": CSV_TYPE})
    assert response.headers["content-type"].startswith(CSV_TYPE)
    assert response.headers["content-disposition"] == 'attachment; filename="results.csv"'
    rows = list(csv.reader(io.StringIO(response.text, newline=""), strict=True))
    assert rows == [
        COLUMNS,
        ["0", "a@example.com", "100", "1.00", "order 1", "allocated", hash_, expected[0]["transaction"]],
        ["1", "b@example.com", "20", "0.20", "'=order, 2", "allocated", other_hash, expected[1]["transaction"]],
        ["2", "a@example.com", "3", "0.03", "", "allocated", hash_, expected[2]["transaction"]],
    ]
    for row in expected:
        transaction = read(client, account, f"/payout/transactions/{row['transaction']}")
        assert (transaction["email"], transaction["amount"]) == (row["email"], row["amount"])


def test_results_before_the_end_are_pending_and_after_a_cancelling_cancelled(
    system: System, client: httpx.Client, account: Account
) -> None:
    rows = [BatchRow("a@example.com", 100), BatchRow("b@example.com", 20, "x"), BatchRow("a@example.com", 3)]
    id_ = accept_unsent(system, account, *rows)
    batch_id = format_id(IdKind.BATCH, id_)
    pending = results_of(client, account, batch_id)
    assert [(row["outcome"], row["hash"], row["transaction"]) for row in pending] == [("pending", None, None)] * 3
    assert read(client, account, f"{PATH}/{batch_id}")["status"] == "queued"

    pay_by_hand(system, account, id_, 0, 1)
    document = read(client, account, f"{PATH}/{batch_id}")
    assert (document["status"], document["processed"], document["allocated_amount"]) == ("processing", 1, 100)
    shown = results_of(client, account, batch_id)
    assert [row["outcome"] for row in shown] == ["allocated", "pending", "pending"]
    assert shown[0]["hash"] is not None
    assert shown[2]["hash"] is None  # the same person's

    with system.database.transaction() as connection:
        payment.cancel(connection, account.business.id, id_)
    document = read(client, account, f"{PATH}/{batch_id}")
    assert (document["status"], document["processed"], document["allocated_amount"]) == ("cancelled", 1, 100)
    assert document["finished_at"] == document["updated_at"]
    for accept in (NDJSON_TYPE, CSV_TYPE):
        text = client.get(f"{PATH}/{batch_id}/results", headers=account.headers | {"Accept": accept}).text
        assert (text.count("allocated"), text.count("cancelled"), text.count("pending")) == (1, 2, 0)
    assert read(client, account, "/balance")["payout_balance"] == FUNDS_CENTS - 100


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
def test_pages_of_results_follow_each_other_in_the_rows_order(
    system: System, client: httpx.Client, account: Account, limit: int
) -> None:
    batch_id = format_id(IdKind.BATCH, accept_unsent(system, account, *[BatchRow("a@example.com", 1)] * 4))
    seen: list[int] = []
    parameters: dict[str, Any] = {"limit": limit}
    while True:
        page = read(client, account, f"{PATH}/{batch_id}/results", **parameters)
        seen += [row["row"] for row in page["data"]]
        assert page["has_more"] == (page["next_cursor"] is not None)
        assert len(page["data"]) == limit or not page["has_more"]
        if not page["has_more"]:
            break
        parameters["cursor"] = page["next_cursor"]
    assert seen == [0, 1, 2, 3]


def test_the_whole_result_comes_in_one_stream_however_many_rows_it_has(
    system: System, client: httpx.Client, account: Account
) -> None:
    rows = [BatchRow(f"user{number}@example.com", 1 + number % 3) for number in range(4_000)]
    batch_id = format_id(IdKind.BATCH, accept_unsent(system, account, *rows))
    path = f"{PATH}/{batch_id}/results"
    text = client.get(path, headers=account.headers | {"Accept": NDJSON_TYPE}, params={"limit": 1}).text
    assert [json.loads(line)["row"] for line in text.splitlines()] == list(range(4_000))
    text = client.get(path, headers=account.headers | {"Accept": CSV_TYPE}).text
    found = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert [(row["email"], int(row["amount_cents"])) for row in found] == [
        (row.email, row.amount_cents) for row in rows
    ]


@pytest.mark.parametrize("path", [PATH, f"{PATH}/{{}}/results"])
def test_parameters_that_are_wrong_are_refused(
    system: System, client: httpx.Client, account: Account, path: str
) -> None:
    id_ = accept_unsent(system, account, BatchRow("a@example.com", 1))
    path = path.format(format_id(IdKind.BATCH, id_))
    foreign = results_cursor(0) if path == PATH else batches_cursor(id_)
    for cursor in ("", "x", users_cursor(id_), foreign):
        response = client.get(path, params={"cursor": cursor}, headers=account.headers)
        assert (response.status_code, response.json()) == (400, {"cursor": ["The cursor is invalid."]})
    response = client.get(path, params={"limit": 101}, headers=account.headers)
    assert (response.status_code, response.json()) == (400, {"limit": ["The limit may not be greater than 100."]})


def test_a_cursor_behind_the_end_is_an_empty_page(system: System, client: httpx.Client, account: Account) -> None:
    batch_id = format_id(IdKind.BATCH, accept_unsent(system, account, BatchRow("a@example.com", 1)))
    empty = {"data": [], "has_more": False, "next_cursor": None}
    for row in (0, 1, 2**24 - 1):
        assert read(client, account, f"{PATH}/{batch_id}/results", cursor=results_cursor(row)) == empty


# Lists, and what is whose


def test_batches_are_listed_newest_first(client: httpx.Client, account: Account) -> None:
    assert read(client, account, PATH) == {"data": [], "has_more": False, "next_cursor": None}
    ids = [pay(client, account, UNNAMED_ROWS[:count]) for count in (1, 2, 3)][::-1]
    documents = [read(client, account, f"{PATH}/{id_}") for id_ in ids]
    assert read(client, account, PATH)["data"] == documents
    first = read(client, account, PATH, limit=2)
    assert (first["data"], first["has_more"]) == (documents[:2], True)
    rest = read(client, account, PATH, limit=2, cursor=first["next_cursor"])
    assert rest == {"data": documents[2:], "has_more": False, "next_cursor": None}

    text = client.get(PATH, headers=account.headers | {"Accept": NDJSON_TYPE}).text
    assert [json.loads(line) for line in text.splitlines()] == documents
    text = client.get(PATH, headers=account.headers | {"Accept": CSV_TYPE}).text
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert [(row["id"], row["amount_cents"], row["amount_dollars"]) for row in rows] == [
        (ids[0], "123", "1.23"),
        (ids[1], "120", "1.20"),
        (ids[2], "100", "1.00"),
    ]
    assert [row["finished_at"] for row in rows] == [document["finished_at"] for document in documents]


@pytest.mark.parametrize("suffix", ["", "/results"])
@pytest.mark.parametrize("accept", ["application/json", CSV_TYPE, NDJSON_TYPE])
def test_all_that_is_not_the_callers_answers_404_alike(
    system: System, client: httpx.Client, account: Account, suffix: str, accept: str
) -> None:
    foreign = format_id(
        IdKind.BATCH, accept_unsent(system, open_account(system.database), BatchRow("a@example.com", 1))
    )
    own = format_id(IdKind.BATCH, accept_unsent(system, account, BatchRow("a@example.com", 1)))
    digits = own.removeprefix("bat_")
    ids = [foreign, format_id(IdKind.BATCH, new_id()), digits, f"BAT_{digits}", f"txn_{digits}", f"{own}0", "x", "%ff"]
    headers = account.headers | {"Accept": accept}
    for id_ in ids:
        response = client.get(f"{PATH}/{id_}{suffix}", headers=headers)
        assert (response.status_code, response.json()) == (404, NOT_FOUND)
        assert response.headers["content-type"] == "application/json"
    assert client.get(f"{PATH}/{own}{suffix}", headers=headers).status_code == 200
    assert foreign not in client.get(PATH, headers=headers).text


def test_a_test_key_pays_from_the_twin_and_sees_its_batches_alone(
    system: System, client: httpx.Client, account: Account
) -> None:
    with system.database.transaction() as connection:
        twin_business = get_business(connection, account.business.twin_id)
        key, secret_key = api_keys.create_api_key(connection, twin_business.id, KeyKind.SECRET)
    twin = Account(twin_business, key.id, secret_key)
    live_id, test_id = pay(client, account, ROWS, key="key"), pay(client, twin, ROWS, key="key")
    assert live_id != test_id
    assert read(client, account, "/balance")["payout_balance"] == FUNDS_CENTS - 123
    assert read(client, twin, "/balance")["payout_balance"] == PLAY_MONEY_CENTS - 123
    for own, id_, foreign in ((account, live_id, test_id), (twin, test_id, live_id)):
        assert [batch["id"] for batch in read(client, own, PATH)["data"]] == [id_]
        assert client.get(f"{PATH}/{foreign}", headers=own.headers).status_code == 404
        assert client.get(f"{PATH}/{foreign}/results", headers=own.headers).status_code == 404
    live_hash, test_hash = (
        results_of(client, own, id_)[0]["hash"] for own, id_ in ((account, live_id), (twin, test_id))
    )
    assert live_hash != test_hash


# What else shows a batch


def test_reserved_money_is_out_of_the_balance_and_not_to_be_spent(
    system: System, client: httpx.Client, account: Account
) -> None:
    id_ = accept_unsent(system, account, BatchRow("a@example.com", FUNDS_CENTS - 100), BatchRow("b@example.com", 50))
    assert read(client, account, "/balance") == {"balance": 0, "payout_balance": 50}
    with system.database.transaction() as connection:
        set_payouts_enabled(connection, account.business.id, enabled=True)
    assert system.pay(client, account, "c@example.com", 51).json() == INSUFFICIENT
    assert send(client, account, [{"email": "c@example.com", "amount": 51}]).json() == INSUFFICIENT
    assert system.pay(client, account, "c@example.com", 50).status_code == 201
    with system.database.transaction() as connection:
        payment.cancel(connection, account.business.id, id_)
    assert read(client, account, "/balance")["payout_balance"] == FUNDS_CENTS - 50


def test_one_email_in_several_spellings_is_one_user(client: httpx.Client, account: Account) -> None:
    spellings = ["jo@bücher.example", "JO@Bücher.Example", " jo@xn--bcher-kva.example ", "Jo@BU\u0308CHER.example"]
    batch_id = pay(client, account, [{"email": email, "amount": 10} for email in spellings])
    (user,) = read(client, account, "/payout/users")["data"]
    assert (user["email"], user["balance"]) == ("jo@xn--bcher-kva.example", 40)
    results = results_of(client, account, batch_id)
    assert len({row["hash"] for row in results}) == 1
    assert {row["email"] for row in results} == {user["email"]}
    hash_ = results[0]["hash"]
    assert read(client, account, "/payout/user", payout_hash=hash_)["balance"] == 40
    own = client.get("/payout/history", headers={"X-Payout-Hash": hash_}).json()["data"]
    assert [row["balance_after"] for row in own] == [40, 30, 20, 10]
    assert "batch" not in own[0]


def test_the_history_names_the_batch_and_runs_on(system: System, client: httpx.Client, account: Account) -> None:
    system.pay(client, account, "a@example.com", 1_000)
    batch_id = pay(client, account, ROWS)
    system.pay(client, account, "a@example.com", 5)
    rows = read(client, account, "/payout/transactions", type="allocation")["data"]
    assert [(row["email"], row["amount"], row["user_balance_after"], row["batch"]) for row in rows] == [
        ("a@example.com", 5, 1_108, None),
        ("a@example.com", 3, 1_103, batch_id),
        ("b@example.com", 20, 20, batch_id),
        ("a@example.com", 100, 1_100, batch_id),
        ("a@example.com", 1_000, 1_000, None),
    ]
    assert [row["payout_balance_after"] for row in rows] == [
        FUNDS_CENTS - 1_128,
        *[FUNDS_CENTS - 1_123] * 3,
        FUNDS_CENTS - 1_000,
    ]
    assert [row["id"] for row in rows[1:4]] == [row["transaction"] for row in results_of(client, account, batch_id)][
        ::-1
    ]
    (funding,) = read(client, account, "/payout/transactions", type="funding")["data"]
    assert funding["batch"] is None
    text = client.get("/payout/transactions", headers=account.headers | {"Accept": CSV_TYPE}).text
    exported = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert [row["batch"] for row in exported] == ["", batch_id, batch_id, batch_id, "", ""]


def test_an_inactive_user_is_paid_and_stays_locked_out(system: System, client: httpx.Client, account: Account) -> None:
    hash_ = system.pay(client, account, "a@example.com", 1).json()["hash"]
    (user,) = read(client, account, "/payout/users")["data"]
    client.patch(f"/payout/users/{user['id']}", json={"status": "inactive"}, headers=account.headers)
    batch_id = pay(client, account, ROWS)
    assert results_of(client, account, batch_id)[0]["hash"] == hash_
    shown = read(client, account, f"/payout/users/{user['id']}")
    assert (shown["balance"], shown["status"]) == (104, "inactive")
    assert client.get("/payout/user", headers={"X-Payout-Hash": hash_}).status_code == 401


def test_neither_e_mails_nor_hashes_of_a_batch_are_logged(
    system: System, client: httpx.Client, account: Account
) -> None:
    batch_id = pay(client, account, [{"email": "secretive@example.com", "amount": 1, "reference": "hush-hush"}])
    hash_ = results_of(client, account, batch_id)[0]["hash"]
    send(client, account, content="email,amount\nsecretive,x\n", content_type=CSV_TYPE)
    logs = system.logs()
    assert all(secret not in logs for secret in ("secretive", "hush-hush", hash_, account.secret_key))
