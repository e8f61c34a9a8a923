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
    requires_keys: bool = False
    fence_us: int = 0
    """No allocation whose deadline is at or before it is ever paid, whatever the clock says."""


@dataclass(frozen=True, slots=True)
class Use:
    """What an idempotency key or a reference was used for last."""

    allocation_id: UUID
    email: str
    amount_cents: int
    attempt: int = 0
    """Counts the payments with this key or reference; each one before was reversed or cancelled."""
    is_reversed: bool = False
    """The payment was taken back, or its batch cancelled before it was made: key and reference are free again."""
    is_undecided: bool = False
    """Its batch is not released yet: its caller may be answered 500, and the reference then is free again."""


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
    idempotency_uses: Mapping[tuple[UUID, str], Use] = field(default_factory=dict)
    """By (business id, idempotency key)."""
    reference_uses: Mapping[tuple[UUID, str], Use] = field(default_factory=dict)
    """By (business id, reference)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A history row to be written."""

    allocation: Allocation
    payout_balance_after_cents: int
    idempotency_attempt: int
    sequence: int
    """Its number in the business's history."""
    reference_attempt: int = 0


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
    key_uses = dict(state.idempotency_uses)
    reference_uses = dict(state.reference_uses)
    outcomes: list[Outcome] = []
    entries: list[Entry] = []
    claims: list[Claim] = []
    fences_us: dict[UUID, int] = {}
    for allocation in allocations:
        outcome, committed_id = _outcome(state, balances, allocated_keys, (key_uses, reference_uses), allocation)
        outcomes.append(outcome)
        if committed_id is not None:
            claims.append(Claim(allocation, committed_id))
        if outcome is not Outcome.ALLOCATED or allocation.key in allocated_keys:
            if outcome is Outcome.EXPIRED and _expired_by_clock_alone(state, allocation):
                business_id = allocation.business_id
                fences_us[business_id] = max(fences_us.get(business_id, 0), allocation.deadline_us)
            continue
        balances[allocation.business_id] -= allocation.amount_cents
        allocated_keys.add(allocation.key)
        idempotency_attempt = _use(key_uses, allocation.idempotency_key, allocation)
        reference_attempt = _use(reference_uses, allocation.reference, allocation)
        sequences[allocation.business_id] += 1
        balance, sequence = balances[allocation.business_id], sequences[allocation.business_id]
        entries.append(Entry(allocation, balance, idempotency_attempt, sequence, reference_attempt))
    return Decision(outcomes, entries, claims, fences_us)


_Uses = dict[tuple[UUID, str], Use]


def _use(uses: _Uses, name: str | None, allocation: Allocation) -> int:
    """Note that an allocation uses a key or a reference; return which use of it that is, counted from 0."""
    if name is None:
        return 0
    key = (allocation.business_id, name)
    attempt = uses[key].attempt + 1 if key in uses else 0
    uses[key] = Use(allocation.id, allocation.email, allocation.amount_cents, attempt)
    return attempt


def _find_use(uses: _Uses, name: str | None, allocation: Allocation) -> Use | None:
    """Return the payment that stands for a key or a reference."""
    use = None if name is None else uses.get((allocation.business_id, name))
    return None if use is None or use.is_reversed else use


def _outcome(
    state: LockedState,
    balances: Mapping[UUID, int],
    allocated_keys: Set[tuple[UUID, UUID]],
    uses: tuple[_Uses, _Uses],
    allocation: Allocation,
) -> tuple[Outcome, UUID | None]:
    """Decide one allocation; return with it the id of the payment that a new replay is answered by.

    The order is the contract's, with redelivery and deadline before it.
    """
    if allocation.key in allocated_keys:
        return Outcome.ALLOCATED, None
    if allocation.key in state.claimed_keys:
        return Outcome.REPLAYED, None
    if allocation.key in state.withdrawn_keys or state.now_us > allocation.deadline_us:
        return Outcome.EXPIRED, None
    business = state.businesses.get(allocation.business_id)
    if business is not None and allocation.deadline_us <= business.fence_us:
        return Outcome.EXPIRED, None
    if business is None or (allocation.business_id, allocation.api_key_id) not in state.live_api_keys:
        return Outcome.UNAUTHORIZED, None
    if allocation.idempotency_key is not None or allocation.reference is not None:
        named = _outcome_of_names(uses, allocation)
        if named is not None:
            return named
    return _refusal(business, balances[allocation.business_id], allocation) or Outcome.ALLOCATED, None


def _outcome_of_names(uses: tuple[_Uses, _Uses], allocation: Allocation) -> tuple[Outcome, UUID | None] | None:
    """Decide an allocation whose key or reference was used before; the key is looked at first."""
    key_uses, reference_uses = uses
    for use, reused in (
        (_find_use(key_uses, allocation.idempotency_key, allocation), Outcome.IDEMPOTENCY_KEY_REUSED),
        (_find_use(reference_uses, allocation.reference, allocation), Outcome.REFERENCE_REUSED),
    ):
        if use is not None:
            if use.is_undecided:
                return Outcome.FAILED, None  # it is sent again, and decided then
            is_same = (use.email, use.amount_cents) == (allocation.email, allocation.amount_cents)
            return (Outcome.REPLAYED, use.allocation_id) if is_same else (reused, None)
    return None


def _refusal(business: BusinessState, balance_cents: int, allocation: Allocation) -> Outcome | None:
    """Return why a new payment is refused."""
    if not business.payouts_enabled:
        return Outcome.PAYOUTS_DISABLED
    if business.requires_keys and allocation.idempotency_key is None and allocation.reference is None:
        return Outcome.IDEMPOTENCY_KEY_REQUIRED
    return Outcome.INSUFFICIENT_BALANCE if allocation.amount_cents > balance_cents else None


def _expired_by_clock_alone(state: LockedState, allocation: Allocation) -> bool:
    """Tell whether a clock that goes back would let the allocation be paid."""
    business = state.businesses.get(allocation.business_id)
    is_past = state.now_us > allocation.deadline_us and allocation.key not in state.withdrawn_keys
    return is_past and business is not None and allocation.deadline_us > business.fence_us
