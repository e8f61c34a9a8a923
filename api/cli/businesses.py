"""The commands for businesses: creating, showing, switching and funding them."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from uuid import UUID

import rich_click as click
from sqlalchemy import Connection

from api.cli.options import (
    admin_options,
    find_business,
    format_time,
    print_document,
)
from core import admin_actions
from core.credentials import KeyKind, Mode
from core.database.connection import Database
from core.ids import IdKind, format_id
from core.money import BALANCE_MAX_CENTS, format_dollars
from core.parties import api_keys, businesses
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import Business


@click.group()
def business() -> None:
    """Create and manage businesses."""


@business.command("create")
@click.argument("name")
@click.option(
    "--funds",
    type=click.IntRange(0, BALANCE_MAX_CENTS),
    default=0,
    metavar="CENTS",
    help="Add this to its payout balance.",
)
@click.option("--enable-payouts", is_flag=True, help="Switch payouts on.")
@admin_options
def business_create(name: str, funds: int, enable_payouts: bool, *, database: Database, as_json: bool) -> None:
    """Create a business and its test twin, each with a secret and a public key. The keys are shown once."""
    with database.transaction() as connection:
        created = admin_actions.create_business(connection, COMMAND_LINE, name, payouts_enabled=enable_payouts)
        if funds:
            created = admin_actions.fund_business(connection, COMMAND_LINE, created.id, funds)
        keys = {
            f"{prefix}{kind}_key": api_keys.create_api_key(connection, owner_id, kind)[1]
            for prefix, owner_id in (("", created.id), ("test_", created.twin_id))
            for kind in KeyKind
        }
    lines = [*_describe_business(created)]
    lines += [f"  {name.replace('_', ' '):<16} {key}" for name, key in keys.items()]
    lines.append("The keys are shown only now. Those for tests move play money, of a business of their own.")
    print_document(_business_document(created) | keys, lines, as_json=as_json)


@business.command("list")
@admin_options
def business_list(*, database: Database, as_json: bool) -> None:
    """List all businesses."""
    with database.transaction() as connection:
        found = businesses.list_businesses(connection)
    lines = [
        f"{format_id(IdKind.BUSINESS, each.id)}  {format_dollars(each.payout_balance):>18}  "
        f"{'enabled ' if each.payouts_enabled else 'disabled'}  {each.name}"
        for each in found
    ]
    print_document(
        [_business_document(each) for each in found],
        lines or ["There are no businesses yet."],
        as_json=as_json,
    )


def _business_action(
    action: Callable[[Connection, UUID], Business], business_ref: str, database: Database, *, as_json: bool
) -> None:
    with database.transaction() as connection:
        changed = action(connection, find_business(connection, business_ref).id)
    print_document(_business_document(changed), _describe_business(changed), as_json=as_json)


@business.command("show")
@click.argument("business_ref", metavar="BUSINESS")
@admin_options
def business_show(business_ref: str, *, database: Database, as_json: bool) -> None:
    """Show a business, by id or name."""
    _business_action(businesses.get_business, business_ref, database, as_json=as_json)


@business.command("enable")
@click.argument("business_ref", metavar="BUSINESS")
@admin_options
def business_enable(business_ref: str, *, database: Database, as_json: bool) -> None:
    """Switch payouts on."""
    _business_action(
        lambda connection, id_: admin_actions.set_payouts_enabled(connection, COMMAND_LINE, id_, enabled=True),
        business_ref,
        database,
        as_json=as_json,
    )


@business.command("disable")
@click.argument("business_ref", metavar="BUSINESS")
@admin_options
def business_disable(business_ref: str, *, database: Database, as_json: bool) -> None:
    """Switch payouts off."""
    _business_action(
        lambda connection, id_: admin_actions.set_payouts_enabled(connection, COMMAND_LINE, id_, enabled=False),
        business_ref,
        database,
        as_json=as_json,
    )


@business.command("require-keys")
@click.argument("business_ref", metavar="BUSINESS")
@click.argument("state", type=click.Choice(["on", "off"]))
@admin_options
def business_require_keys(business_ref: str, state: str, *, database: Database, as_json: bool) -> None:
    """Refuse payments without an Idempotency-Key or a reference, or stop refusing them."""
    _business_action(
        lambda connection, id_: admin_actions.set_requires_keys(connection, COMMAND_LINE, id_, required=state == "on"),
        business_ref,
        database,
        as_json=as_json,
    )


@business.command("fund")
@click.argument("business_ref", metavar="BUSINESS")
@click.argument("amount_cents", metavar="CENTS", type=click.IntRange(1, BALANCE_MAX_CENTS))
@admin_options
def business_fund(business_ref: str, amount_cents: int, *, database: Database, as_json: bool) -> None:
    """Add cents to the payout balance."""
    _business_action(
        lambda connection, id_: admin_actions.fund_business(connection, COMMAND_LINE, id_, amount_cents),
        business_ref,
        database,
        as_json=as_json,
    )


@business.command("deposit")
@click.argument("business_ref", metavar="BUSINESS")
@click.argument("amount_cents", metavar="CENTS", type=click.IntRange(1, BALANCE_MAX_CENTS))
@admin_options
def business_deposit(business_ref: str, amount_cents: int, *, database: Database, as_json: bool) -> None:
    """Add cents to the main balance, from which admins fund payouts in the dashboard."""
    _business_action(
        lambda connection, id_: admin_actions.deposit(connection, COMMAND_LINE, id_, amount_cents),
        business_ref,
        database,
        as_json=as_json,
    )


@business.command("recount")
@click.argument("business_ref", metavar="BUSINESS")
@admin_options
def business_recount(business_ref: str, *, database: Database, as_json: bool) -> None:
    """Count the dashboard's sums by day again. The audit log keeps what they were.

    If `payouts verify` finds a sum wrong, find out first which of the two was changed: the sum or the history.
    """
    with database.transaction() as connection:
        found = find_business(connection, business_ref)
        differences = admin_actions.recount_sums(connection, COMMAND_LINE, found.id)
    lines = [
        f"{each.day} {each.type}: kept were {each.kept_count} rows of {each.kept_amount} cents, and the history has "
        f"{each.count} of {each.amount}"
        for each in differences
    ]
    lines.append("The workers count anew; until they have, the dashboard reads the history itself.")
    document = _business_document(found) | {
        "differences": [asdict(each) | {"day": each.day.isoformat()} for each in differences]
    }
    print_document(document, lines, as_json=as_json)


def _describe_business(each: Business) -> list[str]:
    return [
        f"{format_id(IdKind.BUSINESS, each.id)}  {each.name}{' (test mode)' if each.mode is Mode.TEST else ''}",
        f"  payout balance   {format_dollars(each.payout_balance)}",
        f"  reserved         {format_dollars(each.reserved_balance)}",
        f"  main balance     {format_dollars(each.balance)}",
        f"  payouts          {'enabled' if each.payouts_enabled else 'disabled'}",
        f"  keys             {'required' if each.requires_keys else 'not required'}",
    ]


def _business_document(each: Business) -> dict[str, Any]:
    return {
        "id": format_id(IdKind.BUSINESS, each.id),
        "name": each.name,
        "mode": each.mode,
        "twin_id": format_id(IdKind.BUSINESS, each.twin_id),
        "balance": each.balance,
        "payout_balance": each.payout_balance,
        "reserved_balance": each.reserved_balance,
        "payouts_enabled": each.payouts_enabled,
        "requires_keys": each.requires_keys,
        "low_balance_threshold": each.low_balance_threshold,
        "created_at": format_time(each.created_at),
    }
