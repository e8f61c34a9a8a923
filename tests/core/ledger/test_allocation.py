"""The rules of an allocation, without a database."""

from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from core.ledger.allocation import BusinessState, Claim, Decision, LockedState, Use, decide
from core.messages import Allocation, Outcome
from tests.core.builders import UNKNOWN_ID, keys_of, make_allocation

NOW_US = 1_700_000_000_000_000
BUSINESS, OTHER_BUSINESS = UUID(int=1), UUID(int=2)
API_KEY, OTHER_API_KEY, REVOKED_API_KEY = UUID(int=11), UUID(int=12), UUID(int=13)
STATE = LockedState(
    now_us=NOW_US,
    businesses={BUSINESS: BusinessState(100, True), OTHER_BUSINESS: BusinessState(50, True)},
    live_api_keys={(BUSINESS, API_KEY), (OTHER_BUSINESS, OTHER_API_KEY)},
)


def allocation(
    amount_cents: int = 10,
    *,
    email: str = "user@example.com",
    api_key_id: UUID = API_KEY,
    business_id: UUID = BUSINESS,
    deadline_us: int = NOW_US,
    idempotency_key: str | None = None,
) -> Allocation:
    return make_allocation(
        business_id,
        api_key_id,
        email=email,
        amount_cents=amount_cents,
        deadline_us=deadline_us,
        idempotency_key=idempotency_key,
    )


def with_business(state: LockedState, balance_cents: int, *, enabled: bool = True) -> LockedState:
    return replace(state, businesses={**state.businesses, BUSINESS: BusinessState(balance_cents, enabled)})


def with_use(state: LockedState, use: Use, key: str = "key") -> LockedState:
    return replace(state, idempotency_uses={(BUSINESS, key): use})


def moved(decision: Decision) -> list[tuple[int, int]]:
    """Return (amount, payout balance after) of each entry."""
    return [(entry.allocation.amount_cents, entry.payout_balance_after_cents) for entry in decision.entries]


# Examples.


def test_an_amount_within_the_balance_is_allocated() -> None:
    decision = decide(STATE, [allocation(40)])
    assert decision.outcomes == [Outcome.ALLOCATED]
    assert moved(decision) == [(40, 60)]


def test_the_whole_balance_can_be_allocated() -> None:
    assert moved(decide(STATE, [allocation(100)])) == [(100, 0)]


def test_one_cent_more_than_the_balance_is_refused() -> None:
    assert decide(STATE, [allocation(101)]) == Decision([Outcome.INSUFFICIENT_BALANCE], [])


def test_a_refusal_does_not_touch_its_neighbours() -> None:
    decision = decide(STATE, [allocation(60), allocation(60), allocation(40)])
    assert decision.outcomes == [Outcome.ALLOCATED, Outcome.INSUFFICIENT_BALANCE, Outcome.ALLOCATED]
    assert moved(decision) == [(60, 40), (40, 0)]


def test_each_business_pays_from_its_own_balance() -> None:
    theirs = allocation(51, business_id=OTHER_BUSINESS, api_key_id=OTHER_API_KEY)
    assert decide(STATE, [allocation(100), theirs]).outcomes == [Outcome.ALLOCATED, Outcome.INSUFFICIENT_BALANCE]


def test_the_deadline_itself_is_in_time_and_a_microsecond_later_is_not() -> None:
    decision = decide(STATE, [allocation(deadline_us=NOW_US), allocation(deadline_us=NOW_US - 1)])
    assert decision.outcomes == [Outcome.ALLOCATED, Outcome.EXPIRED]


def test_a_revoked_key_is_unauthorized() -> None:
    assert decide(STATE, [allocation(api_key_id=REVOKED_API_KEY)]) == Decision([Outcome.UNAUTHORIZED], [])


def test_the_key_of_another_business_is_unauthorized() -> None:
    assert decide(STATE, [allocation(api_key_id=OTHER_API_KEY)]) == Decision([Outcome.UNAUTHORIZED], [])


def test_an_unknown_business_is_unauthorized() -> None:
    assert decide(STATE, [allocation(business_id=UNKNOWN_ID)]) == Decision([Outcome.UNAUTHORIZED], [])


def test_a_business_with_payouts_disabled_pays_nobody() -> None:
    state = with_business(STATE, 100, enabled=False)
    assert decide(state, [allocation()]) == Decision([Outcome.PAYOUTS_DISABLED], [])


def test_an_id_in_the_history_moves_nothing() -> None:
    again = allocation()
    assert decide(replace(STATE, history_keys={again.key}), [again]) == Decision([Outcome.ALLOCATED], [])


def test_the_same_id_twice_in_a_group_pays_once() -> None:
    twice = allocation(60)
    decision = decide(STATE, [twice, twice])
    assert decision.outcomes == [Outcome.ALLOCATED, Outcome.ALLOCATED]
    assert moved(decision) == [(60, 40)]


def test_an_empty_group_decides_nothing() -> None:
    assert decide(STATE, []) == Decision([], [])


def test_the_first_rule_that_applies_decides() -> None:
    """Start with everything wrong, put one thing after the other right."""
    each = allocation(deadline_us=NOW_US - 1, api_key_id=REVOKED_API_KEY, idempotency_key="key")
    state = with_use(with_business(STATE, 0, enabled=False), Use(UNKNOWN_ID, each.email, 99))
    state = replace(state, history_keys={each.key})
    assert decide(state, [each]) == Decision([Outcome.ALLOCATED], [])
    state = replace(state, history_keys=set())
    assert decide(state, [each]).outcomes == [Outcome.EXPIRED]
    each = msgspec.structs.replace(each, deadline_us=NOW_US)
    assert decide(state, [each]).outcomes == [Outcome.UNAUTHORIZED]
    each = msgspec.structs.replace(each, api_key_id=API_KEY)
    assert decide(state, [each]).outcomes == [Outcome.IDEMPOTENCY_KEY_REUSED]
    state = with_use(state, Use(UNKNOWN_ID, each.email, each.amount_cents))
    assert decide(state, [each]).outcomes == [Outcome.REPLAYED]
    state = replace(state, idempotency_uses={})
    assert decide(state, [each]).outcomes == [Outcome.PAYOUTS_DISABLED]
    state = with_business(state, 0)
    assert decide(state, [each]).outcomes == [Outcome.INSUFFICIENT_BALANCE]
    state = with_business(state, 10)
    assert moved(decide(state, [each])) == [(10, 0)]


def test_outcomes_are_listed_by_their_precedence() -> None:
    assert list(Outcome) == [
        Outcome.ALLOCATED,
        Outcome.EXPIRED,
        Outcome.UNAUTHORIZED,
        Outcome.REPLAYED,
        Outcome.IDEMPOTENCY_KEY_REUSED,
        Outcome.REFERENCE_REUSED,
        Outcome.PAYOUTS_DISABLED,
        Outcome.IDEMPOTENCY_KEY_REQUIRED,
        Outcome.INSUFFICIENT_BALANCE,
        Outcome.FAILED,
    ]


# Idempotency keys.


def test_the_same_key_with_the_same_values_replays() -> None:
    state = with_use(STATE, Use(UNKNOWN_ID, "user@example.com", 10))
    again = allocation(10, idempotency_key="key")
    assert decide(state, [again]) == Decision([Outcome.REPLAYED], [], [Claim(again, UNKNOWN_ID)])


def test_a_replay_that_was_decided_before_is_one_again_also_past_its_deadline() -> None:
    again = allocation(10, idempotency_key="key", deadline_us=NOW_US - 1)
    state = replace(STATE, claimed_keys={again.key})
    assert decide(state, [again]) == Decision([Outcome.REPLAYED], [])


def test_the_same_key_with_another_amount_or_email_is_a_reuse() -> None:
    state = with_use(STATE, Use(UNKNOWN_ID, "user@example.com", 10))
    others = [allocation(11, idempotency_key="key"), allocation(10, email="b@example.com", idempotency_key="key")]
    assert decide(state, others) == Decision([Outcome.IDEMPOTENCY_KEY_REUSED] * 2, [])


def test_two_with_the_same_key_in_a_group_pay_once() -> None:
    decision = decide(STATE, [allocation(10, idempotency_key="key") for _ in range(2)])
    assert decision.outcomes == [Outcome.ALLOCATED, Outcome.REPLAYED]
    assert moved(decision) == [(10, 90)]


def test_a_refusal_leaves_the_key_free() -> None:
    decision = decide(STATE, [allocation(101, idempotency_key="key"), allocation(10, idempotency_key="key")])
    assert decision.outcomes == [Outcome.INSUFFICIENT_BALANCE, Outcome.ALLOCATED]
    assert decision.entries[0].idempotency_attempt == 0


def test_a_key_belongs_to_its_business() -> None:
    mine = allocation(10, idempotency_key="key")
    theirs = allocation(20, business_id=OTHER_BUSINESS, api_key_id=OTHER_API_KEY, idempotency_key="key")
    assert decide(STATE, [mine, theirs]).outcomes == [Outcome.ALLOCATED, Outcome.ALLOCATED]


def test_a_reversed_use_frees_the_key_and_raises_the_attempt() -> None:
    state = with_use(STATE, Use(UNKNOWN_ID, "user@example.com", 10, attempt=2, is_reversed=True))
    decision = decide(state, [allocation(33, idempotency_key="key"), allocation(33, idempotency_key="key")])
    assert decision.outcomes == [Outcome.ALLOCATED, Outcome.REPLAYED]
    assert [entry.idempotency_attempt for entry in decision.entries] == [3]


def test_without_a_key_the_same_values_pay_twice() -> None:
    assert moved(decide(STATE, [allocation(10), allocation(10)])) == [(10, 90), (10, 80)]


# Properties.

_ids = [UUID(int=100 + number) for number in range(8)]
_emails = ["a@example.com", "b@example.com"]
_keys = ["k1", "k2"]
_allocations = st.lists(
    st.builds(
        Allocation,
        id=st.sampled_from(_ids),
        business_id=st.sampled_from([BUSINESS, BUSINESS, OTHER_BUSINESS, UNKNOWN_ID]),
        api_key_id=st.sampled_from([API_KEY, API_KEY, OTHER_API_KEY, REVOKED_API_KEY]),
        email=st.sampled_from(_emails),
        amount_cents=st.integers(1, 40),
        deadline_us=st.sampled_from([NOW_US - 1, NOW_US, NOW_US + 1]),
        idempotency_key=st.none() | st.sampled_from(_keys),
    ),
    max_size=20,
)
_states = st.builds(
    LockedState,
    now_us=st.just(NOW_US),
    businesses=st.fixed_dictionaries(
        {
            business_id: st.builds(BusinessState, st.integers(0, 120), st.sampled_from([True, True, False]))
            for business_id in (BUSINESS, OTHER_BUSINESS)
        }
    ),
    live_api_keys=st.just({(BUSINESS, API_KEY), (OTHER_BUSINESS, OTHER_API_KEY)}),
    history_keys=st.sets(st.tuples(st.sampled_from([BUSINESS, OTHER_BUSINESS]), st.sampled_from(_ids)), max_size=3),
    idempotency_uses=st.dictionaries(
        st.tuples(st.sampled_from([BUSINESS, OTHER_BUSINESS]), st.sampled_from(_keys)),
        st.builds(Use, st.sampled_from(_emails), st.integers(1, 40), attempt=st.integers(0, 3), is_reversed=...),
    ),
)


def state_after(state: LockedState, decision: Decision) -> LockedState:
    """Return what the next transaction would read, had this decision been committed."""
    businesses = dict(state.businesses)
    uses = dict(state.idempotency_uses)
    for entry in decision.entries:
        each = entry.allocation
        businesses[each.business_id] = replace(
            businesses[each.business_id],
            payout_balance_cents=entry.payout_balance_after_cents,
            last_sequence=entry.sequence,
        )
        if each.idempotency_key is not None:
            use = Use(each.id, each.email, each.amount_cents, entry.idempotency_attempt)
            uses[each.business_id, each.idempotency_key] = use
    history_keys = set(state.history_keys) | keys_of(entry.allocation for entry in decision.entries)
    return replace(state, businesses=businesses, history_keys=history_keys, idempotency_uses=uses)


def decide_each_alone(state: LockedState, allocations: list[Allocation]) -> Iterator[Decision]:
    for each in allocations:
        decision = decide(state, [each])
        yield decision
        state = state_after(state, decision)


@given(_states, _allocations)
def test_a_group_is_decided_as_if_each_were_alone(state: LockedState, allocations: list[Allocation]) -> None:
    alone = list(decide_each_alone(state, allocations))
    decision = decide(state, allocations)
    assert decision.outcomes == [outcome for each in alone for outcome in each.outcomes]
    assert decision.entries == [entry for each in alone for entry in each.entries]


@given(_states, _allocations)
def test_each_debit_leaves_the_balance_that_its_entry_says_and_none_below_zero(
    state: LockedState, allocations: list[Allocation]
) -> None:
    balances = {id_: business.payout_balance_cents for id_, business in state.businesses.items()}
    for entry in decide(state, allocations).entries:
        balances[entry.allocation.business_id] -= entry.allocation.amount_cents
        assert entry.payout_balance_after_cents == balances[entry.allocation.business_id] >= 0


@given(_states, _allocations)
def test_only_what_is_allocated_is_written_and_each_id_once(state: LockedState, allocations: list[Allocation]) -> None:
    decision = decide(state, allocations)
    paired = list(zip(allocations, decision.outcomes, strict=True))
    written = [entry.allocation.key for entry in decision.entries]
    assert len(written) == len(set(written))
    assert not set(written) & state.history_keys
    allocated = keys_of(each for each, outcome in paired if outcome is Outcome.ALLOCATED)
    assert set(written) == allocated - state.history_keys


@given(_states, _allocations)
def test_no_key_pays_twice(state: LockedState, allocations: list[Allocation]) -> None:
    taken = {key for key, use in state.idempotency_uses.items() if not use.is_reversed}
    for entry in decide(state, allocations).entries:
        if entry.allocation.idempotency_key is not None:
            key = (entry.allocation.business_id, entry.allocation.idempotency_key)
            assert key not in taken
            taken.add(key)


@given(_states, _allocations)
def test_nothing_is_written_past_its_deadline_or_for_a_dead_key_or_a_disabled_business(
    state: LockedState, allocations: list[Allocation]
) -> None:
    for entry in decide(state, allocations).entries:
        assert entry.allocation.deadline_us >= state.now_us
        assert (entry.allocation.business_id, entry.allocation.api_key_id) in state.live_api_keys
        assert state.businesses[entry.allocation.business_id].payouts_enabled


@given(_states, _allocations)
def test_a_redelivered_group_moves_nothing(state: LockedState, allocations: list[Allocation]) -> None:
    first = decide(state, allocations)
    again = decide(state_after(state, first), allocations)
    assert not again.entries
    for before, after in zip(first.outcomes, again.outcomes, strict=True):
        assert before is not Outcome.ALLOCATED or after is Outcome.ALLOCATED
