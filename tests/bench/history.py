"""Counting what was answered against what is in the history."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from core.database.connection import Database
from core.ledger.verification import verify
from tests.bench.load import Load

_QUIET_S = 0.4
_SETTLED_WITHIN_S = 30.0

_COUNT = sa.text("SELECT count(*), COALESCE(sum(amount), 0) FROM payout_transactions WHERE type = 'allocation'")
_UNEXPECTED = sa.text("SELECT count(*) FROM payout_transactions WHERE type NOT IN ('allocation', 'funding')")


@dataclass(frozen=True, slots=True)
class History:
    """The allocations that a database holds."""

    rows: int
    cents: int


def read_history(database: Database) -> History:
    with database.snapshot() as connection:
        rows, cents = connection.execute(_COUNT).one()
    return History(rows, int(cents))


def read_resolved_history(database: Database) -> History:
    """Wait until calls that nobody waits for any more have been carried out as well."""
    give_up_at = time.monotonic() + _SETTLED_WITHIN_S
    history = read_history(database)
    while time.monotonic() < give_up_at:
        time.sleep(_QUIET_S)
        last, history = history, read_history(database)
        if last == history:
            return history
    text = "the history does not come to rest"
    raise TimeoutError(text)


def find_miscounts(before: History, after: History, loads: Sequence[Load], in_flight_max: int) -> list[str]:
    """Say what does not add up: each 201 has a row, and only calls given up at the end may have one without.

    `in_flight_max` is 0 where the generator waited for every answer.
    """
    problems = []
    allocated = sum(load.allocated for load in loads)
    rows = after.rows - before.rows
    if not allocated <= rows <= allocated + in_flight_max:
        problems.append(f"{allocated} answers 201, but {rows} new history rows (in flight at the end: {in_flight_max})")
    cents = [load.cents for load in loads if load.cents is not None]
    if in_flight_max == 0 and len(cents) == len(loads) and sum(cents) != after.cents - before.cents:
        problems.append(f"{sum(cents)} cents answered 201, but {after.cents - before.cents} in the history")
    for load in loads:
        if load.refused:
            problems.append(f"{load.refused} of {load.requests} answers were not 201")
        if load.socket_errors:
            problems.append(f"{load.socket_errors} socket errors or answers that took too long")
    return problems


def find_imbalances(database: Database) -> list[str]:
    """Prove that the books balance, and that nothing was taken back."""
    with database.snapshot() as connection:
        discrepancies = verify(connection).discrepancies
        others = connection.execute(_UNEXPECTED).scalar_one()
    problems = [f"{each.id}: {each.rule}" for each in discrepancies[:3]]
    if others:
        problems.append(f"{others} history rows that no case asked for")
    return problems
