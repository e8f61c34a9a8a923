"""What a payout batch is: a file's worth of allocations, its rows, their limits and their states."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec

from core.errors import UserError

ROWS_MAX = 100_000
BODY_MAX_BYTES = 32 * 2**20
"""What one payout batch's request may be."""
REFERENCE_MAX_CHARACTERS = 255


class PayoutBatchError(UserError):
    """Something asked of a payout batch cannot be done; the text says what, for people."""


class BatchStatus(StrEnum):
    """How far a payout batch is. While payouts are disabled it stays as it is."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class RowOutcome(StrEnum):
    """What became of a row."""

    PENDING = "pending"
    ALLOCATED = "allocated"
    ALREADY_PAID = "already_paid"
    """An earlier payment to the same person of the same amount has the row's reference; nothing was paid again."""
    CANCELLED = "cancelled"
    """The batch was cancelled before the row's turn; its money went back to the payout balance."""


class BatchRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row as it is accepted: normalised e-mail, amount in cents, and the business's own reference."""

    email: str
    amount_cents: int
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class PayoutBatch:
    """A payout batch; amounts in cents.

    `processed` of its `total` rows are paid: those that were `already_paid` by an earlier payment, and of the others
    the first ones. `amount` is what the others come to, and what was reserved for them.
    """

    id: UUID
    business_id: UUID
    status: BatchStatus
    total: int
    amount: int
    processed: int
    allocated_amount: int
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    already_paid: int
    api_key_id: UUID | None
    """The key that handed it in; None for the dashboard, and for batches accepted by an earlier release."""
    released_at: datetime | None
    """From then on workers pay it; before, its caller may still be answered 500."""
