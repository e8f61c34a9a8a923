"""The commands for payout batches: listing, showing and cancelling them."""

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
from core.batches import reading
from core.batches.payout_batch import PayoutBatch, PayoutBatchError
from core.database.connection import Database
from core.ids import IdKind, format_id, parse_id
from core.money import format_dollars
from core.parties.audit import COMMAND_LINE

_BATCHES_SHOWN_MAX = 100


@click.group()
def batch() -> None:
    """Show and cancel payout batches."""


@batch.command("list")
@click.argument("business_ref", metavar="BUSINESS")
@admin_options
def batch_list(business_ref: str, *, database: Database, as_json: bool) -> None:
    """List the newest payout batches of a business, at most 100."""
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
    """Cancel a payout batch. What it has not paid goes back to the payout balance."""
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
