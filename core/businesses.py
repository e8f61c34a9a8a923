"""Businesses, as the command line and the API manage them.

Each function runs inside the caller's transaction.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.credentials import Mode
from core.errors import UserError
from core.ids import new_id
from core.money import BALANCE_MAX_CENTS
from core.tables import businesses, payout_transactions

PLAY_MONEY_CENTS = 100_000_000
"""What a test twin starts with: $1,000,000.00."""


class BusinessError(UserError):
    """Something asked of a business cannot be done; the text says what, for people."""


class NoSuchBusinessError(BusinessError):
    """There is no such business."""


@dataclass(frozen=True, slots=True)
class Business:
    """A business as its table holds it; balances in cents."""

    id: UUID
    name: str
    mode: Mode
    twin_id: UUID
    balance: int
    payout_balance: int
    reserved_balance: int
    payouts_enabled: bool
    created_at: datetime


def create_business(connection: Connection, name: str, *, payouts_enabled: bool) -> Business:
    """Create a business with no funds, and its test twin with play money and payouts enabled."""
    name = name.strip()
    if not name or not name.isprintable():
        text = "The name must have at least one visible character and no control characters."
        raise BusinessError(text)
    live_id, test_id = new_id(), new_id()
    live = {"id": live_id, "twin_id": test_id, "mode": Mode.LIVE, "payouts_enabled": payouts_enabled}
    test = {"id": test_id, "twin_id": live_id, "mode": Mode.TEST, "payouts_enabled": True}
    # One statement, since each row refers to the other.
    connection.execute(businesses.insert().values([{"name": name, **live}, {"name": name, **test}]))
    fund_business(connection, test_id, PLAY_MONEY_CENTS)
    return get_business(connection, live_id)


def get_business(connection: Connection, business_id: UUID) -> Business:
    """Return a business.

    Raises:
        BusinessError: there is none with this id.

    """
    found = find_business(connection, business_id)
    if found is None:
        raise NoSuchBusinessError
    return found


def find_business(connection: Connection, business_id: UUID) -> Business | None:
    """Return a business by its id."""
    row = connection.execute(businesses.select().where(businesses.c.id == business_id)).one_or_none()
    return None if row is None else _business(row)


def find_business_by_name(connection: Connection, name: str) -> Business | None:
    """Return the oldest live business with exactly this name."""
    query = businesses.select().where(businesses.c.mode == Mode.LIVE, businesses.c.name == name)
    row = connection.execute(query.order_by(businesses.c.id).limit(1)).one_or_none()
    return None if row is None else _business(row)


def list_businesses(connection: Connection) -> list[Business]:
    """Return all live businesses, oldest first; their test twins are left out."""
    query = businesses.select().where(businesses.c.mode == Mode.LIVE).order_by(businesses.c.id)
    return [_business(row) for row in connection.execute(query)]


def set_payouts_enabled(connection: Connection, business_id: UUID, *, enabled: bool) -> Business:
    """Switch payouts on or off; it holds from the commit on."""
    lock_business(connection, business_id)
    connection.execute(businesses.update().where(businesses.c.id == business_id).values(payouts_enabled=enabled))
    return get_business(connection, business_id)


def fund_business(connection: Connection, business_id: UUID, amount_cents: int) -> Business:
    """Add cents to a business's payout balance, with a history row of type `funding`."""
    if not 1 <= amount_cents <= BALANCE_MAX_CENTS:
        text = f"The amount must be between 1 and {BALANCE_MAX_CENTS} cents."
        raise BusinessError(text)
    payout_balance_after = lock_business(connection, business_id).payout_balance + amount_cents
    if payout_balance_after > BALANCE_MAX_CENTS:
        text = f"The payout balance may not be greater than {BALANCE_MAX_CENTS} cents."
        raise BusinessError(text)
    connection.execute(
        businesses.update().where(businesses.c.id == business_id).values(payout_balance=payout_balance_after)
    )
    connection.execute(
        payout_transactions.insert().values(
            business_id=business_id,
            id=new_id(),
            type="funding",
            amount=amount_cents,
            payout_balance_after=payout_balance_after,
        )
    )
    return get_business(connection, business_id)


def lock_business(connection: Connection, business_id: UUID) -> Business:
    """Return a business whose row is locked until the transaction ends; whatever allocates waits.

    Raises:
        NoSuchBusinessError: there is none with this id.

    """
    query = businesses.select().where(businesses.c.id == business_id).with_for_update(key_share=True)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NoSuchBusinessError
    return _business(row)


def _business(row: sa.Row[tuple[object, ...]]) -> Business:
    values = row._asdict()
    return Business(**values | {"mode": Mode(values["mode"])})
