"""The commands for members."""

import re
from typing import Any

from core.admin_actions import accept_invitation
from core.database.connection import Database
from tests.api.cli.command_line import TIME, Run


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
