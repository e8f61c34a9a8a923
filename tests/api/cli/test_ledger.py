"""The commands for the whole ledger."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from core.database.connection import Database
from core.database.revision import REQUIRED_REVISION
from core.database.roles import read_standing
from tests.api.cli.command_line import Run, add_user, start
from tests.servers import HASH_SECRET, Servers


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
        "alterations": [],
        "alterations_count": 0,
        "seals_compared": False,
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


@pytest.fixture
def sealed(payouts: Run, monkeypatch: pytest.MonkeyPatch, acme: dict[str, Any]) -> Run:
    """Run commands with the hash secret, on a business whose history is sealed by the first head."""
    monkeypatch.setenv("PAYOUTS_HASH_SECRET", HASH_SECRET)
    return payouts


def rewrite(database: Database, statement: str) -> None:
    with database.transaction() as connection:
        connection.execute(sa.text("SET LOCAL payouts.rewrite_history = 'on'"))
        connection.execute(sa.text(statement))


def test_a_row_that_was_rewritten_is_named(sealed: Run, database: Database) -> None:
    assert sealed("head").document["businesses"]
    assert sealed("verify", "--json").document["seals_compared"]
    rewrite(database, "UPDATE payout_transactions SET created_at = created_at - interval '1 s' WHERE amount = 5000")
    found = sealed("verify", "--json")
    (altered,) = json.loads(found.stdout)["alterations"]
    assert (found.exit_code, altered["id"][:4]) == (1, "txn_")
    lines = sealed("verify").stdout.splitlines()
    assert "was changed after it was sealed (20" in lines[0]
    assert lines[-1].startswith("The books do not balance in 1 places")


def test_a_head_tells_what_was_lost_since(sealed: Run, database: Database, tmp_path: Path) -> None:
    head = tmp_path / "head.json"
    assert sealed("head", "--output", str(head)).stdout == ""
    sealed("head", "--output", str(tmp_path / "nowhere" / "head.json")).assert_refused("cannot be written")
    assert sealed("verify", "--against", str(head)).exit_code == 0
    rewrite(database, "TRUNCATE payout_transactions, main_transactions, audit_log, row_seals")
    rewrite(database, "DELETE FROM history_seals")
    rewrite(database, "UPDATE businesses SET balance = 0, payout_balance = 0, last_sequence = 0")
    assert "history rows 1 to 1 are missing, which the head of" in sealed("verify", "--against", str(head)).stdout


def test_heads_that_cannot_be_compared_are_refused_in_one_line(
    sealed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = sealed("head").document
    assert isinstance(document, dict)
    head = tmp_path / "head.json"
    sealed("verify", "--against", str(head)).assert_refused("cannot be read (No such file or directory)")
    sealed("verify", "--against", str(tmp_path)).assert_refused("cannot be read (Is a directory)")
    for change, text in (
        ({"signature": "00"}, "signature is broken"),
        ({"installation": "0" * 32}, "another installation's"),
        ({"version": 7}, "version 7"),
    ):
        head.write_text(json.dumps(document | change))
        sealed("verify", "--against", str(head)).assert_refused(text)
    head.write_text(json.dumps(document))
    monkeypatch.delenv("PAYOUTS_HASH_SECRET")
    sealed("verify", "--against", str(head)).assert_refused("PAYOUTS_HASH_SECRET is not set")
    sealed("head").assert_refused("PAYOUTS_HASH_SECRET is not set", exit_code=1)
    assert "Seals were not compared, because PAYOUTS_HASH_SECRET is not set." in sealed("verify").stdout


def test_two_roles_are_made_where_migrations_have_a_url_of_their_own(servers: Servers) -> None:
    url = servers.create(f"test_{uuid4().hex}")
    name = f"app_{uuid4().hex}"
    runtime = sa.make_url(url).set(username=name).render_as_string(hide_password=False)
    variables = {"PAYOUTS_DATABASE_URL": runtime, "PAYOUTS_MIGRATION_DATABASE_URL": url}
    assert start("migrate", "--json", **variables).document == {"revision": REQUIRED_REVISION}
    assert start("business", "create", "ACME", "--json", PAYOUTS_DATABASE_URL=runtime).document["name"] == "ACME"
    assert start("verify", PAYOUTS_DATABASE_URL=runtime).exit_code == 0
    with Database(runtime, transaction_timeout_s=5) as database, database.transaction() as connection:
        assert not read_standing(connection).may_rewrite_history
