"""What `payouts push` says before it pays: what is paid already, and what equals payments of before."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from api.batches.files import Part, PushFile
from core.batches.preview import EQUALS_SHOWN_MAX, PAYMENTS_LOOKED_AT_MAX
from core.money import format_dollars


class Origin(msgspec.Struct):
    """When, how and by whom something was paid."""

    paid_at: str
    how: str
    by: str
    batch: str | None

    def __str__(self) -> str:
        """Say it in words."""
        by = f" by {self.by}" if self.by else ""
        batch = f", {self.batch}" if self.batch else ""
        return f"{self.paid_at[:16].replace('T', ' ')} UTC through {self.how}{by}{batch}"


class EqualPayment(msgspec.Struct):
    """A row of a part, counted from 0, that equals an earlier payment."""

    row: int
    origin: Origin


class Preview(msgspec.Struct):
    """What the server says that a part would do."""

    total: int
    already_paid: int
    amount: int
    payout_balance: int
    batch: str | None
    rows_without_reference: int
    equal_rows: int
    equal_batch: Origin | None
    equal_payments: list[EqualPayment]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What all parts of a file would do together."""

    file: PushFile
    parts: Sequence[Part]
    previews: Sequence[Preview]

    @property
    def amount(self) -> int:
        """What is to be paid now, in cents."""
        return sum(each.amount for each in self.previews)

    @property
    def rows(self) -> int:
        """How many rows are to be paid now."""
        return sum(each.total - each.already_paid for each in self.previews)

    @property
    def equal_rows(self) -> int:
        """How many of those equal earlier payments."""
        return sum(each.equal_rows for each in self.previews)

    @property
    def payout_balance(self) -> int:
        """What is free to allocate, in cents."""
        return self.previews[-1].payout_balance

    def describe(self) -> list[str]:
        """Say it in lines."""
        lines = [
            f"{_name(self.file, part)} was accepted by an earlier run: {each.batch}. It is not paid again."
            for part, each in zip(self.parts, self.previews, strict=True)
            if each.batch is not None
        ]
        already_paid = sum(each.already_paid for each in self.previews if each.batch is None)
        if already_paid:
            lines.append(
                f"{already_paid:,} of {_count(len(self.file.rows), 'row')} already paid: an earlier payment has the "
                "same reference, person and amount."
            )
        lines += self._describe_equal()
        if already_paid or len(lines):
            lines.append(f"To pay now: {_count(self.rows, 'row')}, {format_dollars(self.amount)}.")
        return lines

    def _describe_equal(self) -> list[str]:
        if not self.equal_rows:
            return []
        unnamed = sum(each.rows_without_reference for each in self.previews)
        verb = "equals an earlier payment" if self.equal_rows == 1 else "equal earlier payments"
        text = (
            f"{self.equal_rows:,} of {_count(unnamed, 'row')} without a reference {verb}. Looked at were each person's "
            f"newest {PAYMENTS_LOOKED_AT_MAX} payments, and rows that wait to be paid."
        )
        lines = [text]
        pairs = list(zip(self.parts, self.previews, strict=True))
        for part, each in pairs:
            if each.equal_batch is not None:
                what = "The whole file was" if len(self.parts) == 1 else f"{_name(self.file, part)} was"
                lines.append(f"  {what} handed in before: {each.equal_batch}")
        shown = [
            (self.file.lines[part.first + equal.row], equal) for part, each in pairs for equal in each.equal_payments
        ]
        lines += [f"  Line {line}: paid {equal.origin}" for line, equal in shown[:EQUALS_SHOWN_MAX]]
        more = self.equal_rows - min(len(shown), EQUALS_SHOWN_MAX)
        return [*lines, f"  and {more:,} more"] if more else lines


def _name(file: PushFile, part: Part) -> str:
    return f"Batch {part.number} of {part.count} (lines {file.lines[part.first]} to {file.lines[part.end - 1]})"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
