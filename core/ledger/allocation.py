"""The rules of an allocation: (what the database holds, allocations) → outcomes. Pure, no I/O."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from uuid import UUID

from core.messages import Allocation, Outcome


@dataclass(frozen=True, slots=True)
class BusinessState:
    """A business as read behind its row lock."""

    payout_balance_cents: int
    payouts_enabled: bool
    last_sequence: int = 0
    """The number of its newest history row."""
    fence_us: int = 0
    """No allocation whose deadline is at or before it is ever paid, whatever the clock says."""


@dataclass(frozen=True, slots=True)
class IdempotencyUse:
    """What a committed allocation used its idempotency key for."""

    allocation_id: UUID
    email: str
    amount_cents: int
    attempt: int = 0
    """Counts the allocations with this key; each one before was reversed."""
    is_reversed: bool = False
    """The allocation was taken back, so the key is free again."""


@dataclass(frozen=True, slots=True)
class LockedState:
    """Everything that a decision depends on, read while the business rows are locked."""

    now_us: int
    """Microseconds since 1970 by the database's clock, read after the locks were taken."""
    businesses: Mapping[UUID, BusinessState]
    live_api_keys: Set[tuple[UUID, UUID]]
    """(business id, key id) of secret keys that are not revoked."""
    history_keys: Set[tuple[UUID, UUID]] = frozenset()
    """Keys of the given allocations that are already in the history."""
    claimed_keys: Set[tuple[UUID, UUID]] = frozenset()
    """Keys of the given allocations that were answered by another's commit before (`Claim`)."""
    withdrawn_keys: Set[tuple[UUID, UUID]] = frozenset()
    """Keys of the given allocations that were such replays, and were answered 500 all the same."""
    idempotency_uses: Mapping[tuple[UUID, str], IdempotencyUse] = field(default_factory=dict)
    """By (business id, idempotency key)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A history row to be written."""

    allocation: Allocation
    payout_balance_after_cents: int
    idempotency_attempt: int
    sequence: int
    """Its number in the business's history."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A replay: the call `allocation` is answered 201 by what an earlier allocation committed.

    While such a claim stands, the earlier allocation must not be reversed.
    """

    allocation: Allocation
    committed_id: UUID


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcomes, one for each allocation in its order, and the entries and claims that carry them out."""

    outcomes: list[Outcome]
    entries: list[Entry]
    claims: list[Claim] = field(default_factory=list)
    fences_us: dict[UUID, int] = field(default_factory=dict)
    """By business id, up to where its fence has to be raised before the outcome `expired` is told."""


def decide(state: LockedState, allocations: Iterable[Allocation]) -> Decision:
    """Decide allocations one after another, as if each were alone.

    Refusals move nothing and do not touch their neighbours. An allocation id that is in the history, or was
    allocated earlier in the same group, reports `allocated` and moves nothing.
    """
    balances = {id_: business.payout_balance_cents for id_, business in state.businesses.items()}
    sequences = {id_: business.last_sequence for id_, business in state.businesses.items()}
    allocated_keys = set(state.history_keys)
    uses = dict(state.idempotency_uses)
    outcomes: list[Outcome] = []
    entries: list[Entry] = []
    claims: list[Claim] = []
    fences_us: dict[UUID, int] = {}
    for allocation in allocations:
        outcome = _outcome(state, balances, allocated_keys, uses, allocation)
        outcomes.append(outcome)
        if outcome is Outcome.REPLAYED and allocation.key not in state.claimed_keys:
            claims.append(
                Claim(allocation, uses[allocation.business_id, str(allocation.idempotency_key)].allocation_id)
            )
        if outcome is not Outcome.ALLOCATED or allocation.key in allocated_keys:
            if outcome is Outcome.EXPIRED and _expired_by_clock_alone(state, allocation):
                business_id = allocation.business_id
                fences_us[business_id] = max(fences_us.get(business_id, 0), allocation.deadline_us)
            continue
        balances[allocation.business_id] -= allocation.amount_cents
        allocated_keys.add(allocation.key)
        attempt = 0
        if allocation.idempotency_key is not None:
            key = (allocation.business_id, allocation.idempotency_key)
            attempt = uses[key].attempt + 1 if key in uses else 0
            uses[key] = IdempotencyUse(allocation.id, allocation.email, allocation.amount_cents, attempt)
        sequences[allocation.business_id] += 1
        balance = balances[allocation.business_id]
        entries.append(Entry(allocation, balance, attempt, sequences[allocation.business_id]))
    return Decision(outcomes, entries, claims, fences_us)


def _outcome(
    state: LockedState,
    balances: Mapping[UUID, int],
    allocated_keys: Set[tuple[UUID, UUID]],
    uses: Mapping[tuple[UUID, str], IdempotencyUse],
    allocation: Allocation,
) -> Outcome:
    """Decide one allocation; the order is the contract's, with redelivery and deadline before it."""
    if allocation.key in allocated_keys:
        return Outcome.ALLOCATED
    if allocation.key in state.claimed_keys:
        return Outcome.REPLAYED
    if allocation.key in state.withdrawn_keys or state.now_us > allocation.deadline_us:
        return Outcome.EXPIRED
    business = state.businesses.get(allocation.business_id)
    if business is not None and allocation.deadline_us <= business.fence_us:
        return Outcome.EXPIRED
    if business is None or (allocation.business_id, allocation.api_key_id) not in state.live_api_keys:
        return Outcome.UNAUTHORIZED
    if allocation.idempotency_key is not None:
        use = uses.get((allocation.business_id, allocation.idempotency_key))
        if use is not None and not use.is_reversed:
            same = (use.email, use.amount_cents) == (allocation.email, allocation.amount_cents)
            return Outcome.REPLAYED if same else Outcome.IDEMPOTENCY_KEY_REUSED
    if not business.payouts_enabled:
        return Outcome.PAYOUTS_DISABLED
    if allocation.amount_cents > balances[allocation.business_id]:
        return Outcome.INSUFFICIENT_BALANCE
    return Outcome.ALLOCATED


def _expired_by_clock_alone(state: LockedState, allocation: Allocation) -> bool:
    """Tell whether a clock that goes back would let the allocation be paid."""
    business = state.businesses.get(allocation.business_id)
    is_past = state.now_us > allocation.deadline_us and allocation.key not in state.withdrawn_keys
    return is_past and business is not None and allocation.deadline_us > business.fence_us
