"""Ids: UUIDv7 inside, `usr_…`, `txn_…`, `bat_…`, `biz_…`, `key_…` outside."""

import os
from enum import StrEnum
from uuid import UUID

import uuid_utils
from uuid_utils.compat import uuid7

# A forked child would otherwise repeat its parent's random numbers.
os.register_at_fork(after_in_child=uuid_utils.reseed_rng)


class IdKind(StrEnum):
    """The prefix that tells what an id names."""

    BUSINESS = "biz"
    API_KEY = "key"
    PAYOUT_USER = "usr"
    TRANSACTION = "txn"
    BATCH = "bat"


def new_id() -> UUID:
    """Make a UUIDv7: unique, and nearly in order of time, so that indexes stay local."""
    return uuid7()


def format_id(kind: IdKind, value: UUID) -> str:
    """Write an id for people and programs outside, for instance `biz_0199…` (prefix and 32 hex digits)."""
    return f"{kind}_{value.hex}"


def parse_id(kind: IdKind, text: str) -> UUID | None:
    """Read an id that `format_id` wrote; None for anything else."""
    try:
        value = UUID(hex=text.removeprefix(f"{kind}_"))
    except ValueError:
        return None
    # One spelling only: `UUID` also reads capitals, braces and hyphens.
    return value if text == format_id(kind, value) else None
