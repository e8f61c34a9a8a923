"""The commands for businesses."""

import re
from typing import Any

import pytest
import sqlalchemy as sa

from core.database.connection import Database
from core.ids import IdKind, format_id, parse_id
from core.ledger.day_sums import sum_next
from core.parties.businesses import get_business
from tests.api.cli.command_line import KEY_PREFIXES, Run, opens


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


def test_keys_are_required_and_not_required(payouts: Run, acme: dict[str, Any]) -> None:
    assert payouts("business", "show", "ACME", "--json").document["requires_keys"] is False
    assert payouts("business", "require-keys", "ACME", "on", "--json").document["requires_keys"] is True
    assert "keys             required" in payouts("business", "show", acme["id"]).stdout
    assert payouts("business", "require-keys", acme["id"], "off", "--json").document["requires_keys"] is False
    assert payouts("business", "require-keys", "ACME", "perhaps").exit_code == 2


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
