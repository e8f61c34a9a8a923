"""The whole service with PgBouncer before its database: every call, every command."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from core.ids import IdKind, format_id
from tests.polling import wait_until
from tests.servers import ROOT, Account, Servers, System, open_account, run_system, verify_books


@pytest.fixture(scope="module")
def system(servers: Servers) -> Iterator[System]:
    with run_system(servers, database_pooler="transaction") as running:
        yield running


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[httpx.Client]:
    with system.client() as opened:
        yield opened


@pytest.fixture
def account(system: System) -> Account:
    return open_account(system.database)


def run_payouts(system: System, *arguments: str) -> Any:
    command = [f"{sys.prefix}/bin/payouts", *arguments, "--json"]
    ended = subprocess.run(command, cwd=ROOT, env=system.environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended
    return json.loads(ended.stdout)


def test_its_processes_know_the_pooler_alone(system: System) -> None:
    assert "@127.0.0.1:" in system.environment["PAYOUTS_DATABASE_URL"]
    assert system.environment["PAYOUTS_DATABASE_POOLER"] == "transaction"


def test_calls_pay_replay_and_refuse(system: System, client: httpx.Client, account: Account) -> None:
    headers = account.headers | {"Idempotency-Key": "order-1"}
    body = {"email": "user@example.com", "amount": 400_000}
    first, second = (client.post("/payout/create", json=body, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert first.json() == second.json()
    assert system.pay(client, account, "user@example.com", 700_000).json() == {"error": "Insufficient payout balance"}
    assert client.get("/balance", headers=account.headers).json()["payout_balance"] == 600_000


def test_lists_exports_and_users_are_read_and_written(system: System, client: httpx.Client, account: Account) -> None:
    for number in range(30):
        assert system.pay(client, account, f"user{number}@example.com", 1 + number).status_code == 201
    page = client.get("/payout/transactions?type=allocation", headers=account.headers).json()
    assert [row["amount"] for row in page["data"]] == list(range(30, 5, -1))
    assert all(row["created_at"].endswith("Z") for row in page["data"])
    csv = client.get("/payout/transactions", headers=account.headers | {"Accept": "text/csv"})
    assert len(csv.text.splitlines()) == 1 + 30 + 1  # the head, the allocations, the funding
    user = client.get("/payout/users?email=user7@example.com", headers=account.headers).json()["data"][0]
    changed = client.patch(f"/payout/users/{user['id']}", json={"status": "inactive"}, headers=account.headers)
    assert changed.json()["status"] == "inactive"


def test_a_payout_batch_is_loaded_and_paid(client: httpx.Client, account: Account) -> None:
    rows = [{"email": f"batch{number % 900}@example.com", "amount": 1 + number % 7} for number in range(2_000)]
    accepted = client.post("/payout/batches", json={"allocations": rows}, headers=account.headers)
    assert accepted.status_code == 202, accepted.text

    def look() -> dict[str, Any]:
        return dict(client.get(accepted.headers["Location"], headers=account.headers).json())

    wait_until(lambda: look()["status"] == "completed", look, 30, pause_s=0.05)
    batch = look()
    assert batch["processed"] == 2_000
    assert client.get("/balance", headers=account.headers).json()["payout_balance"] == 1_000_000 - batch["amount"]


def test_a_revoked_key_pays_nothing_from_then_on(system: System, client: httpx.Client, account: Account) -> None:
    assert system.pay(client, account, "user@example.com", 1).status_code == 201
    (key,) = run_payouts(system, "key", "list", format_id(IdKind.BUSINESS, account.business.id))
    run_payouts(system, "key", "revoke", key["id"])
    assert system.pay(client, account, "user@example.com", 1).status_code == 401


def test_commands_migrate_create_and_prove(system: System) -> None:
    before = run_payouts(system, "migrate")["revision"]
    created = run_payouts(system, "business", "create", "Pooled", "--funds", "5", "--enable-payouts")
    assert created["payout_balance"] == 5, created
    assert run_payouts(system, "migrate")["revision"] == before
    assert run_payouts(system, "verify")["balanced"] is True
    assert verify_books(system.database).balanced


def test_no_process_complained(system: System) -> None:
    assert not [line for line in system.logs().splitlines() if "WARNING" in line or "ERROR" in line]
