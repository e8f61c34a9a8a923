"""The commands for the whole ledger."""

import json
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from core.database.connection import Database
from core.database.revision import REQUIRED_REVISION
from tests.api.cli.command_line import Run, add_user, start
from tests.servers import Servers


def test_migrate_prints_only_its_document(servers: Servers) -> None:
    url = servers.create(f"test_{uuid4().hex}")
    assert start("migrate", "--json", PAYOUTS_DATABASE_URL=url).document == {"revision": REQUIRED_REVISION}


def test_migrating_twice_is_the_same_as_once(payouts: Run) -> None:
    assert payouts("migrate").stdout == f"The database is at revision {REQUIRED_REVISION}.\n"
    assert payouts("migrate", "--json").document == {"revision": REQUIRED_REVISION}


@pytest.mark.parametrize("command", ["business list", "business create ACME", "verify", "user show a@b.example"])
def test_unmigrated_database_asks_for_migrate(
    run: Run, servers: Servers, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("PAYOUTS_DATABASE_URL", servers.postgres_url)
    run(*command.split()).assert_refused("payouts migrate", exit_code=2 if command == "verify" else 1)


def test_books_balance(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    add_user(database, acme, "user@example.com", 100)
    assert payouts("verify", "--json").document == {
        "businesses": 2,
        "payout_users": 1,
        "transactions": 3,
        "discrepancies": [],
        "balanced": True,
    }
    assert payouts("verify").stdout.startswith("The books balance")


def test_changed_balance_of_a_user_is_named(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    user_id = add_user(database, acme, "user@example.com", 100)
    with database.transaction() as connection:
        connection.execute(sa.text("UPDATE payout_users SET balance = balance + 1"))
    found = payouts("verify", "--json")
    assert (found.exit_code, found.stderr) == (1, "")
    document = json.loads(found.stdout)
    assert document["balanced"] is False
    (discrepancy,) = document["discrepancies"]
    assert (discrepancy["id"], discrepancy["expected_cents"], discrepancy["actual_cents"]) == (user_id, 100, 101)
    assert "user@example.com" not in found.stdout


def test_changed_balance_of_a_business_is_named(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    with database.transaction() as connection:
        connection.execute(sa.text("UPDATE businesses SET payout_balance = 4999 WHERE mode = 'live'"))
    found = payouts("verify")
    assert found.exit_code == 1
    assert found.stdout.startswith(f"{acme['id']}: ")
    assert "expected 5000 cents, found 4999" in found.stdout
    assert "do not balance" in found.stdout
