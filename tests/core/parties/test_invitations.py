"""Invitations: a token makes a member once, in its time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from core import admin_actions
from core.database.connection import Database
from core.parties.accounts import AccountError, find_account, find_account_by_email
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import Business
from core.parties.invitations import list_invitations, read_invitation
from core.parties.members import Role, list_members, list_memberships
from core.parties.passwords import check_password
from tests.core.builders import run_sql
from tests.core.parties.people import EMAIL, OTHER_PASSWORD, PASSWORD, invite, is_open, join, make_business, role_in


def test_an_invitation_makes_an_account_and_a_member(database: Database, business: Business) -> None:
    token = invite(database, business, " Ada@Example.COM ", Role.VIEWER)
    with database.transaction() as connection:
        invitation = read_invitation(connection, token)
        assert invitation is not None
        assert list_invitations(connection, business.id) == [invitation]
    assert (invitation.email, invitation.business_name, invitation.role) == (EMAIL, "ACME", Role.VIEWER)
    assert (invitation.invited_by, invitation.has_account) == ("command line", False)
    assert (invitation.expires_at - invitation.created_at).days == 7
    account = admin_actions.accept_invitation(database, token, PASSWORD)
    assert account is not None
    assert account.email == EMAIL
    assert check_password(database, "ADA@example.com", PASSWORD) == account
    with database.transaction() as connection:
        assert find_account(connection, account.id) == find_account_by_email(connection, "ADA@EXAMPLE.COM") == account
        assert [(each.email, each.role) for each in list_members(connection, business.id)] == [(EMAIL, Role.VIEWER)]
        assert list_invitations(connection, business.id) == []
        (membership,) = list_memberships(connection, account.id)
    assert (membership.business_id, membership.business_name, membership.role) == (business.id, "ACME", Role.VIEWER)


def test_a_token_works_once(database: Database, business: Business) -> None:
    token = invite(database, business)
    assert admin_actions.accept_invitation(database, token, PASSWORD) is not None
    assert admin_actions.accept_invitation(database, token, PASSWORD) is None
    assert not is_open(database, token)


def test_of_two_at_once_one_joins(database: Database, business: Business) -> None:
    token = invite(database, business)
    with ThreadPoolExecutor(2) as threads:
        joined = list(threads.map(lambda _: admin_actions.accept_invitation(database, token, PASSWORD), range(2)))
    assert sum(each is not None for each in joined) == 1


def test_a_token_ends_after_a_week(database: Database, business: Business) -> None:
    token = invite(database, business)
    run_sql(database, "UPDATE invitations SET expires_at = expires_at - interval '7 days' + interval '1 minute'")
    assert is_open(database, token)
    run_sql(database, "UPDATE invitations SET expires_at = now()")
    assert not is_open(database, token)
    assert admin_actions.accept_invitation(database, token, PASSWORD) is None
    with database.transaction() as connection:
        assert list_invitations(connection, business.id) == []
        assert find_account_by_email(connection, EMAIL) is None
    assert is_open(database, invite(database, business))


def test_any_other_text_is_no_token(database: Database, business: Business) -> None:
    invite(database, business)
    for token in ("", "wrong", "ä", "\ud800", "a\0b", "x" * 100_000):
        assert not is_open(database, token)
        assert admin_actions.accept_invitation(database, token, PASSWORD) is None


def test_only_a_digest_of_the_token_is_kept(database: Database, business: Business) -> None:
    token = invite(database, business)
    with database.transaction() as connection:
        query = "SELECT invitations::text FROM invitations UNION ALL SELECT audit_log::text FROM audit_log"
        texts = connection.execute(sa.text(query)).scalars().all()
    assert texts
    assert not any(token in text or token.encode().hex() in text for text in texts)


def test_a_second_invitation_replaces_the_first(database: Database, business: Business) -> None:
    first = invite(database, business, role=Role.ADMIN)
    second = invite(database, business, "ADA@example.com", role=Role.VIEWER)
    elsewhere = invite(database, make_business(database, "Other"))
    assert [is_open(database, token) for token in (first, second, elsewhere)] == [False, True, True]
    account = admin_actions.accept_invitation(database, second, PASSWORD)
    assert account is not None
    assert role_in(database, account, business.id) is Role.VIEWER


def test_a_member_is_not_invited_again(database: Database, business: Business) -> None:
    join(database, business)
    with pytest.raises(AccountError, match="a member with this e-mail already"):
        invite(database, business)


def test_who_has_no_address_is_not_invited(database: Database, business: Business) -> None:
    for email in ("", "nobody", "a\0@example.com", "\ud800@example.com", "a" * 300 + "@example.com"):
        with pytest.raises(AccountError, match="valid e-mail"):
            invite(database, business, email)


def test_a_withdrawn_invitation_is_over(database: Database, business: Business) -> None:
    token = invite(database, business)
    other = make_business(database, "Other")
    with database.transaction() as connection:
        (invitation,) = list_invitations(connection, business.id)
        with pytest.raises(AccountError, match="no such invitation"):
            admin_actions.withdraw_invitation(connection, COMMAND_LINE, other.id, invitation.id)
        assert admin_actions.withdraw_invitation(connection, COMMAND_LINE, business.id, invitation.id) == EMAIL
        with pytest.raises(AccountError, match="no such invitation"):
            admin_actions.withdraw_invitation(connection, COMMAND_LINE, business.id, invitation.id)
    assert not is_open(database, token)


def test_an_existing_account_joins_with_its_own_password(database: Database, business: Business) -> None:
    account = join(database, business)
    other = make_business(database, "Other")
    token = invite(database, other)
    with database.transaction() as connection:
        invitation = read_invitation(connection, token)
    assert invitation is not None
    assert invitation.has_account
    assert admin_actions.accept_invitation(database, token, OTHER_PASSWORD) is None
    assert is_open(database, token)
    assert admin_actions.accept_invitation(database, token, PASSWORD) == account
    assert check_password(database, EMAIL, OTHER_PASSWORD) is None
    with database.transaction() as connection:
        assert [each.business_name for each in list_memberships(connection, account.id)] == ["ACME", "Other"]
