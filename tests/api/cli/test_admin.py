"""The commands for administrators, on a real database: `main()` in this process, and a few as a subprocess."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from api.cli.main import main
from api.local.data_dir import DataDir
from core.admin_actions import accept_invitation
from core.credentials import digest_of
from core.database.connection import Database
from core.database.revision import REQUIRED_REVISION
from core.database.tables import businesses, payout_transactions, payout_users
from core.ids import IdKind, format_id, new_id, parse_id
from core.ledger.day_sums import sum_next
from core.parties.api_keys import NAME_MAX_CHARACTERS, find_secret_keys, write_last_used
from core.parties.audit import list_entries
from core.parties.businesses import get_business
from core.parties.payout_users import find_active_payout_user
from tests.servers import Servers

PAYOUTS = str(Path(sys.executable).with_name("payouts"))
UNREACHABLE = "postgresql://postgres:hunter2@127.0.0.1:1/payouts"
KEY_PREFIXES = {
    "secret_key": "sk_live_",
    "public_key": "pk_live_",
    "test_secret_key": "sk_test_",
    "test_public_key": "pk_test_",
}
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z"


@dataclass
class Result:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document that standard output is."""
        assert (self.exit_code, self.stderr) == (0, ""), self
        return json.loads(self.stdout)

    def assert_refused(self, text: str, exit_code: int = 1) -> None:
        assert (self.exit_code, self.stdout) == (exit_code, ""), self
        (line,) = self.stderr.splitlines()
        assert line.startswith("Error: "), self
        assert text in line

    def assert_wrong_usage(self, text: str) -> None:
        """Exit code 2, and a usage error which is drawn in a box, as wide as the terminal, and says the text once."""
        assert (self.exit_code, self.stdout) == (2, ""), self
        assert " ".join(self.stderr.replace("│", " ").split()).count(text) == 1, self
        assert "Traceback" not in self.stderr


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in an empty directory without settings."""
    for name in os.environ:
        if name.startswith("PAYOUTS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run_main(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["payouts", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code is None or isinstance(ended.value.code, int)
        return Result(ended.value.code or 0, *capsys.readouterr())

    return run_main


@pytest.fixture
def payouts(run: Run, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on a fresh, migrated database."""
    monkeypatch.setenv("PAYOUTS_DATABASE_URL", database_url)
    return run


@pytest.fixture
def acme(payouts: Run) -> dict[str, Any]:
    created = payouts("business", "create", "ACME", "--funds", "5000", "--enable-payouts", "--json").document
    assert isinstance(created, dict)
    return created


def start(*arguments: str, **variables: str) -> Result:
    """Run the real command."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PAYOUTS_")}
    done = subprocess.run([PAYOUTS, *arguments], capture_output=True, text=True, timeout=60, env=ours | variables)
    return Result(done.returncode, done.stdout, done.stderr)


def add_user(database: Database, business: dict[str, Any], email: str, cents: int) -> str:
    """Give a user an allocation, as the ledger's rows say it; return the user's id."""
    business_id, user_id = business["id"].removeprefix("biz_"), new_id()
    owner = {"business_id": business_id}
    with database.transaction() as connection:
        connection.execute(
            payout_users.insert().values(**owner, id=user_id, email=email, hash_digest=b"", balance=cents)
        )
        rest = connection.execute(
            businesses.update()
            .where(businesses.c.id == business_id)
            .values(payout_balance=businesses.c.payout_balance - cents)
            .returning(businesses.c.payout_balance)
        ).scalar_one()
        connection.execute(
            payout_transactions.insert().values(
                **owner,
                id=new_id(),
                type="allocation",
                payout_user_id=user_id,
                amount=cents,
                payout_balance_after=rest,
                user_balance_after=cents,
            )
        )
    return format_id(IdKind.PAYOUT_USER, user_id)


def opens(database: Database, secret_key: str) -> bool:
    """Tell whether a call with this key would get in."""
    digest = digest_of(secret_key)
    with database.transaction() as connection:
        return digest in find_secret_keys(connection, [digest])


def use(database: Database, secret_key: str) -> None:
    with database.transaction() as connection:
        write_last_used(connection, [digest_of(secret_key)])


def end_grace(database: Database, key_id: str) -> None:
    """Let the grace period of a rolled key be over."""
    statement = sa.text("UPDATE api_keys SET revoked_at = clock_timestamp() - interval '1 hour' WHERE id = :id")
    with database.transaction() as connection:
        connection.execute(statement, {"id": key_id.removeprefix("key_")})


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


def test_migrate_prints_only_its_document(servers: Servers) -> None:
    url = servers.create(f"test_{uuid4().hex}")
    assert start("migrate", "--json", PAYOUTS_DATABASE_URL=url).document == {"revision": REQUIRED_REVISION}


@pytest.mark.parametrize("command", ["business show", "user show", "user deactivate", "key roll"])
def test_argument_that_is_not_unicode_is_refused_without_a_traceback(database_url: str, command: str) -> None:
    refused = start(*command.split(), "\udcff@example.com", PAYOUTS_DATABASE_URL=database_url)
    assert refused.exit_code in (1, 2)
    assert "Traceback" not in refused.stderr


# Finding the database


def test_migrating_twice_is_the_same_as_once(payouts: Run) -> None:
    assert payouts("migrate").stdout == f"The database is at revision {REQUIRED_REVISION}.\n"
    assert payouts("migrate", "--json").document == {"revision": REQUIRED_REVISION}


@pytest.mark.parametrize("command", ["business list", "business create ACME", "verify", "user show a@b.example"])
def test_unmigrated_database_asks_for_migrate(
    run: Run, servers: Servers, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("PAYOUTS_DATABASE_URL", servers.postgres_url)
    run(*command.split()).assert_refused("payouts migrate", exit_code=2 if command == "verify" else 1)


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


# Businesses


def test_business_created_has_funds_and_keys(acme: dict[str, Any]) -> None:
    assert re.fullmatch("biz_[0-9a-f]{32}", acme["id"])
    assert (acme["name"], acme["payout_balance"], acme["payouts_enabled"]) == ("ACME", 5000, True)
    assert {name for name in acme if name.endswith("_key")} == set(KEY_PREFIXES)
    for name, prefix in KEY_PREFIXES.items():
        assert re.fullmatch(prefix + "[0-9A-Za-z]{40}", acme[name])


def test_secret_keys_of_a_new_business_open_at_once_and_public_ones_never(
    database: Database, acme: dict[str, Any]
) -> None:
    assert [name for name in KEY_PREFIXES if opens(database, acme[name])] == ["secret_key", "test_secret_key"]


def test_business_starts_without_funds_and_disabled(payouts: Run) -> None:
    created = payouts("business", "create", "Plain", "--json").document
    assert (created["payout_balance"], created["payouts_enabled"]) == (0, False)


def test_business_created_is_described(payouts: Run) -> None:
    text = payouts("business", "create", "ACME", "--funds", "123456").stdout
    assert re.search(r"^biz_[0-9a-f]{32}  ACME$", text, re.MULTILINE)
    assert "$1,234.56" in text
    for name, prefix in KEY_PREFIXES.items():
        assert re.search(rf"^  {name.replace('_', ' ')} +{prefix}[0-9A-Za-z]{{40}}$", text, re.MULTILINE)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_keys_are_shown_at_creation_only(payouts: Run, acme: dict[str, Any], as_json: list[str]) -> None:
    for arguments in ("business list", "business show ACME", "key list ACME", "verify"):
        shown = payouts(*arguments.split(), *as_json)
        assert shown.exit_code == 0
        assert not [name for name in KEY_PREFIXES if acme[name] in shown.stdout]


def test_business_is_shown_by_id_and_by_name(payouts: Run, acme: dict[str, Any]) -> None:
    shown = payouts("business", "show", "ACME", "--json").document
    assert shown == payouts("business", "show", acme["id"], "--json").document
    assert shown == {name: value for name, value in acme.items() if not name.endswith("_key")}
    assert payouts("business", "show", "ACME").stdout == payouts("business", "show", acme["id"]).stdout


def test_businesses_are_listed_oldest_first_without_their_twins(payouts: Run, acme: dict[str, Any]) -> None:
    payouts("business", "create", "Übel & Söhne")
    listed = payouts("business", "list", "--json").document
    assert [each["name"] for each in listed] == ["ACME", "Übel & Söhne"]
    lines = payouts("business", "list").stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        [acme["id"], "$50.00", "enabled"],
        [listed[1]["id"], "$0.00", "disabled"],
    ]


def test_no_businesses_are_an_empty_list(payouts: Run) -> None:
    assert payouts("business", "list", "--json").document == []


def test_business_is_disabled_and_enabled(payouts: Run, acme: dict[str, Any]) -> None:
    assert payouts("business", "disable", "ACME", "--json").document["payouts_enabled"] is False
    assert payouts("business", "show", acme["id"], "--json").document["payouts_enabled"] is False
    assert "enabled" in payouts("business", "enable", acme["id"]).stdout
    assert payouts("business", "show", "ACME", "--json").document["payouts_enabled"] is True


def test_funds_are_added(payouts: Run, acme: dict[str, Any]) -> None:
    assert payouts("business", "fund", acme["id"], "250", "--json").document["payout_balance"] == 5250
    assert "$52.51" in payouts("business", "fund", "ACME", "1").stdout
    assert payouts("verify").exit_code == 0


def test_funds_beyond_the_largest_balance_are_refused(payouts: Run, acme: dict[str, Any]) -> None:
    payouts("business", "fund", "ACME", str(10**18)).assert_refused("may not be greater")
    assert payouts("business", "show", "ACME", "--json").document["payout_balance"] == 5000


def test_wrong_amount_is_wrong_usage(payouts: Run, acme: dict[str, Any]) -> None:
    for cents in ("0", "-1", "1.5", "ten", str(10**18 + 1)):
        refused = payouts("business", "fund", "ACME", "--", cents)
        assert (refused.exit_code, refused.stdout) == (2, "")


def test_negative_first_funds_are_wrong_usage_and_create_nothing(payouts: Run) -> None:
    assert payouts("business", "create", "ACME", "--funds", "-5").exit_code == 2
    assert payouts("business", "list", "--json").document == []


def test_bad_name_is_refused_and_creates_nothing(payouts: Run) -> None:
    for name in ("", "   ", "two\nlines", "\x1b[31mred"):
        payouts("business", "create", name, "--json").assert_refused("name")
    assert payouts("business", "list", "--json").document == []


@pytest.mark.parametrize(
    "command", ["business show {}", "business fund {} 1", "key list {}", "key create {}", "user show {} a@b.example"]
)
def test_unknown_business_is_refused(payouts: Run, acme: dict[str, Any], command: str) -> None:
    for reference in ("Nobody", "acme", "biz_0", "", "biz_" + "0" * 32):
        arguments = [reference if word == "{}" else word for word in command.split()]
        payouts(*arguments).assert_refused("There is no")


# Keys


@pytest.mark.parametrize(
    ("options", "mode", "kind", "prefix"),
    [
        ([], "live", "secret", "sk_live_"),
        (["--test"], "test", "secret", "sk_test_"),
        (["--public"], "live", "public", "pk_live_"),
        (["--test", "--public"], "test", "public", "pk_test_"),
    ],
)
def test_key_is_created(
    payouts: Run, acme: dict[str, Any], options: list[str], mode: str, kind: str, prefix: str
) -> None:
    created = payouts("key", "create", "ACME", *options, "--json").document
    assert (created["mode"], created["kind"]) == (mode, kind)
    assert created[f"{kind}_key"].startswith(prefix)
    assert created[f"{kind}_key"].endswith(created["last4"])
    assert created["business_id"] == acme["twin_id" if mode == "test" else "id"]
    assert re.search(rf"^key_[0-9a-f]{{32}}  {prefix}", payouts("key", "create", "ACME", *options).stdout)


def test_keys_of_business_and_twin_are_listed_without_the_keys(payouts: Run, acme: dict[str, Any]) -> None:
    another = payouts("key", "create", acme["id"], "--test", "--json").document
    listed = payouts("key", "list", "ACME", "--json")
    assert [(each["mode"], each["kind"], each["revoked_at"]) for each in listed.document] == [
        ("live", "secret", None),
        ("live", "public", None),
        ("test", "secret", None),
        ("test", "public", None),
        ("test", "secret", None),
    ]
    assert another["secret_key"] not in listed.stdout
    assert not any(name.endswith("_key") or name == "digest" for each in listed.document for name in each)
    lines = payouts("key", "list", "ACME").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [each["id"] for each in listed.document]


def find_key(payouts: Run, key_id: str) -> tuple[dict[str, Any], str]:
    """Return what `key list` says of a key: its document and its line."""
    (document,) = [each for each in payouts("key", "list", "ACME", "--json").document if each["id"] == key_id]
    (line,) = [each for each in payouts("key", "list", "ACME").stdout.splitlines() if each.startswith(key_id)]
    return document, line


def test_name_of_a_key_is_listed(payouts: Run, acme: dict[str, Any]) -> None:
    created = payouts("key", "create", "ACME", "--name", "  Löhne, monthly ", "--json").document
    assert created["name"] == "Löhne, monthly"
    document, line = find_key(payouts, created["id"])
    assert document["name"] == "Löhne, monthly"
    assert line.endswith("  Löhne, monthly")


def test_key_without_a_name_has_an_empty_one(payouts: Run, acme: dict[str, Any]) -> None:
    created = payouts("key", "create", "ACME", "--json").document
    document, line = find_key(payouts, created["id"])
    assert (created["name"], document["name"]) == ("", "")
    assert line.endswith("never used")


@pytest.mark.parametrize(
    "name", ["two\nlines", "\x1b[31mred", "a\tb", "a\u202eb", "x" * (NAME_MAX_CHARACTERS + 1), "ä" * 200]
)
def test_bad_name_of_a_key_is_refused_and_creates_nothing(payouts: Run, acme: dict[str, Any], name: str) -> None:
    before = payouts("key", "list", "ACME", "--json").document
    refused = payouts("key", "create", "ACME", "--name", name)
    refused.assert_refused(f"at most {NAME_MAX_CHARACTERS} characters")
    assert name not in refused.stderr
    assert payouts("key", "list", "ACME", "--json").document == before


def test_longest_name_of_a_key_counts_characters_not_bytes(payouts: Run, acme: dict[str, Any]) -> None:
    name = "ä" * NAME_MAX_CHARACTERS
    assert payouts("key", "create", "ACME", "--name", f" {name} ", "--json").document["name"] == name


def test_last_use_of_a_key_is_listed(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    created = payouts("key", "create", "ACME", "--name", "wages", "--json").document
    assert created["last_used_at"] is None
    document, line = find_key(payouts, created["id"])
    assert document["last_used_at"] is None
    assert "never used" in line
    use(database, created["secret_key"])
    document, line = find_key(payouts, created["id"])
    assert re.fullmatch(TIME, document["last_used_at"])
    assert line.endswith(f"last used {document['last_used_at']}  wages")


def test_life_of_each_key_is_listed(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    live, rolled, ended, revoked = (payouts("key", "create", "ACME", "--json").document["id"] for _ in range(4))
    payouts("key", "roll", rolled, "--grace", "1h")
    payouts("key", "roll", ended, "--grace", "1h")
    end_grace(database, ended)
    payouts("key", "revoke", revoked)
    for key_id, life, time in (
        (live, "live since", "created_at"),
        (rolled, "works until", "revoked_at"),
        (ended, "revoked", "revoked_at"),
        (revoked, "revoked", "revoked_at"),
    ):
        document, line = find_key(payouts, key_id)
        assert f"  {life} {document[time]}, never used" in line


def test_key_is_revoked_once(payouts: Run, acme: dict[str, Any]) -> None:
    created = payouts("key", "create", "ACME", "--json").document
    revoked = payouts("key", "revoke", created["id"], "--json").document
    assert revoked["revoked_at"]
    assert "secret_key" not in revoked
    assert payouts("key", "revoke", created["id"], "--json").document == revoked
    assert payouts("key", "revoke", created["id"]).stdout == f"{created['id']} is revoked.\n"
    assert payouts("key", "list", "ACME").stdout.count("revoked") == 1


def test_unknown_key_is_refused(payouts: Run) -> None:
    for key_id in ("key_0", "key_" + "0" * 32, "biz_" + "0" * 32, ""):
        payouts("key", "revoke", key_id).assert_refused("key")


def test_key_itself_in_place_of_its_id_is_not_repeated(payouts: Run, acme: dict[str, Any]) -> None:
    refused = payouts("key", "revoke", acme["secret_key"])
    refused.assert_refused("by its id")
    assert acme["secret_key"] not in refused.stderr


@pytest.mark.parametrize("mode", ["live", "test"])
@pytest.mark.parametrize("kind", ["secret", "public"])
def test_rolled_key_is_replaced_by_one_of_the_same_kind_mode_and_name(
    payouts: Run, acme: dict[str, Any], mode: str, kind: str
) -> None:
    options = [*(["--test"] if mode == "test" else []), *(["--public"] if kind == "public" else [])]
    old = payouts("key", "create", "ACME", "--name", "wages", *options, "--json").document
    new = payouts("key", "roll", old["id"], "--json").document
    for name in ("business_id", "mode", "kind", "name"):
        assert new[name] == old[name]
    assert (new["mode"], new["kind"], new["name"]) == (mode, kind, "wages")
    assert new["id"] != old["id"]
    assert new[f"{kind}_key"] != old[f"{kind}_key"]
    assert re.fullmatch(f"{kind[0]}k_{mode}_[0-9A-Za-z]{{40}}", new[f"{kind}_key"])
    assert (new["revoked_at"], new["last_used_at"]) == (None, None)


def test_rolled_key_is_in_the_document_of_the_new_one(payouts: Run, acme: dict[str, Any]) -> None:
    old = payouts("key", "create", "ACME", "--json").document
    rolled = payouts("key", "roll", old["id"], "--grace", "24h", "--json")
    assert rolled.document["replaces"] == find_key(payouts, old["id"])[0]
    assert rolled.document["replaces"]["revoked_at"]
    assert old["secret_key"] not in rolled.stdout


@pytest.mark.parametrize("options", [[], ["--grace", "0s"], ["--grace", "0d"]])
def test_rolled_key_without_grace_is_refused_at_once(
    payouts: Run, database: Database, acme: dict[str, Any], options: list[str]
) -> None:
    old = payouts("key", "create", "ACME", "--json").document
    rolled = payouts("key", "roll", old["id"], *options)
    match = re.fullmatch(
        rf"key_[0-9a-f]{{32}}  (sk_live_\w+)  \(shown only now\)\n{old['id']} is revoked\.\n", rolled.stdout
    )
    assert match is not None
    assert opens(database, match[1])
    assert not opens(database, old["secret_key"])


@pytest.mark.parametrize("grace", ["90s", "30m", "24h", "7d", "365d"])
def test_rolled_key_is_refused_after_its_grace(
    payouts: Run, database: Database, acme: dict[str, Any], grace: str
) -> None:
    old = payouts("key", "create", "ACME", "--json").document
    new = payouts("key", "roll", old["id"], "--grace", grace, "--json").document
    assert opens(database, old["secret_key"])
    assert opens(database, new["secret_key"])
    end_grace(database, old["id"])
    assert not opens(database, old["secret_key"])
    assert opens(database, new["secret_key"])


def test_end_of_the_grace_is_told(payouts: Run, acme: dict[str, Any]) -> None:
    old = payouts("key", "create", "ACME", "--json").document
    rolled = payouts("key", "roll", old["id"], "--grace", "24h")
    end = find_key(payouts, old["id"])[0]["revoked_at"]
    assert re.fullmatch(TIME, end)
    assert rolled.stdout.splitlines()[1:] == [f"{old['id']} works until {end}."]


def test_key_that_was_revoked_or_rolled_is_not_rolled(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    revoked, rolled, ended = (payouts("key", "create", "ACME", "--json").document["id"] for _ in range(3))
    payouts("key", "revoke", revoked)
    payouts("key", "roll", rolled, "--grace", "1h")
    payouts("key", "roll", ended, "--grace", "1h")
    end_grace(database, ended)
    before = payouts("key", "list", "ACME", "--json").document
    for key_id in (revoked, rolled, ended):
        for options in ([], ["--grace", "24h"]):
            payouts("key", "roll", key_id, *options).assert_refused("was revoked or rolled before")
    assert payouts("key", "list", "ACME", "--json").document == before


def test_new_key_can_be_rolled_again(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    first = payouts("key", "create", "ACME", "--json").document
    second = payouts("key", "roll", first["id"], "--grace", "1h", "--json").document
    third = payouts("key", "roll", second["id"], "--json").document
    assert [opens(database, each["secret_key"]) for each in (first, second, third)] == [True, False, True]


@pytest.mark.parametrize(
    "grace", ["-1h", "5", "1y", "400d", "366d", "1.5h", "1h30m", "h", "1H", "1 h", "24h\n", "٣h", "", "9" * 30 + "s"]
)
def test_bad_duration_is_wrong_usage_and_rolls_nothing(
    payouts: Run, database: Database, acme: dict[str, Any], grace: str
) -> None:
    old = payouts("key", "create", "ACME", "--json").document
    before = payouts("key", "list", "ACME", "--json").document
    payouts("key", "roll", old["id"], "--grace", grace).assert_wrong_usage("is not a duration from 0s to 365d")
    assert payouts("key", "list", "ACME", "--json").document == before
    assert opens(database, old["secret_key"])


def test_revoking_a_rolled_key_ends_its_grace_at_once(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    old = payouts("key", "create", "ACME", "--json").document
    new = payouts("key", "roll", old["id"], "--grace", "7d", "--json").document
    revoked = payouts("key", "revoke", old["id"], "--json").document
    assert revoked["revoked_at"] < new["replaces"]["revoked_at"]
    assert not opens(database, old["secret_key"])
    assert opens(database, new["secret_key"])
    assert "  revoked " in find_key(payouts, old["id"])[1]


def test_unknown_key_is_not_rolled(payouts: Run, acme: dict[str, Any]) -> None:
    for key_id in ("key_0", "key_" + "0" * 32, acme["id"], ""):
        payouts("key", "roll", key_id).assert_refused("key")


def test_key_itself_in_place_of_its_id_is_neither_rolled_nor_repeated(payouts: Run, acme: dict[str, Any]) -> None:
    refused = payouts("key", "roll", acme["secret_key"], "--grace", "24h")
    refused.assert_refused("by its id")
    assert acme["secret_key"] not in refused.stderr


# Users


@pytest.mark.parametrize("named", [[], ["name"], ["id"]])
def test_user_is_shown_by_any_spelling(
    payouts: Run, database: Database, acme: dict[str, Any], named: list[str]
) -> None:
    user_id = add_user(database, acme, "user@example.com", 1205)
    for spelling in ("user@example.com", "USER@Example.COM", " user@example.com "):
        words = [*(acme[name] for name in named), spelling]
        shown = payouts("user", "show", *words, "--json").document
        assert (shown["id"], shown["email"], shown["balance"]) == (user_id, "user@example.com", 1205)
        assert (shown["business_id"], shown["status"], shown["currency"]) == (acme["id"], "active", "USD")
        assert "$12.05" in payouts("user", "show", *words).stdout


def test_user_of_several_businesses_needs_the_business(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    other = payouts("business", "create", "Other", "--funds", "10", "--json").document
    add_user(database, acme, "user@example.com", 1)
    add_user(database, other, "user@example.com", 2)
    payouts("user", "show", "user@example.com").assert_refused("name the business")
    assert payouts("user", "show", "Other", "user@example.com", "--json").document["balance"] == 2


def test_user_of_a_test_twin_is_shown_where_the_twin_is_named(
    payouts: Run, database: Database, acme: dict[str, Any]
) -> None:
    add_user(database, {"id": acme["twin_id"]}, "user@example.com", 3)
    payouts("user", "show", "user@example.com").assert_refused("no payout user")
    assert payouts("user", "show", acme["twin_id"], "user@example.com", "--json").document["balance"] == 3


def test_unknown_user_is_refused(payouts: Run) -> None:
    for email in ("nobody@example.com", "not an e-mail", ""):
        payouts("user", "show", email).assert_refused("no payout user")


@pytest.mark.parametrize(("words", "exit_code"), [([], 2), (["ACME", "user@example.com", "more"], 1)])
def test_user_show_with_a_wrong_number_of_words_is_refused(payouts: Run, words: list[str], exit_code: int) -> None:
    assert payouts("user", "show", *words).exit_code == exit_code


@pytest.mark.parametrize("named", [[], ["name"], ["id"]])
def test_user_is_deactivated_and_activated_by_any_spelling(
    payouts: Run, database: Database, acme: dict[str, Any], named: list[str]
) -> None:
    user_id = add_user(database, acme, "user@example.com", 1205)
    words = [*(acme[name] for name in named), " USER@Example.COM "]
    for command, status in (("deactivate", "inactive"), ("activate", "active")):
        changed = payouts("user", command, *words, "--json").document
        assert (changed["id"], changed["status"], changed["balance"]) == (user_id, status, 1205)
        assert payouts("user", "show", "user@example.com", "--json").document == changed
        assert re.search(rf"^  status +{status}$", payouts("user", command, *words).stdout, re.MULTILINE)
    assert payouts("verify").exit_code == 0


def test_hash_of_a_deactivated_user_is_locked_out_until_activated(
    payouts: Run, database: Database, acme: dict[str, Any]
) -> None:
    add_user(database, acme, "user@example.com", 1)
    found = []
    for command in ("deactivate", "activate"):
        payouts("user", command, "user@example.com")
        with database.transaction() as connection:
            found.append(find_active_payout_user(connection, b"") is not None)
    assert found == [False, True]


def test_deactivating_twice_is_the_same_as_once(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    add_user(database, acme, "user@example.com", 1)
    active = payouts("user", "show", "user@example.com", "--json").document
    assert payouts("user", "activate", "user@example.com", "--json").document == active
    inactive = payouts("user", "deactivate", "user@example.com", "--json").document
    assert inactive["updated_at"] > active["updated_at"]
    assert payouts("user", "deactivate", "user@example.com", "--json").document == inactive


@pytest.mark.parametrize("command", ["activate", "deactivate"])
def test_user_to_change_must_be_known_and_the_only_one(
    payouts: Run, database: Database, acme: dict[str, Any], command: str
) -> None:
    other = payouts("business", "create", "Other", "--funds", "10", "--json").document
    for business in (acme, other):
        add_user(database, business, "user@example.com", 1)
    payouts("user", command, "user@example.com").assert_refused("name the business")
    payouts("user", command, "nobody@example.com").assert_refused("no payout user")
    payouts("user", command, "Nobody", "user@example.com").assert_refused("There is no business")
    payouts("user", command, "ACME", "user@example.com", "more").assert_refused("[BUSINESS] EMAIL")
    assert payouts("user", command).exit_code == 2


def test_deactivating_at_one_business_leaves_the_other_alone(
    payouts: Run, database: Database, acme: dict[str, Any]
) -> None:
    other = payouts("business", "create", "Other", "--funds", "10", "--json").document
    for business in (acme, other):
        add_user(database, business, "user@example.com", 1)
    payouts("user", "deactivate", "Other", "user@example.com")
    for name, status in (("ACME", "active"), ("Other", "inactive")):
        assert payouts("user", "show", name, "user@example.com", "--json").document["status"] == status


# Proving the books


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


def test_name_that_several_have_names_none(payouts: Run, acme: dict[str, Any]) -> None:
    other = payouts("business", "create", "ACME", "--json").document
    for words in (
        ["business", "fund", "ACME", "7"],
        ["business", "show", "ACME"],
        ["member", "invite", "ACME", "a@b.co"],
    ):
        refused = payouts(*words)
        refused.assert_refused("Several businesses have the name 'ACME'; name one by its id")
        assert all(each["id"] in refused.stderr for each in (acme, other))
    assert payouts("business", "fund", other["id"], "7", "--json").document["payout_balance"] == 7


def test_test_twin_is_shown_as_one(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    id_ = parse_id(IdKind.BUSINESS, acme["id"])
    assert id_
    with database.transaction() as connection:
        twin_id = get_business(connection, id_).twin_id
    assert " ACME (test mode)\n" in payouts("business", "show", format_id(IdKind.BUSINESS, twin_id)).stdout
    assert " ACME\n" in payouts("business", "show", acme["id"]).stdout


def test_main_balance_is_deposited(payouts: Run, acme: dict[str, Any]) -> None:
    changed = payouts("business", "deposit", "ACME", "1234", "--json").document
    assert (changed["balance"], changed["payout_balance"]) == (1234, 5000)
    assert "main balance     $12.35" in payouts("business", "deposit", "ACME", "1").stdout
    assert payouts("verify", "--json").document["balanced"]


def test_member_is_invited_by_a_link_that_is_shown_once(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    invited = payouts(
        "member", "invite", "ACME", " Ada@Example.com ", "--url", "https://pay.example.com/", "--json"
    ).document
    link = invited.pop("link")
    assert re.fullmatch(r"https://pay\.example\.com/dashboard/invitations/[A-Za-z0-9_-]{43}", link)
    assert re.fullmatch(TIME, invited["expires_at"])
    assert invited == invited | {
        "business_id": acme["id"],
        "email": "ada@example.com",
        "role": "admin",
        "status": "invited",
    }
    assert payouts("member", "list", "ACME", "--json").document == [invited]
    listed = payouts("member", "list", "ACME").stdout
    assert re.fullmatch(rf"admin   invited until {TIME}  ada@example\.com\n", listed)
    assert accept_invitation(database, link.rpartition("/")[2], "a password, long enough") is not None
    listed = payouts("member", "list", acme["twin_id"]).stdout
    assert re.fullmatch(rf"admin   member since {TIME}  ada@example\.com\n", listed)
    payouts("member", "invite", "ACME", "ADA@example.com").assert_refused("a member with this e-mail already")
    payouts("member", "remove", "ACME", "ada@example.com").assert_refused("The last admin")


def test_invitation_without_a_url_is_for_this_machine(payouts: Run, acme: dict[str, Any]) -> None:
    printed = payouts("member", "invite", "ACME", "ada@example.com", "--role", "viewer").stdout
    assert "ada@example.com is invited to ACME as viewer" in printed
    assert "  http://127.0.0.1:8000/dashboard/invitations/" in printed


def test_member_is_removed(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    for email in ("ada@example.com", "bob@example.com"):
        link = payouts("member", "invite", "ACME", email, "--json").document["link"]
        assert accept_invitation(database, link.rpartition("/")[2], "a password, long enough") is not None
    assert payouts("member", "remove", "ACME", "ADA@example.com", "--json").document["status"] == "member"
    assert [each["email"] for each in payouts("member", "list", "ACME", "--json").document] == ["bob@example.com"]


def test_bad_invitations_are_refused(payouts: Run, acme: dict[str, Any]) -> None:
    payouts("member", "invite", "ACME", "no address").assert_refused("must be a valid e-mail")
    payouts("member", "invite", "Nobody", "ada@example.com").assert_refused("There is no business")
    payouts("member", "invite", "ACME", "ada@example.com", "--url", "javascript:alert(1)").assert_wrong_usage(
        "is not a URL that starts with http:// or https://"
    )
    payouts("member", "invite", "ACME", "ada@example.com", "--role", "owner").assert_wrong_usage("'owner'")
    assert payouts("member", "list", "ACME").stdout == "There are no members yet.\n"


def test_sums_that_are_wrong_are_counted_anew(payouts: Run, database: Database, acme: dict[str, Any]) -> None:
    business_id = parse_id(IdKind.BUSINESS, acme["id"])
    assert business_id is not None
    with database.transaction() as connection:
        sum_next(connection, business_id)
        connection.execute(sa.text("UPDATE payout_day_sums SET count = count + 1"))
    verified = payouts("verify")
    assert verified.exit_code == 1
    assert "payouts business recount" in verified.stdout
    assert payouts("business", "recount", "ACME", "--json").document["id"] == acme["id"]
    assert payouts("verify").exit_code == 0
