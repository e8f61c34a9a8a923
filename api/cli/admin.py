"""The commands for administrators: businesses, keys, users, migrations, and proving the books."""

import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import rich_click as click
from sqlalchemy import Connection

from api.cli.members import member
from api.cli.options import (
    admin_options,
    find_business,
    format_time,
    patient_admin_options,
    print_document,
    waiting_admin_options,
)
from core import admin_actions
from core.batches import reading
from core.batches.payout_batch import PayoutBatch, PayoutBatchError
from core.credentials import KeyKind, Mode
from core.database.connection import Database, read_clock_us
from core.database.schema import migrate as run_migrations
from core.ids import IdKind, format_id, parse_id
from core.ledger.day_sums import forget_sums
from core.ledger.verification import verify as run_verification
from core.money import BALANCE_MAX_CENTS, format_dollars
from core.parties import api_keys, businesses, payout_users
from core.parties.api_keys import ApiKey
from core.parties.audit import COMMAND_LINE
from core.parties.businesses import Business, BusinessError
from core.parties.payout_users import PayoutUser, UserStatus

_DURATION = re.compile(r"([0-9]{1,7})([smhd])\Z")
_DURATION_UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_GRACE_MAX = timedelta(days=365)
_BATCHES_SHOWN_MAX = 100


@click.command()
@waiting_admin_options
def migrate(*, database: Database, as_json: bool) -> None:
    """Bring the database to this version's schema."""
    revision = run_migrations(database)
    print_document({"revision": revision}, [f"The database is at revision {revision}."], as_json=as_json)


@click.command()
@patient_admin_options
def verify(*, database: Database, as_json: bool) -> None:
    """Prove that the books balance; exit code 1 where they do not, 2 where it could not be found out."""
    with database.snapshot() as connection:
        found = run_verification(connection)
    lines = [
        f"{each.id}: {each.rule}: expected {each.expected_cents} cents, found {each.actual_cents}"
        for each in found.discrepancies
    ]
    verdict = "The books balance" if found.balanced else f"The books do not balance in {len(lines)} places"
    lines.append(
        f"{verdict}: {found.businesses} businesses (test twins included), {found.payout_users} payout users, "
        f"{found.transactions} transactions."
    )
    print_document(asdict(found) | {"balanced": found.balanced}, lines, as_json=as_json)
    if not found.balanced:
        sys.exit(1)


@click.group()
def business() -> None:
    """Create and manage businesses."""


@business.command("create")
@click.argument("name")
@click.option("--funds", type=click.IntRange(0, BALANCE_MAX_CENTS), default=0, metavar="CENTS", help="First funding.")
@click.option("--enable-payouts", is_flag=True, help="Switch payouts on at once.")
@admin_options
def business_create(name: str, funds: int, enable_payouts: bool, *, database: Database, as_json: bool) -> None:
    """Create a business and its test twin, with a secret and a public key each, which are shown this once."""
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


@business.command("fund")
@click.argument("business_ref", metavar="BUSINESS")
@click.argument("amount_cents", metavar="CENTS", type=click.IntRange(1, BALANCE_MAX_CENTS))
@admin_options
def business_fund(business_ref: str, amount_cents: int, *, database: Database, as_json: bool) -> None:
    """Add cents from outside to the payout balance."""
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
    """Add cents from outside to the main balance, from which members fund payouts in the dashboard."""
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
    """Have the dashboard's sums by day counted anew, where `payouts verify` finds them wrong."""
    with database.transaction() as connection:
        found = find_business(connection, business_ref)
        forget_sums(connection, found.id)
    lines = ["The workers count anew; until they have, the dashboard reads the history itself."]
    print_document(_business_document(found), lines, as_json=as_json)


@click.group()
def key() -> None:
    """Create and manage API keys."""


@key.command("create")
@click.argument("business_ref", metavar="BUSINESS")
@click.option("--test", "is_test", is_flag=True, help="A key for the business's test twin.")
@click.option("--public", "is_public", is_flag=True, help="A public key in place of a secret one.")
@click.option("--name", default="", help="What the key is for.")
@admin_options
def key_create(
    business_ref: str, is_test: bool, is_public: bool, name: str, *, database: Database, as_json: bool
) -> None:
    """Create an API key, which is shown this once."""
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
    """List a business's API keys, those of its test twin and revoked ones too."""
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
    """Revoke an API key: it moves no money from now on."""
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
    help="How much longer the old key works, such as 90s, 30m, 24h or 7d. Without it, it ends at once.",
)
@admin_options
def key_roll(key_id: str, grace: timedelta, *, database: Database, as_json: bool) -> None:
    """Replace an API key by a new one with the same kind and name, which is shown this once."""
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


@click.group()
def user() -> None:
    """See, activate and deactivate payout users."""


@user.command("show")
@click.argument("words", metavar="[BUSINESS] EMAIL", nargs=-1, required=True)
@admin_options
def user_show(words: tuple[str, ...], *, database: Database, as_json: bool) -> None:
    """Show a payout user by e-mail, in any spelling; name the business where several have such a user."""
    with database.transaction() as connection:
        _print_user(_find_user(connection, words), as_json=as_json)


@user.command("activate")
@click.argument("words", metavar="[BUSINESS] EMAIL", nargs=-1, required=True)
@admin_options
def user_activate(words: tuple[str, ...], *, database: Database, as_json: bool) -> None:
    """Let a payout user's hash in again."""
    _set_user_status(words, UserStatus.ACTIVE, database, as_json=as_json)


@user.command("deactivate")
@click.argument("words", metavar="[BUSINESS] EMAIL", nargs=-1, required=True)
@admin_options
def user_deactivate(words: tuple[str, ...], *, database: Database, as_json: bool) -> None:
    """Lock a payout user's hash out. Allocations to the user go on, and the money waits."""
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


def _describe_business(each: Business) -> list[str]:
    return [
        f"{format_id(IdKind.BUSINESS, each.id)}  {each.name}{' (test mode)' if each.mode is Mode.TEST else ''}",
        f"  payout balance   {format_dollars(each.payout_balance)}",
        f"  reserved         {format_dollars(each.reserved_balance)}",
        f"  main balance     {format_dollars(each.balance)}",
        f"  payouts          {'enabled' if each.payouts_enabled else 'disabled'}",
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
        "low_balance_threshold": each.low_balance_threshold,
        "created_at": format_time(each.created_at),
    }


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


@click.group()
def batch() -> None:
    """See and cancel payout batches."""


@batch.command("list")
@click.argument("business_ref", metavar="BUSINESS")
@admin_options
def batch_list(business_ref: str, *, database: Database, as_json: bool) -> None:
    """List a business's newest payout batches, up to a hundred."""
    with database.transaction() as connection:
        owner = find_business(connection, business_ref)
        found = reading.list_batches(connection, owner.id, limit=_BATCHES_SHOWN_MAX)
    lines = [line for each in found for line in _describe_batch(each)[:1]]
    print_document(
        [_batch_document(each) for each in found], lines or ["There are no payout batches yet."], as_json=as_json
    )


@batch.command("show")
@click.argument("batch_id", metavar="BATCH_ID")
@admin_options
def batch_show(batch_id: str, *, database: Database, as_json: bool) -> None:
    """Show a payout batch."""
    with database.transaction() as connection:
        found = _find_batch(connection, batch_id)
    print_document(_batch_document(found), _describe_batch(found), as_json=as_json)


@batch.command("cancel")
@click.argument("batch_id", metavar="BATCH_ID")
@admin_options
def batch_cancel(batch_id: str, *, database: Database, as_json: bool) -> None:
    """Stop a payout batch: what it has not paid yet goes back to the payout balance."""
    with database.transaction() as connection:
        found = _find_batch(connection, batch_id)
        cancelled = admin_actions.cancel_batch(connection, COMMAND_LINE, found.business_id, found.id)
    print_document(_batch_document(cancelled), _describe_batch(cancelled), as_json=as_json)


def _find_batch(connection: Connection, batch_id: str) -> PayoutBatch:
    id_ = parse_id(IdKind.BATCH, batch_id)
    found = reading.find_batch_anywhere(connection, id_) if id_ else None
    if found is None:
        text = f"There is no payout batch with the id {batch_id!r}."
        raise PayoutBatchError(text)
    return found


def _describe_batch(each: PayoutBatch) -> list[str]:
    paid = f"{format_dollars(each.allocated_amount)} of {format_dollars(each.amount)}"
    return [
        f"{format_id(IdKind.BATCH, each.id)}  {each.status:<10}  {each.processed} of {each.total} rows, {paid}",
        f"  created          {format_time(each.created_at)}",
        f"  last worked on   {format_time(each.updated_at)}",
    ]


def _batch_document(each: PayoutBatch) -> dict[str, Any]:
    return {
        "id": format_id(IdKind.BATCH, each.id),
        "business_id": format_id(IdKind.BUSINESS, each.business_id),
        "status": each.status,
        "total": each.total,
        "amount": each.amount,
        "processed": each.processed,
        "allocated_amount": each.allocated_amount,
        "created_at": format_time(each.created_at),
        "updated_at": format_time(each.updated_at),
        "finished_at": format_time(each.finished_at) if each.finished_at else None,
    }


COMMANDS: dict[str, click.Command] = {
    "migrate": migrate,
    "business": business,
    "key": key,
    "user": user,
    "batch": batch,
    "member": member,
    "verify": verify,
}
