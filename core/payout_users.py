"""Payout users, as administrators see them. Each function runs inside the caller's transaction."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.credentials import Mode
from core.emails import normalise_email
from core.errors import UserError
from core.tables import businesses, payout_users


class PayoutUserError(UserError):
    """A payout user cannot be named like this."""


@dataclass(frozen=True, slots=True)
class PayoutUser:
    """A payout user; balance in cents."""

    id: UUID
    business_id: UUID
    email: str
    balance: int
    status: str
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
    (row,) = rows
    return PayoutUser(
        id=row.id,
        business_id=row.business_id,
        email=row.email,
        balance=row.balance,
        status=row.status,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
