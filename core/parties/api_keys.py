"""API keys, of which the database keeps only digests. Each function runs inside the caller's transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection, LargeBinary
from sqlalchemy.dialects.postgresql import ARRAY

from core.credentials import KeyKind, Mode, digest_of, make_api_key
from core.database.tables import api_keys, businesses
from core.errors import UserError
from core.ids import new_id
from core.messages import Outcome
from core.parties.businesses import get_business, lock_business

NAME_MAX_CHARACTERS = 100


class ApiKeyError(UserError):
    """Something asked of an API key cannot be done; the text says what, for people."""


class NoSuchApiKeyError(ApiKeyError):
    """There is no such API key."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without the key itself, which nobody keeps.

    From `revoked_at` on it is refused; that may lie ahead, in the grace period of a key that was rolled.
    """

    id: UUID
    business_id: UUID
    mode: Mode
    kind: KeyKind
    last4: str
    name: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


def create_api_key(connection: Connection, business_id: UUID, kind: KeyKind, name: str = "") -> tuple[ApiKey, str]:
    """Create an API key; return it with the key itself, which cannot be read again."""
    name = name.strip()
    if len(name) > NAME_MAX_CHARACTERS or not name.isprintable():
        text = f"A key's name has at most {NAME_MAX_CHARACTERS} characters, and no control characters."
        raise ApiKeyError(text)
    mode = get_business(connection, business_id).mode
    key = make_api_key(kind, mode)
    id_ = new_id()
    connection.execute(
        api_keys.insert().values(
            business_id=business_id, id=id_, kind=kind, digest=digest_of(key), last4=key[-4:], name=name
        )
    )
    return get_api_key(connection, id_), key


def list_api_keys(connection: Connection, business_id: UUID) -> list[ApiKey]:
    """Return the keys of a business and of its test twin, oldest first, revoked ones too."""
    twin_id = get_business(connection, business_id).twin_id
    query = _select_api_keys().where(api_keys.c.business_id.in_([business_id, twin_id])).order_by(api_keys.c.id)
    return [_api_key(row) for row in connection.execute(query)]


def get_api_key(connection: Connection, api_key_id: UUID) -> ApiKey:
    """Return a key by its id.

    Raises:
        NoSuchApiKeyError: there is none.

    """
    row = connection.execute(_select_api_keys().where(api_keys.c.id == api_key_id)).one_or_none()
    if row is None:
        raise NoSuchApiKeyError
    return _api_key(row)


def revoke_api_key(connection: Connection, api_key_id: UUID, *, after: timedelta = timedelta()) -> ApiKey:
    """Revoke a key; return it. A key that is revoked already, or will be earlier, stays as it is.

    From the commit on, or `after` later, it moves no money: allocations read keys behind the same row lock.
    """
    lock_business(connection, get_api_key(connection, api_key_id).business_id)
    revoked_at = sa.func.clock_timestamp() + sa.literal(after, sa.Interval)
    connection.execute(
        api_keys.update()
        .where(api_keys.c.id == api_key_id, api_keys.c.revoked_at.is_(None) | (api_keys.c.revoked_at > revoked_at))
        .values(revoked_at=revoked_at)
    )
    return get_api_key(connection, api_key_id)


def roll_api_key(connection: Connection, api_key_id: UUID, *, grace: timedelta) -> tuple[ApiKey, str, ApiKey]:
    """Replace a key by a new one of the same business, kind and name; the old one works for `grace` longer.

    Return the new key, its text, and the old one.

    Raises:
        ApiKeyError: the key was revoked or rolled before.

    """
    lock_business(connection, get_api_key(connection, api_key_id).business_id)
    old = get_api_key(connection, api_key_id)
    if old.revoked_at is not None:
        text = "The key was revoked or rolled before."
        raise ApiKeyError(text)
    created, key = create_api_key(connection, old.business_id, old.kind, old.name)
    return created, key, revoke_api_key(connection, api_key_id, after=grace)


def write_last_used(connection: Connection, digests: Sequence[bytes]) -> None:
    """Note that keys were used about now; revoked ones stay as they are.

    A key's row is locked only for this statement, and no allocation waits for it.
    """
    connection.execute(
        api_keys.update()
        .where(api_keys.c.digest == sa.any_(sa.literal(digests, ARRAY(LargeBinary))), _is_live())
        .values(last_used_at=sa.func.now())
    )


def find_secret_keys(connection: Connection, digests: Sequence[bytes]) -> dict[bytes, tuple[UUID, UUID]]:
    """Return (business id, key id) by digest, for those that belong to a live secret key."""
    query = sa.select(api_keys.c.digest, api_keys.c.business_id, api_keys.c.id).where(
        api_keys.c.digest == sa.any_(sa.literal(digests, ARRAY(LargeBinary))),
        api_keys.c.kind == KeyKind.SECRET,
        _is_live(),
    )
    return {row.digest: (row.business_id, row.id) for row in connection.execute(query)}


def find_standing(
    connection: Connection, business_id: UUID, api_key_id: UUID, *, has_name: bool = True
) -> Outcome | None:
    """Return why a key may not allocate now, or None where it may.

    That is `unauthorized`, `payouts_disabled`, or `idempotency_key_required` for a call that has neither an idempotency
    key nor a reference (`has_name`), where the business asks for one.
    """
    query = sa.select(businesses.c.payouts_enabled, businesses.c.requires_keys).join_from(
        api_keys,
        businesses,
        (businesses.c.id == api_keys.c.business_id)
        & (api_keys.c.business_id == business_id)
        & (api_keys.c.id == api_key_id)
        & (api_keys.c.kind == KeyKind.SECRET)
        & _is_live(),
    )
    business = connection.execute(query).one_or_none()
    if business is None:
        return Outcome.UNAUTHORIZED
    if not business.payouts_enabled:
        return Outcome.PAYOUTS_DISABLED
    return Outcome.IDEMPOTENCY_KEY_REQUIRED if business.requires_keys and not has_name else None


def _is_live() -> sa.ColumnElement[bool]:
    return api_keys.c.revoked_at.is_(None) | (api_keys.c.revoked_at > sa.func.clock_timestamp())


def _select_api_keys() -> sa.Select[tuple[object, ...]]:
    columns = [column for column in api_keys.c if column is not api_keys.c.digest]
    return sa.select(*columns, businesses.c.mode).join_from(
        api_keys, businesses, businesses.c.id == api_keys.c.business_id
    )


def _api_key(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    values = row._asdict()
    return ApiKey(**values | {"mode": Mode(values["mode"]), "kind": KeyKind(values["kind"])})
