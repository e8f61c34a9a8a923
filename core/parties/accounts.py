"""Accounts: the people who sign in to the dashboard.

Each function runs inside the caller's transaction.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from core.database.tables import accounts
from core.emails import normalise_email
from core.errors import UserError
from core.ids import new_id


class AccountError(UserError):
    """Something asked of an account or a member cannot be done; the text says what, for people."""


@dataclass(frozen=True, slots=True)
class Account:
    """Someone who can sign in. Sessions from before `password_changed_at` are over."""

    id: UUID
    email: str
    password_changed_at: datetime


def find_account(connection: Connection, account_id: UUID) -> Account | None:
    """Return an account by its id."""
    return _find_account(connection, accounts.c.id == account_id)


def find_account_by_email(connection: Connection, email: str) -> Account | None:
    """Return an account by its e-mail, in any spelling."""
    return _find_account(connection, accounts.c.email == normalise_email(email.strip()))


def create_account(connection: Connection, email: str, password_hash: str) -> Account | None:
    """Create an account; None where the normalised e-mail has one."""
    row = connection.execute(
        insert(accounts)
        .values(id=new_id(), email=email, password_hash=password_hash)
        .on_conflict_do_nothing()
        .returning(accounts.c.id, accounts.c.email, accounts.c.password_changed_at)
    ).one_or_none()
    return None if row is None else Account(*row)


def _find_account(connection: Connection, is_wanted: sa.ColumnElement[bool]) -> Account | None:
    query = sa.select(accounts.c.id, accounts.c.email, accounts.c.password_changed_at).where(is_wanted)
    row = connection.execute(query).one_or_none()
    return None if row is None else Account(*row)
