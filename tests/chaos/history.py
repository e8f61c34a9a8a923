"""The exact comparison: what clients were told against what the history says."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

import sqlalchemy as sa

from core.credentials import payout_hash
from core.database.connection import Database
from tests.chaos.cluster import Cluster
from tests.chaos.load import Answer, Key
from tests.polling import wait_until
from tests.servers import HASH_SECRET, verify_books

_SETTLED_WITHIN_S = 20.0

_ALLOCATIONS = sa.text("""
    SELECT allocation.business_id, email, amount, payout_balance_after, EXISTS (
        SELECT FROM payout_transactions AS reversal
        WHERE reversal.business_id = allocation.business_id AND reversal.reversed_id = allocation.id
    ) AS is_reversed
    FROM payout_transactions AS allocation
    LEFT JOIN payout_users
        ON payout_users.business_id = allocation.business_id AND payout_users.id = allocation.payout_user_id
    WHERE type = 'allocation'
""")


@dataclass(frozen=True)
class Entry:
    """An allocation in the history."""

    business_id: UUID
    email: str
    amount: int
    payout_balance_after: int
    is_reversed: bool

    @property
    def key(self) -> Key:
        return (self.business_id, self.email, self.amount)


def read_history(database: Database) -> list[Entry]:
    with database.snapshot() as connection:
        return [Entry(*row) for row in connection.execute(_ALLOCATIONS)]


def find_contradictions(answers: Iterable[Answer], history: Iterable[Entry]) -> list[str]:
    """Compare every call with the history, and the history with every call."""
    standing: dict[Key, int] = defaultdict(int)
    for entry in history:
        standing[entry.key] += not entry.is_reversed
    told: dict[Key, list[Answer]] = defaultdict(list)
    for answer in answers:
        told[answer.key].append(answer)
    contradictions = [f"nobody asked for {key}" for key in standing if key not in told]
    for key, calls in told.items():
        paid = sum(call.status == 201 for call in calls)
        unknown = sum(call.status is None and call.was_sent for call in calls)
        least, most = paid, paid + unknown
        if calls[0].idempotency_key is not None:  # all calls with the key pay once together
            least, most = min(least, 1), min(most, 1)
        if not least <= standing[key] <= most:
            contradictions.append(f"{standing[key]} times in the history, unreversed: {calls}")
        success = {"hash": payout_hash(HASH_SECRET.encode(), key[0], key[1])}
        contradictions += [f"another's hash: {call}" for call in calls if call.status == 201 and call.body != success]
    return contradictions


def assert_history_is_what_clients_were_told(cluster: Cluster, answers: Sequence[Answer]) -> None:
    """Let the system finish and stop it, so that nothing can change any more, and compare exactly.

    What was answered 500 while the database was out of reach may be reversed a little later.
    """
    cluster.wait_until_queue_is_empty()

    def agrees() -> bool:
        return not find_contradictions(answers, read_history(cluster.database))

    try:
        wait_until(agrees, "the history says what clients were told", _SETTLED_WITHIN_S)
    except AssertionError:
        contradictions = find_contradictions(answers, read_history(cluster.database))
        raise AssertionError("\n".join(contradictions)) from None
    cluster.stop()
    contradictions = find_contradictions(answers, read_history(cluster.database))
    assert not contradictions, "\n".join(contradictions)
    books = verify_books(cluster.database)
    assert books.balanced, books.discrepancies
    for business_id in {answer.business_id for answer in answers}:
        assert_balance_falls_step_by_step(cluster.database, business_id)


def assert_balance_falls_step_by_step(database: Database, business_id: UUID) -> None:
    """Each row's balance is the one before less its amount: the history is one serial order, never overdrawn."""
    own = [entry for entry in read_history(database) if entry.business_id == business_id]
    if any(entry.is_reversed for entry in own):
        return  # the balance rose in between; `verify` has added it up
    own.sort(key=lambda entry: entry.payout_balance_after, reverse=True)
    for before, after in pairwise(own):
        assert before.payout_balance_after - after.amount == after.payout_balance_after
    assert all(entry.payout_balance_after >= 0 for entry in own)
