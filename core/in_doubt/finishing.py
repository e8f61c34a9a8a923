"""Finishing what is in doubt: whatever process was answering then, any process does it, and twice does no harm."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from core.batches import release
from core.database.connection import DATABASE_ERRORS, Database, describe_error, is_connection_error
from core.errors import UserError
from core.ids import IdKind, format_id
from core.in_doubt.records import Doubt, InDoubt, RecordStore
from core.ledger import resolution
from core.logging.fields import about

logger = logging.getLogger(__name__)

_AT_ONCE_MAX = 500


@dataclass
class Finished:
    """What became of records: `reversed` and `cancelled` are among the finished."""

    finished: list[InDoubt] = field(default_factory=list)
    reversed: list[InDoubt] = field(default_factory=list)
    cancelled: list[InDoubt] = field(default_factory=list)
    left: list[InDoubt] = field(default_factory=list)


class Finisher:
    """Finishes the records of one store, again and again.

    A call is overdue when this process has known it for longer than any deadline lies ahead: no other clock is asked.
    """

    def __init__(self, database: Database, records: RecordStore, *, overdue_after_s: float) -> None:
        self._database = database
        self._records = records
        self._overdue_after_s = overdue_after_s
        self._known_since: dict[UUID, float] = {}

    def work(self) -> Finished:
        """Finish what can be; what is left stays recorded.

        Raises:
            Exception: the store cannot be read, or the database is out of reach.

        """
        records = self._records.read()
        now = time.monotonic()
        self._known_since = {record.id: self._known_since.get(record.id, now) for record in records}
        result = Finished()
        try:
            for group in _group(records):
                self._finish(group, now, result)
        finally:
            if result.finished:
                self._records.discard(result.finished)
            finished_ids = {record.id for record in result.finished}
            result.left = [record for record in records if record.id not in finished_ids]
        return result

    def _finish(self, group: Sequence[InDoubt], now: float, result: Finished) -> None:
        """Finish records of one business and kind; an error that is the business's own leaves the others alone."""
        try:
            if group[0].doubt is Doubt.CALL_FAILED:
                self._resolve(group, now, result)
            else:
                for record in group:
                    self._finish_batch(record, result)
        except (*DATABASE_ERRORS, UserError) as error:
            if is_connection_error(error):
                raise
            extra = about(error=error, business_id=format_id(IdKind.BUSINESS, group[0].business_id))
            logger.warning(
                "%d records in doubt are not finished yet: %s", len(group), describe_error(error), extra=extra
            )

    def _resolve(self, calls: Sequence[InDoubt], now: float, result: Finished) -> None:
        overdue = [call for call in calls if now - self._known_since[call.id] >= self._overdue_after_s]
        others = [call for call in calls if call not in overdue]
        for some, are_overdue in ((overdue, True), (others, False)):
            if not some:
                continue
            with self._database.transaction() as connection:
                found = resolution.resolve(connection, some, are_overdue=are_overdue)
            for call in some:
                if call.id in found.committed:
                    self._withdraw(call, result)
                elif call.id in found.never or call.id in found.withdrawn:
                    result.finished.append(call)

    def _withdraw(self, call: InDoubt, result: Finished) -> None:
        with self._database.transaction() as connection:
            is_reversed = resolution.withdraw(connection, call)
        result.finished.append(call)
        extra = about(allocation_id=call.name, always=True)
        if is_reversed:
            result.reversed.append(call)
            logger.error("allocation %s was answered 500 but committed; it is reversed", call.name, extra=extra)
        else:
            text = "allocation %s was answered 500 but committed; a retry of it was answered 201 and counts"
            logger.error(text, call.name, extra=extra)

    def _finish_batch(self, record: InDoubt, result: Finished) -> None:
        is_failed = record.doubt is Doubt.BATCH_FAILED
        with self._database.transaction() as connection:
            change = release.cancel_unreleased if is_failed else release.release
            changed = change(connection, record.business_id, record.id)
        result.finished.append(record)
        if is_failed and changed is not None:
            result.cancelled.append(record)
            extra = about(batch_id=record.name, always=True)
            logger.error(
                "%s was answered 500 but accepted; it is cancelled, none of it was paid", record.name, extra=extra
            )


def _group(records: Sequence[InDoubt]) -> Iterator[list[InDoubt]]:
    """Return records by business and kind, a bounded number at once."""
    groups: dict[tuple[UUID, Doubt], list[InDoubt]] = defaultdict(list)
    for record in records:
        groups[record.business_id, record.doubt].append(record)
    for group in groups.values():
        for first in range(0, len(group), _AT_ONCE_MAX):
            yield group[first : first + _AT_ONCE_MAX]
