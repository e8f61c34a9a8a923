"""The commands for API keys: creating, listing, revoking and rolling them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import rich_click as click

from api.cli.options import (
    admin_options,
    find_business,
    format_time,
    print_document,
)
from core import admin_actions
from core.credentials import KeyKind
from core.database.connection import Database, read_clock_us
from core.ids import IdKind, format_id, parse_id
from core.parties import api_keys
from core.parties.api_keys import ApiKey
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import BusinessError

_DURATION = re.compile(r"([0-9]{1,7})([smhd])\Z")
_DURATION_UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_GRACE_MAX = timedelta(days=365)


@click.group()
def key() -> None:
    """Create and manage API keys."""


@key.command("create")
@click.argument("business_ref", metavar="BUSINESS")
@click.option("--test", "is_test", is_flag=True, help="A key for the business's test twin.")
@click.option("--public", "is_public", is_flag=True, help="A public key instead of a secret one.")
@click.option("--name", default="", help="What the key is for.")
@admin_options
def key_create(
    business_ref: str, is_test: bool, is_public: bool, name: str, *, database: Database, as_json: bool
) -> None:
    """Create an API key. It is shown once."""
    kind = KeyKind.PUBLIC if is_public else KeyKind.SECRET
    with database.transaction() as connection:
        owner = find_business(connection, business_ref)
        owner_id = owner.twin_id if is_test else owner.id
        created, text = admin_actions.create_api_key(connection, COMMAND_LINE, owner_id, kind, name)
    document = _api_key_document(created) | {f"{kind}_key": text}
    print_document(document, [f"{format_id(IdKind.API_KEY, created.id)}  {text}  (shown only now)"], as_json=as_json)


@key.command("list")
@click.argument("business_ref", metavar="BUSINESS")
@admin_options
def key_list(business_ref: str, *, database: Database, as_json: bool) -> None:
    """List a business's API keys, including revoked ones and those of its test twin."""
    with database.transaction() as connection:
        found = api_keys.list_api_keys(connection, find_business(connection, business_ref).id)
        now = datetime.fromtimestamp(read_clock_us(connection) / 1_000_000, UTC)
    lines = [
        f"{format_id(IdKind.API_KEY, each.id)}  {each.mode}  {each.kind}  …{each.last4}  {_describe_life(each, now)}"
        f"{'  ' + each.name if each.name else ''}"
        for each in found
    ]
    print_document([_api_key_document(each) for each in found], lines, as_json=as_json)


def _describe_life(each: ApiKey, now: datetime) -> str:
    used = f"last used {format_time(each.last_used_at)}" if each.last_used_at else "never used"
    if each.revoked_at is None:
        return f"live since {format_time(each.created_at)}, {used}"
    return f"{'revoked' if each.revoked_at <= now else 'works until'} {format_time(each.revoked_at)}, {used}"


@key.command("revoke")
@click.argument("key_id", metavar="KEY_ID")
@admin_options
def key_revoke(key_id: str, *, database: Database, as_json: bool) -> None:
    """Revoke an API key. It moves no money from now on."""
    with database.transaction() as connection:
        revoked = admin_actions.revoke_api_key(connection, COMMAND_LINE, None, _parse_key_id(key_id))
    print_document(_api_key_document(revoked), [f"{key_id} is revoked."], as_json=as_json)


@key.command("roll")
@click.argument("key_id", metavar="KEY_ID")
@click.option(
    "--grace",
    default="0s",
    metavar="DURATION",
    callback=lambda _context, _option, text: _parse_duration(text),
    help="How long the old key still works, such as 90s, 30m, 24h or 7d. Default: it ends at once.",
)
@admin_options
def key_roll(key_id: str, grace: timedelta, *, database: Database, as_json: bool) -> None:
    """Replace an API key by a new one of the same kind and name. The new key is shown once."""
    with database.transaction() as connection:
        id_ = _parse_key_id(key_id)
        created, text, old = admin_actions.roll_api_key(connection, COMMAND_LINE, None, id_, grace=grace)
    document = _api_key_document(created) | {f"{created.kind}_key": text, "replaces": _api_key_document(old)}
    end = f"works until {format_time(old.revoked_at)}" if grace and old.revoked_at else "is revoked"
    lines = [f"{format_id(IdKind.API_KEY, created.id)}  {text}  (shown only now)", f"{key_id} {end}."]
    print_document(document, lines, as_json=as_json)


def _parse_key_id(key_id: str) -> UUID:
    id_ = parse_id(IdKind.API_KEY, key_id)
    if id_ is None:
        text = "A key is named by its id, such as `payouts key list` shows it: key_…"
        raise BusinessError(text)
    return id_


def _parse_duration(text: str) -> timedelta:
    match = _DURATION.match(text)
    duration = int(match[1]) * _DURATION_UNITS[match[2]] if match else None
    if duration is None or duration > _GRACE_MAX:
        error = f"{text!r} is not a duration from 0s to {_GRACE_MAX.days}d, such as 90s, 30m, 24h or 7d."
        raise click.BadParameter(error)
    return duration


def _api_key_document(each: ApiKey) -> dict[str, Any]:
    return {
        "id": format_id(IdKind.API_KEY, each.id),
        "business_id": format_id(IdKind.BUSINESS, each.business_id),
        "mode": each.mode,
        "kind": each.kind,
        "last4": each.last4,
        "name": each.name,
        "created_at": format_time(each.created_at),
        "last_used_at": format_time(each.last_used_at) if each.last_used_at else None,
        "revoked_at": format_time(each.revoked_at) if each.revoked_at else None,
    }
