"""Accounts, members and invitations."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher

from core import admin_actions
from core.database.connection import Database
from core.parties import members
from core.parties.accounts import Account, AccountError, find_account, find_account_by_email
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import Business, create_business
from core.parties.invitations import list_invitations, read_invitation
from core.parties.members import Role, list_members, list_memberships
from core.parties.passwords import PASSWORD_CHARACTERS_MAX, PasswordError, change_password, check_password
from tests.core.builders import run_sql

EMAIL = "ada@example.com"
PASSWORD = "twelve characters and more"  # noqa: S105
OTHER_PASSWORD = "another one, long enough"  # noqa: S105


def make_business(database: Database, name: str = "ACME") -> Business:
    with database.transaction() as connection:
        return create_business(connection, name, payouts_enabled=True)


def invite(database: Database, business: Business, email: str = EMAIL, role: Role = Role.ADMIN) -> str:
    with database.transaction() as connection:
        return admin_actions.invite_member(connection, COMMAND_LINE, business.id, email, role)


def join(database: Database, business: Business, email: str = EMAIL, role: Role = Role.ADMIN) -> Account:
    account = admin_actions.accept_invitation(database, invite(database, business, email, role), PASSWORD)
    assert account is not None
    return account


def role_in(database: Database, account: Account, business_id: UUID) -> Role | None:
    with database.transaction() as connection:
        memberships = list_memberships(connection, account.id)
    return next((each.role for each in memberships if each.business_id == business_id), None)


def is_open(database: Database, token: str) -> bool:
    with database.transaction() as connection:
        return read_invitation(connection, token) is not None


@pytest.fixture
def business(database: Database) -> Business:
    return make_business(database)


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


def test_a_password_that_will_not_do_is_refused_and_the_invitation_stays(
    database: Database, business: Business
) -> None:
    token = invite(database, business)
    too_long = "x" * (PASSWORD_CHARACTERS_MAX + 1)
    for password in ("", "eleven char", too_long, "\ud800" * 12, EMAIL, EMAIL.upper(), f" {EMAIL}"):
        with pytest.raises(PasswordError):
            admin_actions.accept_invitation(database, token, password)
    assert is_open(database, token)


@pytest.mark.parametrize("password", ["x" * PASSWORD_CHARACTERS_MAX, "ÄÖÜ ¡™£¢∞§¶•ªº", "            ", "\0" * 12])
def test_any_other_password_will_do(database: Database, business: Business, password: str) -> None:
    account = admin_actions.accept_invitation(database, invite(database, business), password)
    assert account is not None
    assert check_password(database, EMAIL, password) == account
    assert check_password(database, EMAIL, password[:-1] + "y") is None


def test_a_password_is_the_same_however_the_keyboard_composes_it(database: Database, business: Business) -> None:
    token = invite(database, business)
    assert admin_actions.accept_invitation(database, token, "Zoe\u0308 in Münster 1") is not None
    assert check_password(database, EMAIL, "Zo\u00eb in Mu\u0308nster 1") is not None


def test_wrong_sign_ins_are_none(database: Database, business: Business) -> None:
    join(database, business)
    for email in (EMAIL, "nobody@example.com", "", "no address", "a\0@example.com", "\ud800", "x" * 10_000):
        assert check_password(database, email, "wrong, and long enough") is None
    for password in ("", PASSWORD.upper(), PASSWORD + " ", "\ud800", "\0", "x" * 1_000_000):
        assert check_password(database, EMAIL, password) is None


def test_an_unknown_account_costs_the_same_hashing(database: Database, business: Business) -> None:
    join(database, business)

    def duration_s(email: str) -> float:
        began = time.thread_time() + time.process_time()
        assert check_password(database, email, "wrong, and long enough") is None
        return time.thread_time() + time.process_time() - began

    duration_s("warm-up@example.com")
    known = statistics.median(duration_s(EMAIL) for _ in range(5))
    unknown = statistics.median(duration_s("nobody@example.com") for _ in range(5))
    assert known / 3 < unknown < known * 3  # without hashing it would be a hundredth


def test_the_hash_is_argon2id_and_of_todays_parameters(database: Database, business: Business) -> None:
    join(database, business)
    assert read_hash(database).startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert PASSWORD not in read_hash(database)


def read_hash(database: Database) -> str:
    with database.transaction() as connection:
        return str(connection.execute(sa.text("SELECT password_hash FROM accounts")).scalar_one())


def test_a_hash_of_old_parameters_is_renewed_by_the_next_sign_in(database: Database, business: Business) -> None:
    account = join(database, business)
    old = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    run_sql(database, "UPDATE accounts SET password_hash = :hash", hash=old)
    assert check_password(database, EMAIL, OTHER_PASSWORD) is None
    assert read_hash(database) == old
    assert check_password(database, EMAIL, PASSWORD) == account
    renewed = read_hash(database)
    assert renewed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert check_password(database, EMAIL, PASSWORD) == account
    assert read_hash(database) == renewed


def test_no_transaction_is_open_while_a_password_is_hashed(database_url: str) -> None:
    with Database(database_url, transaction_timeout_s=0.1, pool_size=1) as quick:
        with Database(database_url, transaction_timeout_s=None) as patient:
            join(patient, make_business(patient))
        slow = PasswordHasher(time_cost=40, memory_cost=65_536, parallelism=1).hash(PASSWORD)
        with quick.transaction() as connection:
            connection.execute(sa.text("UPDATE accounts SET password_hash = :hash"), {"hash": slow})
        assert check_password(quick, EMAIL, PASSWORD) is not None


def test_a_changed_password_replaces_the_old_one_and_says_when(database: Database, business: Business) -> None:
    account = join(database, business)
    assert change_password(database, account.id, OTHER_PASSWORD, OTHER_PASSWORD) is None
    assert change_password(database, uuid4(), PASSWORD, OTHER_PASSWORD) is None
    with pytest.raises(PasswordError):
        change_password(database, account.id, PASSWORD, "short")
    assert check_password(database, EMAIL, PASSWORD) == account
    changed = change_password(database, account.id, PASSWORD, OTHER_PASSWORD)
    assert changed is not None
    assert changed.password_changed_at > account.password_changed_at
    assert check_password(database, EMAIL, PASSWORD) is None
    assert check_password(database, EMAIL, OTHER_PASSWORD) == changed


def test_roles_hold_for_the_business_alone(database: Database, business: Business) -> None:
    account = join(database, business, role=Role.VIEWER)
    other = make_business(database, "Other")
    assert role_in(database, account, business.id) is Role.VIEWER
    assert role_in(database, account, other.id) is None
    assert role_in(database, account, uuid4()) is None


def test_the_last_admin_stays_one(database: Database, business: Business) -> None:
    first = join(database, business, "first@example.com")
    viewer = join(database, business, "viewer@example.com", Role.VIEWER)
    with database.transaction() as connection:
        with pytest.raises(AccountError, match="The last admin"):
            members.set_role(connection, business.id, first.id, Role.VIEWER)
        with pytest.raises(AccountError, match="The last admin"):
            members.remove_member(connection, business.id, first.id)
        assert members.set_role(connection, business.id, first.id, Role.ADMIN).role is Role.ADMIN
        assert members.set_role(connection, business.id, viewer.id, Role.ADMIN).role is Role.ADMIN
        assert members.set_role(connection, business.id, first.id, Role.VIEWER).role is Role.VIEWER
        assert members.remove_member(connection, business.id, first.id).email == "first@example.com"
    assert role_in(database, first, business.id) is None
    assert check_password(database, "first@example.com", PASSWORD) == first


def test_who_is_no_member_cannot_be_changed(database: Database, business: Business) -> None:
    join(database, business)
    stranger = join(database, make_business(database, "Other"), "stranger@example.com")
    with database.transaction() as connection:
        for account_id in (stranger.id, uuid4()):
            with pytest.raises(AccountError, match="no such member"):
                members.set_role(connection, business.id, account_id, Role.VIEWER)
            with pytest.raises(AccountError, match="no such member"):
                members.remove_member(connection, business.id, account_id)


def test_two_admins_cannot_remove_each_other_at_once(shared_database: Database) -> None:
    for _ in range(10):
        business = make_business(shared_database)
        pair = [join(shared_database, business, email) for email in ("a@example.com", "b@example.com")]

        def remove(account: Account, business: Business = business) -> bool:
            try:
                with shared_database.transaction() as connection:
                    members.remove_member(connection, business.id, account.id)
            except AccountError:
                return False
            return True

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(remove, pair)) == [False, True]
