"""The commands for payout users."""

import re
from typing import Any

import pytest

from core.database.connection import Database
from core.parties.payout_users import find_active_payout_user
from tests.api.cli.command_line import Run, add_user


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
