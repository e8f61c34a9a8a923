"""The commands for payout users: showing, activating and deactivating them."""

from typing import Any

import rich_click as click
from sqlalchemy import Connection

from api.cli.options import (
    admin_options,
    find_business,
    format_time,
    print_document,
)
from core import admin_actions
from core.database.connection import Database
from core.ids import IdKind, format_id
from core.money import format_dollars
from core.parties import payout_users
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import BusinessError
from core.parties.payout_users import PayoutUser, UserStatus


@click.group()
def user() -> None:
    """Show, activate and deactivate payout users."""


@user.command("show")
@click.argument("words", metavar="[BUSINESS] EMAIL", nargs=-1, required=True)
@admin_options
def user_show(words: tuple[str, ...], *, database: Database, as_json: bool) -> None:
    """Show a payout user by e-mail. Name the business if several have a user with this e-mail."""
    with database.transaction() as connection:
        _print_user(_find_user(connection, words), as_json=as_json)


@user.command("activate")
@click.argument("words", metavar="[BUSINESS] EMAIL", nargs=-1, required=True)
@admin_options
def user_activate(words: tuple[str, ...], *, database: Database, as_json: bool) -> None:
    """Activate a payout user: the hash is accepted again."""
    _set_user_status(words, UserStatus.ACTIVE, database, as_json=as_json)


@user.command("deactivate")
@click.argument("words", metavar="[BUSINESS] EMAIL", nargs=-1, required=True)
@admin_options
def user_deactivate(words: tuple[str, ...], *, database: Database, as_json: bool) -> None:
    """Deactivate a payout user: the hash is refused. Allocations to the user are still accepted."""
    _set_user_status(words, UserStatus.INACTIVE, database, as_json=as_json)


def _set_user_status(words: tuple[str, ...], status: UserStatus, database: Database, *, as_json: bool) -> None:
    with database.transaction() as connection:
        found = _find_user(connection, words)
        changed = admin_actions.set_user_status(connection, COMMAND_LINE, found.business_id, found.id, status)
        _print_user(changed or found, as_json=as_json)


def _find_user(connection: Connection, words: tuple[str, ...]) -> PayoutUser:
    *business_ref, email = words
    if len(business_ref) > 1:
        text = "Expected: [BUSINESS] EMAIL"
        raise BusinessError(text)
    business_id = find_business(connection, business_ref[0]).id if business_ref else None
    return payout_users.find_payout_user(connection, business_id, email)


def _print_user(found: PayoutUser, *, as_json: bool) -> None:
    lines = [
        f"{format_id(IdKind.PAYOUT_USER, found.id)}  {found.email}",
        f"  balance          {format_dollars(found.balance)}",
        f"  status           {found.status}",
        f"  created          {format_time(found.created_at)}",
        f"  updated          {format_time(found.updated_at)}",
    ]
    print_document(_user_document(found), lines, as_json=as_json)


def _user_document(each: PayoutUser) -> dict[str, Any]:
    return {
        "id": format_id(IdKind.PAYOUT_USER, each.id),
        "business_id": format_id(IdKind.BUSINESS, each.business_id),
        "email": each.email,
        "balance": each.balance,
        "currency": "USD",
        "status": each.status,
        "created_at": format_time(each.created_at),
        "updated_at": format_time(each.updated_at),
    }
