"""The CSV files that the product writes itself, recognised by their columns."""

from api.batches.reader.mistakes import Reason
from core.batches.payout_batch import RowOutcome

RESULT_COLUMNS = ("row", "email", "amount_cents", "amount_dollars", "reference", "outcome", "hash", "transaction")
"""The columns of a batch's results."""

_RESULTS = {"row", "email", "amount_cents", "reference", "outcome"}
_HISTORY = {"id", "type", "user", "amount_cents"}
_USERS = {"id", "email", "balance_cents", "status"}
_BATCHES = {"id", "status", "total", "processed", "amount_cents"}

PAID_OUTCOMES = frozenset({RowOutcome.ALLOCATED.value, "already_paid", "not_reversed"})
"""Outcomes of rows whose money the person has."""
UNPAID_OUTCOMES = frozenset({RowOutcome.CANCELLED.value})
"""Outcomes of rows that are paid when their results are read again. Rows with any other outcome are refused: a pending
row is paid by its own batch, and a reversed one was taken back on purpose."""


def is_results(names: list[str]) -> bool:
    """Tell whether lower-cased column names are those of a batch's results."""
    return names.count("outcome") == 1 and _RESULTS.issubset(names)


def find_unpayable(names: list[str]) -> Reason | None:
    """Return what a file is that names people and amounts and is nothing to pay."""
    if _HISTORY.issubset(names):
        return Reason.HISTORY_EXPORT
    if _USERS.issubset(names):
        return Reason.USERS_EXPORT
    return Reason.BATCHES_EXPORT if _BATCHES.issubset(names) else None
