"""The commands for API keys."""

import re
from typing import Any

import pytest

from core.database.connection import Database
from core.parties.api_keys import NAME_MAX_CHARACTERS
from tests.api.cli.command_line import TIME, Run, end_grace, find_key, opens, use


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
