"""Businesses, their API keys and their users, as the command line and the API manage them.

Each function runs inside the caller's transaction.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.credentials import KeyKind, Mode, digest_of, make_api_key
from core.emails import normalise_email
from core.errors import UserError
from core.ids import new_id
from core.messages import Outcome
from core.money import BALANCE_MAX_CENTS
from core.tables import api_keys, businesses, payout_transactions, payout_users

PLAY_MONEY_CENTS = 100_000_000
"""What a test twin starts with: $1,000,000.00."""


class BusinessError(UserError):
    """Something asked of a business cannot be done; the text says what, for people."""


class NoSuchBusinessError(BusinessError):
    """There is no such business."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


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


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without the key itself, which nobody keeps."""

    id: UUID
    business_id: UUID
    mode: Mode
    kind: KeyKind
    last4: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


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
    _lock_business(connection, business_id)
    connection.execute(businesses.update().where(businesses.c.id == business_id).values(payouts_enabled=enabled))
    return get_business(connection, business_id)


def fund_business(connection: Connection, business_id: UUID, amount_cents: int) -> Business:
    """Add cents to a business's payout balance, with a history row of type `funding`."""
    if not 1 <= amount_cents <= BALANCE_MAX_CENTS:
        text = f"The amount must be between 1 and {BALANCE_MAX_CENTS} cents."
        raise BusinessError(text)
    payout_balance_after = _lock_business(connection, business_id).payout_balance + amount_cents
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


def create_api_key(connection: Connection, business_id: UUID, kind: KeyKind) -> tuple[ApiKey, str]:
    """Create an API key; return it with the key itself, which cannot be read again."""
    mode = get_business(connection, business_id).mode
    key = make_api_key(kind, mode)
    id_ = new_id()
    connection.execute(
        api_keys.insert().values(business_id=business_id, id=id_, kind=kind, digest=digest_of(key), last4=key[-4:])
    )
    return _get_api_key(connection, id_), key


def list_api_keys(connection: Connection, business_id: UUID) -> list[ApiKey]:
    """Return the keys of a business and of its test twin, oldest first, revoked ones too."""
    twin_id = get_business(connection, business_id).twin_id
    query = _select_api_keys().where(api_keys.c.business_id.in_([business_id, twin_id])).order_by(api_keys.c.id)
    return [_api_key(row) for row in connection.execute(query)]


def revoke_api_key(connection: Connection, api_key_id: UUID) -> ApiKey:
    """Revoke a key. From the commit on it moves no money: allocations read keys behind the same row lock."""
    key = _get_api_key(connection, api_key_id)
    _lock_business(connection, key.business_id)
    connection.execute(
        api_keys.update()
        .where(api_keys.c.id == api_key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=sa.func.clock_timestamp())
    )
    return _get_api_key(connection, api_key_id)


def find_secret_key(connection: Connection, digest: bytes) -> tuple[UUID, UUID, bytes] | None:
    """Return (business id, key id, digest) of a secret key that is not revoked."""
    query = sa.select(api_keys.c.business_id, api_keys.c.id, api_keys.c.digest).where(
        api_keys.c.digest == digest, api_keys.c.kind == KeyKind.SECRET, api_keys.c.revoked_at.is_(None)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else (row.business_id, row.id, row.digest)


def find_standing(connection: Connection, business_id: UUID, api_key_id: UUID) -> Outcome | None:
    """Return why a key may not allocate now (`unauthorized`, `payouts_disabled`), or None where it may."""
    query = sa.select(businesses.c.payouts_enabled).join_from(
        api_keys,
        businesses,
        (businesses.c.id == api_keys.c.business_id)
        & (api_keys.c.business_id == business_id)
        & (api_keys.c.id == api_key_id)
        & (api_keys.c.kind == KeyKind.SECRET)
        & api_keys.c.revoked_at.is_(None),
    )
    enabled = connection.execute(query).scalar_one_or_none()
    if enabled is None:
        return Outcome.UNAUTHORIZED
    return None if enabled else Outcome.PAYOUTS_DISABLED


def find_payout_user(connection: Connection, business_id: UUID | None, email: str) -> PayoutUser:
    """Return a user by e-mail, in any spelling that means the same user; without a business, of any live one.

    Raises:
        BusinessError: there is no such user, or several businesses have one.

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
        raise BusinessError(text if rows else "There is no payout user with this e-mail.")
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


def _lock_business(connection: Connection, business_id: UUID) -> Business:
    query = businesses.select().where(businesses.c.id == business_id).with_for_update(key_share=True)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NoSuchBusinessError
    return _business(row)


def _business(row: sa.Row[tuple[object, ...]]) -> Business:
    values = row._asdict()
    return Business(**values | {"mode": Mode(values["mode"])})


def _select_api_keys() -> sa.Select[tuple[object, ...]]:
    columns = [column for column in api_keys.c if column is not api_keys.c.digest]
    return sa.select(*columns, businesses.c.mode).join_from(
        api_keys, businesses, businesses.c.id == api_keys.c.business_id
    )


def _get_api_key(connection: Connection, api_key_id: UUID) -> ApiKey:
    row = connection.execute(_select_api_keys().where(api_keys.c.id == api_key_id)).one_or_none()
    if row is None:
        text = "There is no such API key."
        raise BusinessError(text)
    return _api_key(row)


def _api_key(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    values = row._asdict()
    return ApiKey(**values | {"mode": Mode(values["mode"]), "kind": KeyKind(values["kind"])})
