"""Businesses, as the command line and the API manage them.

Each function runs inside the caller's transaction.
"""

from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.credentials import Mode
from core.database.tables import businesses, main_transactions, payout_transactions
from core.errors import UserError
from core.ids import new_id
from core.money import BALANCE_MAX_CENTS, format_dollars

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
    low_balance_threshold: int | None
    """Where less is free to allocate, the dashboard warns."""
    last_sequence: int
    """The number of its newest history row."""
    requires_keys: bool
    """Calls that pay must name an idempotency key or a reference."""
    numbered_later: int
    """Up to this number, rows were numbered after they were written."""


_FIELDS = [field.name for field in fields(Business)]


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
    deposit(connection, test_id, PLAY_MONEY_CENTS)
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


def find_businesses_by_name(connection: Connection, name: str) -> list[Business]:
    """Return the live businesses with exactly this name, oldest first."""
    query = businesses.select().where(businesses.c.mode == Mode.LIVE, businesses.c.name == name)
    return [_business(row) for row in connection.execute(query.order_by(businesses.c.id))]


def list_businesses(connection: Connection) -> list[Business]:
    """Return all live businesses, oldest first; their test twins are left out."""
    query = businesses.select().where(businesses.c.mode == Mode.LIVE).order_by(businesses.c.id)
    return [_business(row) for row in connection.execute(query)]


def set_payouts_enabled(connection: Connection, business_id: UUID, *, enabled: bool) -> Business:
    """Switch payouts on or off; it holds from the commit on."""
    lock_business(connection, business_id)
    connection.execute(businesses.update().where(businesses.c.id == business_id).values(payouts_enabled=enabled))
    return get_business(connection, business_id)


def set_requires_keys(connection: Connection, business_id: UUID, *, required: bool) -> Business:
    """Ask for an idempotency key or a reference with every call that pays, or not; it holds from the commit on."""
    lock_business(connection, business_id)
    connection.execute(businesses.update().where(businesses.c.id == business_id).values(requires_keys=required))
    return get_business(connection, business_id)


def set_low_balance_threshold(connection: Connection, business_id: UUID, threshold_cents: int | None) -> Business:
    """Set below which payout balance the dashboard warns, or that it does not (None)."""
    if threshold_cents is not None and not 0 <= threshold_cents <= BALANCE_MAX_CENTS:
        text = f"The threshold must be between 0 and {BALANCE_MAX_CENTS} cents."
        raise BusinessError(text)
    lock_business(connection, business_id)
    connection.execute(
        businesses.update().where(businesses.c.id == business_id).values(low_balance_threshold=threshold_cents)
    )
    return get_business(connection, business_id)


def fund_business(connection: Connection, business_id: UUID, amount_cents: int) -> Business:
    """Add cents from outside to a business's payout balance, with a history row of type `funding`.

    The main balance's history gets a row with the same id, of type `external`, and the balance stays as it was.
    """
    _check_amount(amount_cents)
    business, id_ = lock_business(connection, business_id), new_id()
    _credit_payout_balance(connection, business, amount_cents, id_)
    _move_main_balance(connection, business_id, id_, "external", amount_cents, business.balance)
    return get_business(connection, business_id)


def deposit(connection: Connection, business_id: UUID, amount_cents: int) -> Business:
    """Add cents from outside to a business's main balance, with a row in that balance's own history."""
    _check_amount(amount_cents)
    balance_after = lock_business(connection, business_id).balance + amount_cents
    _check_balance("main", balance_after)
    _move_main_balance(connection, business_id, new_id(), "deposit", amount_cents, balance_after)
    return get_business(connection, business_id)


def add_funds(connection: Connection, business_id: UUID, amount_cents: int) -> Business:
    """Move cents from a business's main balance to its payout balance.

    Both histories get a row with the same id: a `transfer`, and a `funding`.

    Raises:
        BusinessError: the main balance is smaller than that.

    """
    _check_amount(amount_cents)
    business = lock_business(connection, business_id)
    if amount_cents > business.balance:
        text = f"The main balance is {format_dollars(business.balance)}, which is less than that."
        raise BusinessError(text)
    id_ = new_id()
    _move_main_balance(connection, business_id, id_, "transfer", amount_cents, business.balance - amount_cents)
    _credit_payout_balance(connection, business, amount_cents, id_)
    return get_business(connection, business_id)


def _check_amount(amount_cents: int) -> None:
    if not 1 <= amount_cents <= BALANCE_MAX_CENTS:
        text = f"The amount must be between 1 and {BALANCE_MAX_CENTS} cents."
        raise BusinessError(text)


def _check_balance(name: str, balance_cents: int) -> None:
    if balance_cents > BALANCE_MAX_CENTS:
        text = f"The {name} balance may not be greater than {BALANCE_MAX_CENTS} cents."
        raise BusinessError(text)


def _credit_payout_balance(connection: Connection, locked: Business, amount_cents: int, id_: UUID) -> None:
    payout_balance_after = locked.payout_balance + amount_cents
    _check_balance("payout", payout_balance_after)
    sequence = locked.last_sequence + 1
    connection.execute(
        businesses.update()
        .where(businesses.c.id == locked.id)
        .values(payout_balance=payout_balance_after, last_sequence=sequence)
    )
    connection.execute(
        payout_transactions.insert().values(
            business_id=locked.id,
            id=id_,
            type="funding",
            amount=amount_cents,
            payout_balance_after=payout_balance_after,
            sequence=sequence,
        )
    )


def _move_main_balance(
    connection: Connection, business_id: UUID, id_: UUID, type_: str, amount_cents: int, balance_after: int
) -> None:
    connection.execute(businesses.update().where(businesses.c.id == business_id).values(balance=balance_after))
    connection.execute(
        main_transactions.insert().values(
            business_id=business_id, id=id_, type=type_, amount=amount_cents, balance_after=balance_after
        )
    )


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
    values = {name: row._mapping[name] for name in _FIELDS}
    return Business(**values | {"mode": Mode(values["mode"])})
