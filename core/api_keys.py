"""API keys, of which the database keeps only digests. Each function runs inside the caller's transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection, LargeBinary
from sqlalchemy.dialects.postgresql import ARRAY

from core.businesses import get_business, lock_business
from core.credentials import KeyKind, Mode, digest_of, make_api_key
from core.errors import UserError
from core.ids import new_id
from core.messages import Outcome
from core.tables import api_keys, businesses


class NoSuchApiKeyError(UserError):
    """There is no such API key."""


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
    lock_business(connection, key.business_id)
    connection.execute(
        api_keys.update()
        .where(api_keys.c.id == api_key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=sa.func.clock_timestamp())
    )
    return _get_api_key(connection, api_key_id)


def find_secret_keys(connection: Connection, digests: Sequence[bytes]) -> dict[bytes, tuple[UUID, UUID]]:
    """Return (business id, key id) by digest, for those that belong to a secret key which is not revoked."""
    query = sa.select(api_keys.c.digest, api_keys.c.business_id, api_keys.c.id).where(
        api_keys.c.digest == sa.any_(sa.literal(digests, ARRAY(LargeBinary))),
        api_keys.c.kind == KeyKind.SECRET,
        api_keys.c.revoked_at.is_(None),
    )
    return {row.digest: (row.business_id, row.id) for row in connection.execute(query)}


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


def _select_api_keys() -> sa.Select[tuple[object, ...]]:
    columns = [column for column in api_keys.c if column is not api_keys.c.digest]
    return sa.select(*columns, businesses.c.mode).join_from(
        api_keys, businesses, businesses.c.id == api_keys.c.business_id
    )


def _get_api_key(connection: Connection, api_key_id: UUID) -> ApiKey:
    row = connection.execute(_select_api_keys().where(api_keys.c.id == api_key_id)).one_or_none()
    if row is None:
        raise NoSuchApiKeyError
    return _api_key(row)


def _api_key(row: sa.Row[tuple[object, ...]]) -> ApiKey:
    values = row._asdict()
    return ApiKey(**values | {"mode": Mode(values["mode"]), "kind": KeyKind(values["kind"])})
