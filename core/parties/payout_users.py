"""Payout users, as their business and they themselves see them. Each function runs inside the caller's transaction."""

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.credentials import Mode
from core.database.tables import businesses, payout_users
from core.emails import normalise_email
from core.errors import UserError

_LAST_CHARACTER = "\U0010ffff"


class PayoutUserError(UserError):
    """A payout user cannot be named like this."""


class UserStatus(StrEnum):
    """An inactive user's hash is refused; allocations to the user go on, and the money waits."""

    ACTIVE = "active"
    INACTIVE = "inactive"


class UserOrder(StrEnum):
    """The orders in which users can be paged through, whatever their number: those that have an index."""

    NEWEST = "newest"
    OLDEST = "oldest"
    EMAIL = "email"
    EMAIL_DESCENDING = "-email"


@dataclass(frozen=True, slots=True)
class PayoutUser:
    """A payout user; balance in cents."""

    id: UUID
    business_id: UUID
    email: str
    balance: int
    status: UserStatus
    created_at: datetime
    updated_at: datetime


def find_payout_user(connection: Connection, business_id: UUID | None, email: str) -> PayoutUser:
    """Return a user by e-mail, in any spelling that means the same user; without a business, of any live one.

    Raises:
        PayoutUserError: there is no such user, or several businesses have one.

    """
    query = payout_users.select().where(payout_users.c.email == normalise_email(email.strip()))
    if business_id is None:
        live = sa.select(businesses.c.id).where(businesses.c.mode == Mode.LIVE)
        query = query.where(payout_users.c.business_id.in_(live))
    else:
        query = query.where(payout_users.c.business_id == business_id)
    rows = connection.execute(query.limit(2)).all()
    if len(rows) != 1:
        text = "Several businesses have a payout user with this e-mail; name the business."
        raise PayoutUserError(text if rows else "There is no payout user with this e-mail.")
    return _payout_user(rows[0])


def list_payout_users(
    connection: Connection, business_id: UUID, *, email: str | None = None, limit: int, after: UUID | None = None
) -> list[PayoutUser]:
    """Return up to `limit` users of a business, newest first, from the start or after a user's id.

    `email` is normalised, and selects the one user who has it.
    """
    query = payout_users.select().where(payout_users.c.business_id == business_id)
    if email is not None:
        query = query.where(payout_users.c.email == email)
    if after is not None:
        query = query.where(payout_users.c.id < after)
    rows = connection.execute(query.order_by(payout_users.c.id.desc()).limit(limit))
    return [_payout_user(row) for row in rows]


def browse_payout_users(
    connection: Connection,
    business_id: UUID,
    *,
    prefix: str = "",
    order: UserOrder = UserOrder.NEWEST,
    limit: int,
    after: PayoutUser | None = None,
) -> list[PayoutUser]:
    """Return up to `limit` users of a business in an order, from the start or after a user.

    `prefix` selects those whose e-mail begins with it; they come by e-mail, since any other order would sort them all.
    So would an order by balance, for which no index is kept: every allocation would have to write it.
    """
    order = order_of(prefix, order)
    query = payout_users.select().where(payout_users.c.business_id == business_id)
    start = _email_prefix(prefix)
    if start is None:
        return []
    if start:
        query = query.where(payout_users.c.email >= start, payout_users.c.email < start + _LAST_CHARACTER)
    is_by_email = order in {UserOrder.EMAIL, UserOrder.EMAIL_DESCENDING}
    column: sa.Column[Any] = payout_users.c.email if is_by_email else payout_users.c.id
    is_descending = order in {UserOrder.NEWEST, UserOrder.EMAIL_DESCENDING}
    if after is not None:
        position = after.email if is_by_email else after.id
        query = query.where(column < position if is_descending else column > position)
    rows = connection.execute(query.order_by(column.desc() if is_descending else column).limit(limit))
    return [_payout_user(row) for row in rows]


def order_of(prefix: str, order: UserOrder) -> UserOrder:
    """Return the order in which `browse_payout_users` gives what it is asked for."""
    is_by_email = order in {UserOrder.EMAIL, UserOrder.EMAIL_DESCENDING}
    return UserOrder.EMAIL if prefix.strip() and not is_by_email else order


def _email_prefix(text: str) -> str | None:
    """Return what normalised e-mails begin with that begin like this; None for what none can."""
    text = text.strip()
    prefix = normalise_email(text) or unicodedata.normalize("NFC", text.lower())
    return prefix if prefix.isprintable() else None


def get_payout_user(connection: Connection, business_id: UUID, user_id: UUID) -> PayoutUser | None:
    """Return one user of a business."""
    query = payout_users.select().where(payout_users.c.business_id == business_id, payout_users.c.id == user_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else _payout_user(row)


def find_active_payout_user(connection: Connection, hash_digest: bytes) -> PayoutUser | None:
    """Return the user whose payout hash has this digest, unless the user is inactive."""
    query = payout_users.select().where(
        payout_users.c.hash_digest == hash_digest, payout_users.c.status == UserStatus.ACTIVE
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else _payout_user(row)


def set_status(connection: Connection, business_id: UUID, user_id: UUID, status: UserStatus) -> PayoutUser | None:
    """Activate or deactivate a user; return the user, or None where the business has no such user."""
    is_user = (payout_users.c.business_id == business_id) & (payout_users.c.id == user_id)
    connection.execute(
        payout_users.update()
        .where(is_user, payout_users.c.status != status)
        .values(status=status, updated_at=sa.func.now())
    )
    return get_payout_user(connection, business_id, user_id)


def _payout_user(row: sa.Row[tuple[object, ...]]) -> PayoutUser:
    values = row._asdict()
    del values["hash_digest"]
    return PayoutUser(**values | {"status": UserStatus(values["status"])})
