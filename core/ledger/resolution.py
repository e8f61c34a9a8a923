"""Finding out for certain, at the deadline, what became of allocations that nobody answered for."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection

from core.ledger import statements
from core.messages import Allocation, Outcome


@dataclass(frozen=True, slots=True)
class Resolution:
    """What is certain, by allocation id: these were committed (or replayed what was), these never will be.

    Of those in neither it is too early to tell.
    """

    committed: dict[UUID, Outcome]
    never: set[UUID]


def resolve(connection: Connection, allocations: Sequence[Allocation]) -> Resolution:
    """Take the business rows and look the allocations up, inside the caller's transaction.

    Whoever wrote one of them has committed by the time the row is ours, and whoever comes later checks the
    deadline behind the same lock. So what is past its deadline and not in the history can never get there.
    """
    found = statements.find_committed(connection, allocations)
    committed = {each.id: Outcome.REPLAYED for each in allocations if each.key in found.claimed_keys}
    committed |= {each.id: Outcome.ALLOCATED for each in allocations if each.key in found.history_keys}
    never = {each.id for each in allocations if each.id not in committed and found.now_us > each.deadline_us}
    return Resolution(committed, never)


def withdraw(connection: Connection, allocation: Allocation) -> bool:
    """Take back what a call committed that was answered 500; return whether money moved."""
    return statements.withdraw(connection, allocation)
