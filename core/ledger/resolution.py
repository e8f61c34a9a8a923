"""Finding out for certain, at the deadline, what became of allocations that nobody answered for."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from core.database.connection import driver_of
from core.ledger import statements
from core.ledger.statements import Call
from core.messages import Outcome


@dataclass(frozen=True, slots=True)
class Resolution:
    """What is certain, by allocation id, once the transaction has committed.

    These were committed (or replayed what was), and these never will be. Of those in neither it is too early to tell.
    """

    committed: dict[UUID, Outcome]
    never: set[UUID]
    withdrawn: Set[UUID] = field(default_factory=set)
    """Had committed, were answered 500, and are taken back already."""


def resolve(connection: Connection, calls: Sequence[Call], *, are_overdue: bool = False) -> Resolution:
    """Take the business rows and look the calls up, inside the caller's transaction.

    Another transaction that wrote one of them has committed by the time the row is ours. What is not in the history
    past its deadline is resolved as *never*: the business's fence is raised to its deadline in this transaction, and a
    worker that comes later reads the fence behind the same lock. The fence holds whatever the clock does then.

    `are_overdue` is for calls whose deadline has passed by another clock than the database's, which may have been
    set back.
    """
    found = statements.find_committed(connection, calls)
    withdrawn = {each.id for each in calls if each.id in found.withdrawn_ids}
    committed = {each.id: Outcome.REPLAYED for each in calls if each.id in found.claimed_ids}
    committed |= {each.id: Outcome.ALLOCATED for each in calls if each.id in found.history_ids - withdrawn}
    never: set[UUID] = set()
    fences_us: dict[UUID, int] = {}
    for call in calls:
        fence_us = found.fences_us.get(call.business_id, 0)
        is_past = are_overdue or found.now_us > call.deadline_us or call.deadline_us <= fence_us
        if is_past and call.id not in committed and call.id not in withdrawn:
            never.add(call.id)
            if call.deadline_us > fence_us:
                fences_us[call.business_id] = max(fences_us.get(call.business_id, 0), call.deadline_us)
    if fences_us:
        statements.raise_fences(driver_of(connection), fences_us)
    return Resolution(committed, never, withdrawn)


def withdraw(connection: Connection, call: Call) -> bool:
    """Take back what a call committed that was answered 500; return whether money moved."""
    return statements.withdraw(connection, call)


_CLOCK = sa.text("""
    SELECT GREATEST(
        CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint),
        (SELECT max(fence_us) FROM businesses WHERE fence_us > 0)
    )
""")


def read_deadline_clock_us(connection: Connection) -> int:
    """Return the time from which deadlines count: the database's, but not before any fence.

    A deadline behind this is one that workers may pay, also after the database's clock was set back.
    """
    return int(connection.execute(_CLOCK).scalar_one())
