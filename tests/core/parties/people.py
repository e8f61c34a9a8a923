"""Businesses, invitations and members for tests."""

from uuid import UUID

from core import admin_actions
from core.database.connection import Database
from core.parties.accounts import Account
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import Business, create_business
from core.parties.invitations import read_invitation
from core.parties.members import Role, list_memberships

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
