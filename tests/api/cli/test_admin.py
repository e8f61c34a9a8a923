"""All administrators' commands: what they print, how they end, and what they leave in the audit log."""

from pathlib import Path
from typing import Any

import pytest

from api.local.data_dir import DataDir
from core.database.connection import Database
from core.ids import IdKind, parse_id
from core.parties.audit import list_entries
from tests.api.cli.command_line import UNREACHABLE, Run, add_user, start

# The real command


def test_command_prints_one_document_on_stdout_and_nothing_else(database_url: str) -> None:
    created = start("business", "create", "ACME", "--json", PAYOUTS_DATABASE_URL=database_url)
    assert created.document["name"] == "ACME"


def test_command_prints_an_error_on_stderr_and_exits_1(database_url: str) -> None:
    start("business", "show", "Nobody", "--json", PAYOUTS_DATABASE_URL=database_url).assert_refused("'Nobody'")


def test_command_exits_2_at_wrong_usage(database_url: str) -> None:
    refused = start("business", "create", "ACME", "--funds", "-1", PAYOUTS_DATABASE_URL=database_url)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--funds" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("command", ["business show", "user show", "user deactivate", "key roll"])
def test_argument_that_is_not_unicode_is_refused_without_a_traceback(database_url: str, command: str) -> None:
    refused = start(*command.split(), "\udcff@example.com", PAYOUTS_DATABASE_URL=database_url)
    assert refused.exit_code in (1, 2)
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("command", ["business list", "migrate", "verify"])
def test_unreachable_database_is_one_line_without_the_password(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("PAYOUTS_DATABASE_URL", UNREACHABLE)
    refused = run(*command.split(), "--json")
    # What the books are like, nobody knows then.
    refused.assert_refused("cannot be reached", exit_code=2 if command == "verify" else 1)
    assert "hunter2" not in refused.stderr


@pytest.mark.parametrize("url", ["mysql://u:hunter2@host/name", "hunter2", "postgresql://u:hunter2@host:port/name"])
def test_wrong_database_url_is_named_without_its_content(run: Run, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PAYOUTS_DATABASE_URL", url)
    refused = run("business", "list")
    refused.assert_refused("PAYOUTS_DATABASE_URL", exit_code=2)
    assert "hunter2" not in refused.stderr


def test_without_database_the_way_out_is_named(run: Run, tmp_path: Path) -> None:
    run("business", "list").assert_refused("payouts up")
    run("business", "list", "--data-dir", str(tmp_path / "none")).assert_refused(str(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_data_dir_goes_before_the_environment(
    run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAYOUTS_DATABASE_URL", UNREACHABLE)
    DataDir(tmp_path).write_settings({"PAYOUTS_DATABASE_URL": database_url})
    assert run("business", "list", "--data-dir", str(tmp_path), "--json").document == []


def test_without_settings_the_default_data_dir_is_used(run: Run, database_url: str, tmp_path: Path) -> None:
    (tmp_path / ".payouts").mkdir()
    DataDir(tmp_path / ".payouts").write_settings({"PAYOUTS_DATABASE_URL": database_url})
    assert run("business", "list").stdout == "There are no businesses yet.\n"


# Help


@pytest.mark.parametrize(
    "command",
    ["", "up", "migrate", "business create", "key create", "key roll", "user show", "user deactivate", "verify"],
)
def test_help_needs_no_database(run: Run, command: str) -> None:
    helped = run(*command.split(), "--help")
    assert helped.exit_code == 0
    assert "Usage" in helped.stdout


def test_unknown_command_is_wrong_usage(run: Run) -> None:
    assert run("nonsense").exit_code == 2


def read_log(database: Database, business: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (action, subject, details), oldest first; all by the command line."""
    business_id = parse_id(IdKind.BUSINESS, business["id"])
    assert business_id is not None
    with database.transaction() as connection:
        entries = list_entries(connection, business_id, 100)
    assert {entry.actor for entry in entries} == {"command line"}
    return [(entry.action, entry.subject, entry.details) for entry in reversed(entries)]


def test_every_change_is_in_the_audit_log(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    payouts("business", "disable", "ACME")
    payouts("business", "enable", "ACME")
    payouts("business", "fund", "ACME", "7")
    payouts("business", "deposit", "ACME", "8")
    key = payouts("key", "create", "ACME", "--name", "shop", "--json").document
    rolled = payouts("key", "roll", key["id"], "--grace", "1h", "--json").document
    payouts("key", "revoke", rolled["id"])
    user_id = add_user(database, acme, "user@example.com", 5)
    payouts("user", "deactivate", "ACME", "user@example.com")
    payouts("user", "activate", "ACME", "user@example.com")
    payouts("member", "invite", "ACME", "Ada@Example.com", "--role", "viewer")
    payouts("member", "remove", "ACME", "ada@example.com")
    described = {"kind": "secret", "last4": key["last4"], "name": "shop"}
    replaced = described | {"replaced_by": rolled["id"], "grace_s": 3600}
    email = {"email": "user@example.com"}
    assert [entry for entry in read_log(database, acme) if entry[0] != "key.created"] == [
        ("business.created", "", {"name": "ACME"}),
        ("business.funded", "", {"amount": 5000}),
        ("payouts.disabled", "", {}),
        ("payouts.enabled", "", {}),
        ("business.funded", "", {"amount": 7}),
        ("business.deposited", "", {"amount": 8}),
        ("key.rolled", key["id"], replaced),
        ("key.revoked", rolled["id"], described | {"last4": rolled["last4"]}),
        ("user.deactivated", user_id, email),
        ("user.activated", user_id, email),
        ("member.invited", "ada@example.com", {"role": "viewer"}),
        ("invitation.withdrawn", "ada@example.com", {}),
    ]
    assert ("key.created", key["id"], described) in read_log(database, acme)


def test_what_is_so_already_leaves_no_entry(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    add_user(database, acme, "user@example.com", 5)
    key = payouts("key", "create", "ACME", "--json").document
    changes = (
        ("business", "disable", "ACME"),
        ("user", "deactivate", "ACME", "user@example.com"),
        ("key", "revoke", key["id"]),
    )
    first = [payouts(*change, "--json").document for change in changes]
    before = read_log(database, acme)
    assert [payouts(*change, "--json").document for change in changes] == first
    assert read_log(database, acme) == before


def test_what_is_refused_leaves_no_entry(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    before = read_log(database, acme)
    payouts("business", "fund", "ACME", str(10**18)).assert_refused("payout balance may not")
    payouts("member", "remove", "ACME", "nobody@example.com").assert_refused("There is no member")
    assert read_log(database, acme) == before
