"""The command that lists and finishes what was answered in doubt."""

import sys
import time
from contextlib import closing
from datetime import UTC, datetime

import rich_click as click

from api.cli.options import find_settings, format_time, patient_admin_options, print_document
from core.batches import release
from core.batches.payout_batch import PayoutBatch
from core.database.connection import Database
from core.ids import IdKind, format_id
from core.in_doubt.finishing import Finished, Finisher
from core.in_doubt.records import Doubt, InDoubt
from workers.in_doubt import InDoubtRecords, open_records

_WORDS = {
    Doubt.CALL_FAILED: "a call that was answered 500: never to be paid, or to be reversed",
    Doubt.BATCH_FAILED: "a payout batch that was answered 500: to be cancelled",
    Doubt.BATCH_ACCEPTED: "a payout batch that was answered 202: to be released to the workers",
}
_UNRELEASED_AFTER_S = 60.0
_POLL_S = 0.5


@click.command()
@click.option("--list", "only_list", is_flag=True, help="Name what is in doubt, and do nothing about it.")
@patient_admin_options
def resolve(*, only_list: bool, database: Database, as_json: bool) -> None:
    """Finish what was answered 500 before it was certain; exit code 1 where something is left or may be hidden.

    API processes and workers do the same every few seconds; this is for when none runs, and to see what is in doubt.
    """
    settings = find_settings()
    with closing(open_records(settings)) as records:
        if only_list:
            found = records.read()
            with database.transaction() as connection:
                unreleased = release.list_unreleased(connection, _UNRELEASED_AFTER_S)
            known_ids = {record.id for record in found}
            _print(found, [batch for batch in unreleased if batch.id not in known_ids], records, as_json=as_json)
            sys.exit(1 if records.problems else 0)
        result = _finish(database, records, settings.reply_timeout_s)
        _print_result(result, records, as_json=as_json)
        sys.exit(1 if result.left or records.problems else 0)


def _finish(database: Database, records: InDoubtRecords, overdue_after_s: float) -> Finished:
    """Finish until nothing is left, or what is left has been known for longer than any deadline."""
    finisher = Finisher(database, records, overdue_after_s=overdue_after_s)
    give_up_at = time.monotonic() + overdue_after_s + 2 * _POLL_S
    total = Finished()
    while True:
        result = finisher.work()
        total.finished += result.finished
        total.reversed += result.reversed
        total.cancelled += result.cancelled
        total.left = result.left
        if not result.left or time.monotonic() >= give_up_at:
            return total
        time.sleep(_POLL_S)


def _document(record: InDoubt) -> dict[str, object]:
    return {
        "id": record.name,
        "business": format_id(IdKind.BUSINESS, record.business_id),
        "doubt": record.doubt.value,
        "answered_at": format_time(datetime.fromtimestamp(record.answered_at_s, UTC)),
    }


def _print(found: list[InDoubt], unreleased: list[PayoutBatch], records: InDoubtRecords, *, as_json: bool) -> None:
    document = {
        "in_doubt": [_document(record) for record in found],
        "unreleased_batches": [format_id(IdKind.BATCH, batch.id) for batch in unreleased],
        "problems": records.problems,
    }
    lines = [
        f"{record.name} of {format_id(IdKind.BUSINESS, record.business_id)}: {_WORDS[record.doubt]}" for record in found
    ]
    text = "a payout batch that was accepted and never answered: it will be cancelled"
    lines += [
        f"{format_id(IdKind.BATCH, batch.id)} of {format_id(IdKind.BUSINESS, batch.business_id)}: {text}"
        for batch in unreleased
    ]
    lines.append(f"{len(found) + len(unreleased)} are in doubt.")
    print_document(document, [*lines, *_warnings(records)], as_json=as_json)


def _print_result(result: Finished, records: InDoubtRecords, *, as_json: bool) -> None:
    document = {
        "finished": [record.name for record in result.finished],
        "reversed": [record.name for record in result.reversed],
        "cancelled": [record.name for record in result.cancelled],
        "left": [_document(record) for record in result.left],
        "problems": records.problems,
    }
    lines = [f"{record.name} had committed; it is reversed." for record in result.reversed]
    lines += [f"{record.name} was accepted; it is cancelled." for record in result.cancelled]
    lines += [f"{record.name} is left: {_WORDS[record.doubt]}" for record in result.left]
    lines.append(f"{len(result.finished)} were in doubt and are finished, {len(result.left)} are left.")
    print_document(document, [*lines, *_warnings(records)], as_json=as_json)


def _warnings(records: InDoubtRecords) -> list[str]:
    return [f"Warning: there may be more: {problem}" for problem in records.problems]
