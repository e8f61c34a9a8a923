"""The lines of requests, and the ids by which a request is followed to the worker and back."""

import json
import time
from typing import Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa

from api.local.valkey import EmbeddedValkey
from core.credentials import email_digest
from tests.polling import wait_until
from tests.servers import HASH_SECRET, Account, Parts, Servers, System, open_account, run_system
from workers.app import NAMES_HEADER
from workers.broker.consumer import names_in

Line = dict[str, Any]


def read_lines(system: System) -> list[Line]:
    """Return what all processes logged; every line of it must be JSON."""
    lines = [json.loads(line) for line in system.logs().splitlines()]
    assert all(list(line)[:6] == ["time", "level", "process", "pid", "logger", "message"] for line in lines)
    return lines


def find_lines(system: System, request_id: str, *, count: int = 1, timeout_s: float = 15) -> list[Line]:
    """Return the lines that name a request, once there are so many."""

    def find() -> list[Line]:
        return [
            line
            for line in read_lines(system)
            if line.get("request_id") == request_id or request_id in line.get("request_ids", [])
        ]

    wait_until(lambda: len(find()) >= count, find, timeout_s)
    return find()


def pay(client: httpx.Client, account: Account, request_id: str | None, **body: Any) -> httpx.Response:
    headers = account.headers | ({"X-Request-Id": request_id} if request_id else {})
    return client.post("/payout/create", json={"email": "user@example.com", "amount": 1} | body, headers=headers)


def test_a_call_that_pays_is_one_line(system: System, client: httpx.Client, account: Account) -> None:
    request_id = pay(client, account, None).headers["x-request-id"]
    (line,) = find_lines(system, request_id)
    assert line.pop("duration_ms") > 0
    business = f"biz_{account.business.id.hex}"
    history = client.get("/payout/transactions?type=allocation", headers=account.headers).json()["data"]
    assert [row["id"] for row in history] == [f"txn_{request_id}"]
    assert {key: line[key] for key in list(line)[2:] if key != "pid"} == {
        "process": "web",
        "logger": "api.web.request_log",
        "message": "POST /payout/create 201",
        "request_id": request_id,
        "method": "POST",
        "path": "/payout/create",
        "status": 201,
        "outcome": "allocated",
        "route": "/payout/create",
        "business_id": business,
        "allocation_id": f"txn_{request_id}",
    }


def test_the_callers_own_request_id_is_kept(system: System, client: httpx.Client, account: Account) -> None:
    request_id = f"caller:{uuid4()}"
    assert pay(client, account, request_id).headers["x-request-id"] == request_id
    (line,) = find_lines(system, request_id)
    (row,) = client.get("/payout/transactions?type=allocation", headers=account.headers).json()["data"]
    assert line["allocation_id"] == row["id"]


@pytest.mark.parametrize("request_id", ["", "x" * 129, "two words", "é", "me@example.com", "sk_live_x", "0a" * 32])
def test_an_odd_request_id_is_replaced(client: httpx.Client, request_id: str) -> None:
    response = client.get("/health/live", headers={b"X-Request-Id": request_id.encode()})
    assert len(bytes.fromhex(response.headers["x-request-id"])) == 16
    assert response.headers["x-request-id"] != request_id


@pytest.mark.parametrize(
    ("method", "path", "shown", "status", "outcome"),
    [
        ("GET", "/balance?secret=1", "/balance", 200, "ok"),
        ("GET", "/payout/transactions/txn_" + "0" * 32, "/payout/transactions/txn_" + "0" * 32, 404, "not_found"),
        ("GET", "/payout/users/me", "/payout/users/…", 404, "not_found"),
        ("GET", "/pay-outs/create", "/…/create", 404, "not_found"),
        ("DELETE", "/payout/create", "/payout/create", 405, "method_not_allowed"),
        ("POST", "/payout/create", "/payout/create", 400, "invalid"),
        ("POST", "/payout/batches", "/payout/batches", 400, "invalid"),
        ("GET", "/schema/openapi.json", "/schema/openapi.json", 200, "ok"),
    ],
)
def test_each_request_is_a_line_without_query_and_without_what_is_not_ours(
    system: System,
    client: httpx.Client,
    account: Account,
    method: str,
    path: str,
    shown: str,
    status: int,
    outcome: str,
) -> None:
    request_id = f"r-{uuid4()}"
    response = client.request(method, path, headers=account.headers | {"X-Request-Id": request_id})
    assert response.status_code == status
    (line,) = find_lines(system, request_id)
    assert (line["path"], line["status"], line["outcome"], line["method"]) == (shown, status, outcome, method)


def test_refusals_name_their_outcome(system: System, client: httpx.Client, account: Account) -> None:
    poor = f"poor-{uuid4()}"
    assert pay(client, account, poor, amount=100_000_000).status_code == 400
    (line,) = find_lines(system, poor)
    assert line["outcome"] == "insufficient_balance"


def test_an_accepted_batch_is_named(system: System, client: httpx.Client, account: Account) -> None:
    request_id = f"batch-{uuid4()}"
    rows = {"allocations": [{"email": "user@example.com", "amount": 1}]}
    headers = account.headers | {"X-Request-Id": request_id}
    batch = client.post("/payout/batches", json=rows, headers=headers).json()
    (line,) = find_lines(system, request_id)
    assert (line["batch_id"], line["business_id"]) == (batch["id"], f"biz_{account.business.id.hex}")


def test_health_probes_are_no_lines(system: System, client: httpx.Client) -> None:
    request_id = f"probe-{uuid4()}"
    client.get("/health/ready", headers={"X-Request-Id": request_id})
    client.get("/balance", headers={"X-Request-Id": f"after-{request_id}"})
    find_lines(system, f"after-{request_id}")
    with pytest.raises(AssertionError):
        find_lines(system, request_id, timeout_s=0)


def test_one_search_follows_a_request_to_the_sql_error_and_back(
    system: System, client: httpx.Client, account: Account
) -> None:
    """The worker's statement fails, is sent again and again, and is resolved at the deadline."""
    assert pay(client, account, None).status_code == 201
    request_id = f"fails-{uuid4()}"
    set_balance = sa.text("UPDATE payout_users SET balance = balance + :more WHERE business_id = :id")
    more = 2**63 - 1000
    with system.database.transaction() as connection:
        connection.execute(set_balance, {"more": more, "id": account.business.id})
    try:
        assert pay(client, account, request_id, amount=2000).status_code == 500
    finally:
        with system.database.transaction() as connection:
            connection.execute(set_balance, {"more": -more, "id": account.business.id})
    time.sleep(0.5)
    lines = find_lines(system, request_id, count=4)
    (request,) = [line for line in lines if line["logger"] == "api.web.request_log"]
    assert (request["status"], request["outcome"], request["level"]) == (500, "expired", "warning")
    failures = [line for line in lines if line["logger"] == "workers.tasks.allocations"]
    assert failures[0]["process"] == "worker"
    assert failures[0]["error"] == "NumericValueOutOfRange (SQLSTATE 22003)"
    assert failures[0]["place"].startswith("core/")
    assert failures[0]["users"] == [email_digest(HASH_SECRET.encode(), "user@example.com")]
    for line in lines:
        assert line.get("allocation_ids", [request["allocation_id"]]) == [request["allocation_id"]]
    messages = " ".join(line["message"] for line in lines)
    assert "a group of 1 is sent again" in messages
    assert "1 allocations were resolved at their deadline: expired" in messages


def test_a_worker_that_cannot_open_a_message_names_what_was_in_it(servers: Servers, valkey: EmbeddedValkey) -> None:
    """A worker with another hash secret drops the message; both sides name the request."""
    other_secret = {"PAYOUTS_HASH_SECRET": "quite another secret, long enough for it"}
    parts = Parts(variables={"worker": other_secret}, is_waited_for=False)
    with run_system(servers, parts, redis_url=valkey.url, reply_timeout_s="4") as system, system.client() as client:
        account = open_account(system.database)
        wait_until(
            lambda: client.get("/health/live").status_code, timeout_s=30, passing=(httpx.TransportError,), pause_s=0.1
        )
        request_id = f"unread-{uuid4()}"
        assert pay(client, account, request_id).status_code == 500
        time.sleep(0.5)
        lines = find_lines(system, request_id, count=4)
    (request,) = [line for line in lines if line["logger"] == "api.web.request_log"]
    dropped = [line for line in lines if line["process"] == "worker"]
    assert "sealed with another PAYOUTS_HASH_SECRET" in dropped[0]["message"]
    assert dropped[0]["allocation_ids"] == [request["allocation_id"]]
    told = [line for line in lines if line["message"] == "a worker could not carry out a group of 1"]
    assert dropped[0]["task_id"] in {line["task_id"] for line in told}


def test_a_strangers_headers_are_not_believed() -> None:
    good = {"allocations": 1, "allocation_ids": ["txn_" + "0" * 32], "request_ids": ["r"]}
    task_id = "api-" + "0" * 16 + "-" + "1" * 32
    assert names_in({"id": task_id, NAMES_HEADER: good}) == good | {"task_id": task_id}
    nothing: Line = {"task_id": None, "allocations": None, "allocation_ids": [], "request_ids": []}
    email = "somebody@example.com"
    bad: list[object] = [
        None,
        [],
        email,
        {"allocation_ids": email},
        {"allocations": "1", "request_ids": [email, 1, None]},
    ]
    for names in bad:
        assert names_in({"id": email, NAMES_HEADER: names}) == nothing
    assert names_in(None) == {}
    many = names_in({NAMES_HEADER: {"request_ids": ["r"] * 1000}})
    assert len(many["request_ids"]) == 20


def test_the_request_log_can_be_switched_off(servers: Servers) -> None:
    with run_system(servers, access_log="false") as system, system.client() as client:
        account = open_account(system.database)
        assert pay(client, account, "quiet-1").headers["x-request-id"] == "quiet-1"
        time.sleep(0.3)
        assert "quiet-1" not in system.logs()
