"""Members: roles hold for one business, and the last admin stays one."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from core.database.connection import Database
from core.parties import members
from core.parties.accounts import Account, AccountError
from core.parties.businesses import Business
from core.parties.members import Role
from core.parties.passwords import check_password
from tests.core.parties.people import PASSWORD, join, make_business, role_in


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
