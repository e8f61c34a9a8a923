"""The shapes that callers read: each struct is a JSON object of the HTTP contract, and its part of OpenAPI.

Money is in cents, times are RFC 3339 in UTC.
"""

from datetime import datetime
from typing import Annotated, Generic, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta

from core.batches import preview
from core.batches.payout_batch import BatchStatus, PayoutBatch, RowOutcome
from core.batches.reading import BatchResult
from core.ids import IdKind, format_id
from core.ledger import history
from core.ledger.history import TransactionType
from core.parties.businesses import Business
from core.parties.payout_users import PayoutUser, UserStatus

CURRENCY = "USD"
Row = TypeVar("Row")

Cents = Annotated[int, Meta(description="cents")]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="The payout user's hash")]
UserId = Annotated[str, Meta(pattern="^usr_[0-9a-f]{32}$")]
TransactionId = Annotated[str, Meta(pattern="^txn_[0-9a-f]{32}$")]
BatchId = Annotated[str, Meta(pattern="^bat_[0-9a-f]{32}$")]


class Payout(msgspec.Struct, frozen=True):
    """What `POST /payout/create` answers."""

    hash: Hash


class Balance(msgspec.Struct, frozen=True):
    """A business's balances; `payout_balance` is what is free to allocate now."""

    balance: Cents
    payout_balance: Cents

    @classmethod
    def of(cls, business: Business) -> "Balance":
        """Describe a business's balances."""
        return cls(business.balance, business.payout_balance)


class User(msgspec.Struct, frozen=True):
    """A payout user, as the business sees it."""

    id: UserId
    email: str
    balance: Cents
    currency: str
    status: UserStatus
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, user: PayoutUser) -> "User":
        """Describe a user."""
        id_ = format_id(IdKind.PAYOUT_USER, user.id)
        return cls(id_, user.email, user.balance, CURRENCY, user.status, user.created_at, user.updated_at)


class OwnUser(msgspec.Struct, frozen=True):
    """A payout user, as seen by the user."""

    email: str
    balance: Cents
    currency: str
    status: UserStatus
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, user: PayoutUser) -> "OwnUser":
        """Describe a user."""
        return cls(user.email, user.balance, CURRENCY, user.status, user.created_at, user.updated_at)


class Transaction(msgspec.Struct, frozen=True):
    """A row of the history, as the business sees it; `reverses` names the allocation that a reversal undid."""

    id: TransactionId
    type: TransactionType
    user: UserId | None
    email: str | None
    amount: Cents
    currency: str
    payout_balance_after: Cents
    user_balance_after: Cents | None
    idempotency_key: str | None
    reverses: TransactionId | None
    batch: BatchId | None
    created_at: datetime
    reference: str | None

    @classmethod
    def of(cls, row: history.Transaction) -> "Transaction":
        """Describe a row of the history."""
        return cls(
            id=format_id(IdKind.TRANSACTION, row.id),
            type=row.type,
            user=format_id(IdKind.PAYOUT_USER, row.payout_user_id) if row.payout_user_id else None,
            email=row.email,
            amount=row.amount,
            currency=CURRENCY,
            payout_balance_after=row.payout_balance_after,
            user_balance_after=row.user_balance_after,
            idempotency_key=row.idempotency_key,
            reverses=format_id(IdKind.TRANSACTION, row.reversed_id) if row.reversed_id else None,
            batch=format_id(IdKind.BATCH, row.batch_id) if row.batch_id else None,
            created_at=row.created_at,
            reference=row.reference,
        )


class OwnTransaction(msgspec.Struct, frozen=True):
    """A row of the history, as seen by its payout user: nothing of the business's."""

    id: TransactionId
    type: TransactionType
    amount: Cents
    currency: str
    balance_after: Cents | None
    reverses: TransactionId | None
    created_at: datetime

    @classmethod
    def of(cls, row: history.Transaction) -> "OwnTransaction":
        """Describe a row of the history."""
        return cls(
            id=format_id(IdKind.TRANSACTION, row.id),
            type=row.type,
            amount=row.amount,
            currency=CURRENCY,
            balance_after=row.user_balance_after,
            reverses=format_id(IdKind.TRANSACTION, row.reversed_id) if row.reversed_id else None,
            created_at=row.created_at,
        )


class Batch(msgspec.Struct, frozen=True):
    """A payout batch: `processed` of its `total` rows are paid, of which `already_paid` by earlier payments.

    `amount` is what the others come to.
    """

    id: BatchId
    status: BatchStatus
    total: int
    amount: Cents
    processed: int
    allocated_amount: Cents
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    already_paid: int

    @classmethod
    def of(cls, batch: PayoutBatch) -> "Batch":
        """Describe a payout batch."""
        return cls(
            id=format_id(IdKind.BATCH, batch.id),
            status=batch.status,
            total=batch.total,
            amount=batch.amount,
            processed=batch.processed,
            allocated_amount=batch.allocated_amount,
            created_at=batch.created_at,
            updated_at=batch.updated_at,
            finished_at=batch.finished_at,
            already_paid=batch.already_paid,
        )


class Origin(msgspec.Struct, frozen=True):
    """When, how and by whom something was paid; `by` is empty where it is not recorded."""

    paid_at: datetime
    how: preview.Door
    by: str
    batch: BatchId | None

    @classmethod
    def of(cls, origin: preview.Origin) -> "Origin":
        """Describe where a payment came from."""
        return cls(origin.at, origin.door, origin.by, _batch_id(origin.batch_id))


class EqualPayment(msgspec.Struct, frozen=True):
    """A row without a reference, counted from 0, that equals an earlier payment; `transaction` once that is paid."""

    row: int
    transaction: TransactionId | None
    origin: Origin

    @classmethod
    def of(cls, equal: preview.EqualPayment) -> "EqualPayment":
        """Describe a row that equals an earlier payment."""
        id_ = None if equal.payment_id is None else format_id(IdKind.TRANSACTION, equal.payment_id)
        return cls(equal.row, id_, Origin.of(equal.origin))


class BatchPreview(msgspec.Struct, frozen=True):
    """What a batch would do. `batch` is the one that the same idempotency key and rows were accepted as.

    Of `rows_without_reference`, `equal_rows` have the e-mail and amount of an earlier payment, of which
    `equal_payments` are the first. `equal_batch` tells of the newest batch that had exactly these rows.
    """

    total: int
    already_paid: int
    amount: Cents
    payout_balance: Cents
    batch: BatchId | None
    rows_without_reference: int
    equal_rows: int
    equal_batch: Origin | None
    equal_payments: list[EqualPayment]

    @classmethod
    def of(cls, found: preview.Preview) -> "BatchPreview":
        """Describe a preview."""
        return cls(
            total=found.total,
            already_paid=found.already_paid,
            amount=found.amount,
            payout_balance=found.payout_balance,
            batch=_batch_id(found.replayed_batch_id),
            rows_without_reference=found.unnamed_rows,
            equal_rows=found.equal_rows,
            equal_batch=None if found.equal_batch is None else Origin.of(found.equal_batch),
            equal_payments=[EqualPayment.of(each) for each in found.equal_payments],
        )


def _batch_id(id_: UUID | None) -> str | None:
    return None if id_ is None else format_id(IdKind.BATCH, id_)


class BatchRow(msgspec.Struct, frozen=True):
    """A row of a payout batch, counted from 0; `hash` and `transaction` once it is allocated.

    Of a row that was `already_paid`, `transaction` is the earlier payment's.
    """

    row: int
    email: str
    amount: Cents
    reference: str | None
    outcome: RowOutcome
    hash: Hash | None
    transaction: TransactionId | None

    @classmethod
    def of(cls, row: BatchResult, hash_: str | None) -> "BatchRow":
        """Describe a row of a payout batch."""
        is_paid = row.outcome in {RowOutcome.ALLOCATED, RowOutcome.ALREADY_PAID}
        return cls(
            row=row.position,
            email=row.email,
            amount=row.amount,
            reference=row.reference,
            outcome=row.outcome,
            hash=hash_,
            transaction=format_id(IdKind.TRANSACTION, row.transaction_id) if is_paid else None,
        )


class Page(msgspec.Struct, Generic[Row], frozen=True):
    """A page of a list, newest first; `next_cursor` is where the next one goes on."""

    data: list[Row]
    has_more: bool
    next_cursor: str | None
