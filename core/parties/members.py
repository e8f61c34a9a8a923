"""Members: which accounts see and change which businesses. A test twin has the members of its live business.

Each function runs inside the caller's transaction.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from core.database.tables import accounts, businesses, members
from core.parties.accounts import AccountError


class Role(StrEnum):
    """A viewer sees everything of a business, but what is secret; an admin changes it too."""

    VIEWER = "viewer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Membership:
    """A live business of an account."""

    business_id: UUID
    business_name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Member:
    """An account of a business."""

    account_id: UUID
    email: str
    role: Role
    created_at: datetime


def list_memberships(connection: Connection, account_id: UUID) -> list[Membership]:
    """Return the businesses of which an account is a member, by name."""
    query = (
        sa.select(members.c.business_id, businesses.c.name, members.c.role)
        .join(businesses, businesses.c.id == members.c.business_id)
        .where(members.c.account_id == account_id)
        .order_by(businesses.c.name, businesses.c.id)
    )
    return [Membership(row.business_id, row.name, Role(row.role)) for row in connection.execute(query)]


def list_members(connection: Connection, business_id: UUID) -> list[Member]:
    """Return the members of a live business, by e-mail."""
    query = (
        sa.select(members.c.account_id, accounts.c.email, members.c.role, members.c.created_at)
        .join(accounts, accounts.c.id == members.c.account_id)
        .where(members.c.business_id == business_id)
        .order_by(accounts.c.email)
    )
    return [Member(*row[:2], Role(row.role), row.created_at) for row in connection.execute(query)]


def add_member(connection: Connection, business_id: UUID, account_id: UUID, role: Role) -> None:
    """Make an account a member; one who is a member already keeps the role."""
    connection.execute(
        insert(members).values(business_id=business_id, account_id=account_id, role=role).on_conflict_do_nothing()
    )


def set_role(connection: Connection, business_id: UUID, account_id: UUID, role: Role) -> Member:
    """Give a member another role; return the member.

    Raises:
        AccountError: there is no such member, or it is the last admin.

    """
    member = _lock_member(connection, business_id, account_id, stays_admin=role is Role.ADMIN)
    connection.execute(
        members.update()
        .where(members.c.business_id == business_id, members.c.account_id == account_id)
        .values(role=role)
    )
    return Member(member.account_id, member.email, role, member.created_at)


def remove_member(connection: Connection, business_id: UUID, account_id: UUID) -> Member:
    """Remove a member, and return who it was; the account stays, for its other businesses.

    Raises:
        AccountError: there is no such member, or it is the last admin.

    """
    member = _lock_member(connection, business_id, account_id, stays_admin=False)
    connection.execute(members.delete().where(members.c.business_id == business_id, members.c.account_id == account_id))
    return member


def _lock_member(connection: Connection, business_id: UUID, account_id: UUID, *, stays_admin: bool) -> Member:
    """Lock all members, in an order, so that two admins cannot remove each other at once."""
    connection.execute(
        sa.select(members.c.account_id)
        .where(members.c.business_id == business_id)
        .order_by(members.c.account_id)
        .with_for_update()
    )
    found = list_members(connection, business_id)
    member = next((each for each in found if each.account_id == account_id), None)
    if member is None:
        text = "There is no such member."
        raise AccountError(text)
    admins = sum(each.role is Role.ADMIN for each in found)
    if member.role is Role.ADMIN and not stays_admin and admins == 1:
        text = "The last admin can neither be removed nor become a viewer."
        raise AccountError(text)
    return member
