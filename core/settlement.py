"""Finding out for certain, at the deadline, what became of allocations that nobody answered for."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection

from core import ledger
from core.messages import Allocation


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is certain: these were committed, these never will be; of the others it is too early to tell."""

    committed: set[UUID]
    never: set[UUID]


def settle(connection: Connection, allocations: Sequence[Allocation]) -> Settlement:
    """Take the business rows and look the allocations up, inside the caller's transaction.

    Whoever wrote one of them has committed by the time the row is ours, and whoever comes later checks the
    deadline behind the same lock. So what is past its deadline and not in the history can never get there.
    """
    now_us, found = ledger.find_committed(connection, allocations)
    committed = {each.id for each in allocations if each.key in found}
    never = {each.id for each in allocations if each.id not in committed and now_us > each.deadline_us}
    return Settlement(committed, never)


def reverse(connection: Connection, allocation: Allocation) -> bool:
    """Take a committed allocation back; False where it is not in the history, or was reversed before."""
    return ledger.reverse(connection, allocation)
