"""The ledger on a real PostgreSQL."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from random import Random
from threading import Event
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.credentials import digest_of, payout_hash
from core.database.connection import DATABASE_ERRORS, Database
from core.messages import Allocation, Outcome
from core.parties.api_keys import revoke_api_key
from core.parties.businesses import set_payouts_enabled
from tests.core.builders import (
    HASH_SECRET,
    HistoryRow,
    allocate,
    allocation_of,
    database_now_us,
    keys_of,
    make_allocation,
    read_history,
    read_payout_balance,
    read_user_balances,
    run_sql,
    wait_until_blocked,
    withdraw,
)
from tests.servers import Account, open_account, verify_books

THREADS = 8


# One group at a time.


def test_an_allocation_debits_credits_and_writes_the_history(database: Database, payer: Account) -> None:
    paid = allocation_of(payer, "a@example.com", 400, idempotency_key="key")
    assert allocate(database, paid) == [Outcome.ALLOCATED]
    assert read_payout_balance(database, payer.business.id) == 999_600
    assert read_user_balances(database, payer.business.id) == {"a@example.com": 400}
    assert read_history(database, payer.business.id) == [
        HistoryRow(paid.id, "allocation", "a@example.com", 400, 999_600, 400, "key", 0, None, None)
    ]
    assert verify_books(database).balanced


def test_a_new_user_is_active_and_carries_the_digest_of_its_hash(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, "a@example.com"))
    expected = digest_of(payout_hash(HASH_SECRET, payer.business.id, "a@example.com"))
    with database.transaction() as connection:
        row = connection.execute(sa.text("SELECT status, hash_digest FROM payout_users")).one()
    assert (row.status, bytes(row.hash_digest)) == ("active", expected)


def test_new_and_existing_users_in_one_group(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, "old@example.com", 1))
    allocate(database, allocation_of(payer, "new@example.com", 20), allocation_of(payer, "old@example.com", 300))
    assert read_user_balances(database, payer.business.id) == {"old@example.com": 301, "new@example.com": 20}
    assert verify_books(database).balanced


def test_each_row_says_the_balances_right_after_it(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, "a@example.com", 5))
    allocate(
        database,
        allocation_of(payer, "a@example.com", 10),
        allocation_of(payer, "b@example.com", 20),
        allocation_of(payer, "a@example.com", 30),
        allocation_of(payer, "a@example.com", 40),
    )
    rows = read_history(database, payer.business.id)
    assert [(row.email, row.user_balance_after, row.payout_balance_after) for row in rows] == [
        ("a@example.com", 5, 999_995),
        ("a@example.com", 15, 999_985),
        ("b@example.com", 20, 999_965),
        ("a@example.com", 45, 999_935),
        ("a@example.com", 85, 999_895),
    ]


def test_one_group_over_many_businesses_pays_from_each(database: Database) -> None:
    payers = [open_account(database, funds_cents=100) for _ in range(20)]
    amounts = [60 + 4 * number for number in range(20)]
    outcomes = allocate(
        database, *[allocation_of(each, "a@example.com", amount) for each, amount in zip(payers, amounts, strict=True)]
    )
    assert outcomes == [Outcome.ALLOCATED] * 11 + [Outcome.INSUFFICIENT_BALANCE] * 9
    left = [read_payout_balance(database, each.business.id) for each in payers]
    assert left == [100 - amount if amount <= 100 else 100 for amount in amounts]
    assert verify_books(database).balanced


def test_the_same_email_at_two_businesses_is_two_users(database: Database, payer: Account) -> None:
    other = open_account(database)
    allocate(database, allocation_of(payer, "a@example.com", 1), allocation_of(other, "a@example.com", 2))
    assert read_user_balances(database, payer.business.id) == {"a@example.com": 1}
    assert read_user_balances(database, other.business.id) == {"a@example.com": 2}


def test_a_redelivered_group_moves_nothing(database: Database, payer: Account) -> None:
    group = [allocation_of(payer, f"{number}@example.com", 10) for number in range(5)]
    assert allocate(database, *group) == allocate(database, *group) == [Outcome.ALLOCATED] * 5
    assert allocate(database, allocation_of(payer), *group[2:]) == [Outcome.ALLOCATED] * 4
    assert read_payout_balance(database, payer.business.id) == 1_000_000 - 50 - 100
    assert len(read_history(database, payer.business.id)) == 6
    assert verify_books(database).balanced


def test_an_empty_group_has_no_outcomes(database: Database) -> None:
    assert allocate(database) == []


def test_what_is_rolled_back_never_happened(database: Database, payer: Account) -> None:
    run_sql(database, "ALTER TABLE payout_transactions ADD CONSTRAINT refuse CHECK (amount <> 13)")
    with pytest.raises(DATABASE_ERRORS, match="refuse"):
        allocate(database, allocation_of(payer, amount_cents=12), allocation_of(payer, amount_cents=13))
    assert read_payout_balance(database, payer.business.id) == 1_000_000
    assert read_user_balances(database, payer.business.id) == {}


# Refusals.


def assert_nothing_was_written(database: Database, account: Account) -> None:
    assert read_payout_balance(database, account.business.id) == account.business.payout_balance
    assert read_user_balances(database, account.business.id) == {}
    assert read_history(database, account.business.id) == []


def test_an_unknown_business_is_unauthorized(database: Database, payer: Account) -> None:
    assert allocate(database, make_allocation(uuid4(), payer.api_key_id)) == [Outcome.UNAUTHORIZED]
    assert verify_books(database).payout_users == 0


def test_an_unknown_key_is_unauthorized(database: Database, payer: Account) -> None:
    assert allocate(database, make_allocation(payer.business.id, uuid4())) == [Outcome.UNAUTHORIZED]
    assert_nothing_was_written(database, payer)


def test_the_key_of_another_business_is_unauthorized(database: Database, payer: Account) -> None:
    other = open_account(database)
    assert allocate(database, make_allocation(payer.business.id, other.api_key_id)) == [Outcome.UNAUTHORIZED]
    assert_nothing_was_written(database, payer)


def test_the_key_of_another_business_in_the_same_group_is_unauthorized(database: Database, payer: Account) -> None:
    other = open_account(database)
    outcomes = allocate(database, allocation_of(other), make_allocation(payer.business.id, other.api_key_id))
    assert outcomes == [Outcome.ALLOCATED, Outcome.UNAUTHORIZED]
    assert_nothing_was_written(database, payer)


def test_a_revoked_key_is_unauthorized_from_the_commit_on(database: Database, payer: Account) -> None:
    with database.transaction() as connection:
        revoke_api_key(connection, payer.api_key_id)
    assert allocate(database, allocation_of(payer)) == [Outcome.UNAUTHORIZED]
    assert_nothing_was_written(database, payer)


def test_a_revoke_that_is_under_way_is_waited_for(shared_database: Database) -> None:
    payer = open_account(shared_database)
    with ThreadPoolExecutor() as threads:
        with shared_database.transaction() as connection:
            revoke_api_key(connection, payer.api_key_id)
            outcomes = threads.submit(allocate, shared_database, allocation_of(payer))
            wait_until_blocked(shared_database)
        assert outcomes.result() == [Outcome.UNAUTHORIZED]
    assert_nothing_was_written(shared_database, payer)


def test_a_business_with_payouts_disabled_pays_nobody(database: Database) -> None:
    account = open_account(database, payouts_enabled=False)
    assert allocate(database, allocation_of(account)) == [Outcome.PAYOUTS_DISABLED]
    assert_nothing_was_written(database, account)
    with database.transaction() as connection:
        set_payouts_enabled(connection, account.business.id, enabled=True)
    assert allocate(database, allocation_of(account)) == [Outcome.ALLOCATED]


def test_insufficient_funds_leave_no_trace(database: Database) -> None:
    account = open_account(database, funds_cents=99)
    assert allocate(database, allocation_of(account, amount_cents=100)) == [Outcome.INSUFFICIENT_BALANCE]
    assert_nothing_was_written(database, account)


def test_the_deadline_is_measured_by_the_databases_clock(database: Database, payer: Account) -> None:
    now_us = database_now_us(database)
    late = allocation_of(payer, deadline_us=now_us - 1)
    in_time = allocation_of(payer, deadline_us=now_us + 60_000_000)
    assert allocate(database, late) == [Outcome.EXPIRED]
    assert_nothing_was_written(database, payer)
    assert allocate(database, late, in_time) == [Outcome.EXPIRED, Outcome.ALLOCATED]


def test_a_deadline_that_passes_while_waiting_for_the_row_is_missed(shared_database: Database) -> None:
    payer = open_account(shared_database)
    with ThreadPoolExecutor() as threads:
        with shared_database.transaction() as connection:
            set_payouts_enabled(connection, payer.business.id, enabled=True)
            deadline_us = database_now_us(shared_database) + 200_000
            outcomes = threads.submit(allocate, shared_database, allocation_of(payer, deadline_us=deadline_us))
            wait_until_blocked(shared_database)
            connection.execute(sa.text("SELECT pg_sleep(0.25)"))
        assert outcomes.result() == [Outcome.EXPIRED]
    assert_nothing_was_written(shared_database, payer)


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE businesses SET payout_balance = -1 WHERE id = :id", "ck_businesses_payout_balance"),
        ("UPDATE businesses SET reserved_balance = -1 WHERE id = :id", "ck_businesses_reserved_balance"),
        ("UPDATE payout_users SET balance = -1 WHERE business_id = :id", "ck_payout_users_balance"),
        ("UPDATE payout_transactions SET amount = 0 WHERE business_id = :id", "ck_payout_transactions_amount"),
    ],
)
def test_postgresql_itself_refuses_impossible_amounts(
    database: Database, payer: Account, statement: str, constraint: str
) -> None:
    allocate(database, allocation_of(payer))
    with pytest.raises(sa.exc.IntegrityError, match=constraint):
        run_sql(database, statement, id=payer.business.id)


# Idempotency keys and reversals.


def test_a_key_replays_the_same_values_and_refuses_others(database: Database, payer: Account) -> None:
    outcomes = [
        allocate(database, allocation_of(payer, email, amount, idempotency_key="key"))[0]
        for email, amount in [("a@example.com", 5), ("a@example.com", 5), ("a@example.com", 6), ("b@example.com", 5)]
    ]
    reused = Outcome.IDEMPOTENCY_KEY_REUSED
    assert outcomes == [Outcome.ALLOCATED, Outcome.REPLAYED, reused, reused]
    assert read_user_balances(database, payer.business.id) == {"a@example.com": 5}


def test_a_refusal_leaves_the_key_free(database: Database) -> None:
    account = open_account(database, funds_cents=10)
    refused = allocation_of(account, amount_cents=11, idempotency_key="key")
    assert allocate(database, refused) == [Outcome.INSUFFICIENT_BALANCE]
    assert allocate(database, allocation_of(account, amount_cents=10, idempotency_key="key")) == [Outcome.ALLOCATED]


def test_a_key_belongs_to_its_business(database: Database, payer: Account) -> None:
    other = open_account(database)
    first, second = (allocation_of(each, amount_cents=7, idempotency_key="key") for each in (payer, other))
    assert allocate(database, first) == allocate(database, second) == [Outcome.ALLOCATED]


def test_of_two_with_one_key_at_once_one_pays_and_the_other_replays(shared_database: Database) -> None:
    payer = open_account(shared_database)
    same = [allocation_of(payer, idempotency_key="key") for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as threads:
        outcomes = [outcome for (outcome,) in threads.map(lambda each: allocate(shared_database, each), same)]
    assert sorted(outcomes) == [Outcome.ALLOCATED] + [Outcome.REPLAYED] * (THREADS - 1)
    assert read_user_balances(shared_database, payer.business.id) == {"user@example.com": 100}


def test_a_reversal_gives_the_money_back_once(database: Database, payer: Account) -> None:
    paid = allocation_of(payer, "a@example.com", 70)
    allocate(database, paid, allocation_of(payer, "a@example.com", 5))
    assert [withdraw(database, paid), withdraw(database, paid)] == [True, False]
    assert read_payout_balance(database, payer.business.id) == 999_995
    assert read_user_balances(database, payer.business.id) == {"a@example.com": 5}
    reversal = read_history(database, payer.business.id)[-1]
    assert (reversal.type, reversal.reversed_id, reversal.amount) == ("reversal", paid.id, 70)
    assert (reversal.payout_balance_after, reversal.user_balance_after) == (999_995, 5)
    assert verify_books(database).balanced


def test_what_was_never_committed_cannot_be_reversed(database: Database, payer: Account) -> None:
    assert not withdraw(database, allocation_of(payer))
    assert_nothing_was_written(database, payer)


def test_reversals_at_once_give_the_money_back_once(shared_database: Database) -> None:
    payer = open_account(shared_database)
    paid = allocation_of(payer)
    allocate(shared_database, paid)
    with ThreadPoolExecutor(THREADS) as threads:
        reversed_ = list(threads.map(lambda _: withdraw(shared_database, paid), range(THREADS)))
    assert sum(reversed_) == 1
    assert read_payout_balance(shared_database, payer.business.id) == 1_000_000
    assert verify_books(shared_database).balanced


def test_a_reversal_frees_the_key_again_and_again(database: Database, payer: Account) -> None:
    for attempt in range(3):
        paid = allocation_of(payer, "a@example.com", 10 + attempt, idempotency_key="key")
        assert allocate(database, paid) == [Outcome.ALLOCATED]
        same = allocation_of(payer, "a@example.com", 10 + attempt, idempotency_key="key")
        assert allocate(database, same) == [Outcome.REPLAYED]
        assert [withdraw(database, paid), withdraw(database, same)] == [False, True]
    allocations = [row for row in read_history(database, payer.business.id) if row.type == "allocation"]
    assert [row.idempotency_attempt for row in allocations] == [0, 1, 2]
    assert verify_books(database).balanced


def test_what_a_replay_was_answered_201_for_is_not_reversed(database: Database, payer: Account) -> None:
    paid, again = [allocation_of(payer, idempotency_key="key") for _ in range(2)]
    allocate(database, paid)
    assert allocate(database, again) == [Outcome.REPLAYED]
    assert not withdraw(database, paid)
    assert read_payout_balance(database, payer.business.id) == 999_900


def test_a_second_copy_of_a_withdrawn_replay_pays_nothing(database: Database, payer: Account) -> None:
    paid, again = [allocation_of(payer, idempotency_key="key") for _ in range(2)]
    assert [allocate(database, each)[0] for each in (paid, again)] == [Outcome.ALLOCATED, Outcome.REPLAYED]
    assert [withdraw(database, again), withdraw(database, paid)] == [False, True]
    assert allocate(database, again) == [Outcome.EXPIRED]
    assert read_payout_balance(database, payer.business.id) == 1_000_000


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | st.integers(0, 5), max_size=12))
def test_money_stays_moved_exactly_while_a_call_counts_on_it(database: Database, steps: list[int | None]) -> None:
    """None is a call with the one key; a number is the call that is then answered 500."""
    payer = open_account(database)
    calls: list[Allocation] = []
    answered_201: set[int] = set()
    for step in steps:
        if step is None:
            calls.append(allocation_of(payer, idempotency_key="key"))
            assert allocate(database, calls[-1])[0] in {Outcome.ALLOCATED, Outcome.REPLAYED}
            answered_201.add(len(calls) - 1)
        elif step < len(calls):
            withdraw(database, calls[step])
            answered_201.discard(step)
        moved = 1_000_000 - read_payout_balance(database, payer.business.id)
        assert moved == (100 if answered_201 else 0)
    assert verify_books(database).balanced


def test_a_reversed_allocation_that_is_delivered_again_is_not_paid_again(database: Database, payer: Account) -> None:
    paid = allocation_of(payer, idempotency_key="key")
    allocate(database, paid)
    withdraw(database, paid)
    allocate(database, paid)
    assert read_payout_balance(database, payer.business.id) == 1_000_000
    assert verify_books(database).balanced


# Many at once.


def test_a_balance_for_n_lets_exactly_n_of_2n_through(shared_database: Database) -> None:
    account = open_account(shared_database, funds_cents=60)
    cents = [allocation_of(account, f"{number % 7}@example.com", 1) for number in range(120)]
    with ThreadPoolExecutor(THREADS) as threads:
        outcomes = [outcome for (outcome,) in threads.map(lambda each: allocate(shared_database, each), cents)]
    assert sorted(outcomes) == [Outcome.ALLOCATED] * 60 + [Outcome.INSUFFICIENT_BALANCE] * 60
    assert read_payout_balance(shared_database, account.business.id) == 0
    assert sum(read_user_balances(shared_database, account.business.id).values()) == 60
    assert verify_books(shared_database).balanced


def test_random_groups_at_once_keep_the_books_and_tell_the_truth(shared_database: Database) -> None:
    random = Random(20)  # noqa: S311 (a fixed sequence)
    payers = [open_account(shared_database, funds_cents=funds) for funds in (1_000, 5_000, 1_000_000)]
    pool = []
    for _ in range(700):
        key = random.randrange(160)
        email, amount = f"{key % 12}@example.com", 1 + key // 2 + random.randrange(2)
        idempotency_key = f"key {key}" if key < 40 else None
        pool.append(allocation_of(random.choice(payers), email, amount, idempotency_key=idempotency_key))
    # A third of the deliveries are copies, in other groups and in the same one.
    groups = [random.choices(pool, k=random.randint(1, 25)) for _ in range(80)]

    outcomes: dict[UUID, set[Outcome]] = defaultdict(set)
    with ThreadPoolExecutor(THREADS) as threads:
        results = threads.map(lambda group: allocate(shared_database, *group), groups)
        for group, decided in zip(groups, results, strict=True):
            for each, outcome in zip(group, decided, strict=True):
                outcomes[each.id].add(outcome)

    rows = {each.business.id: read_history(shared_database, each.business.id) for each in payers}
    written = {row.id for history in rows.values() for row in history}
    assert written == {id_ for id_, told in outcomes.items() if Outcome.ALLOCATED in told}
    assert all(outcomes[id_] == {Outcome.ALLOCATED} for id_ in written)
    assert {outcome for told in outcomes.values() for outcome in told} == {
        Outcome.ALLOCATED,
        Outcome.REPLAYED,
        Outcome.IDEMPOTENCY_KEY_REUSED,
        Outcome.INSUFFICIENT_BALANCE,
    }
    for account in payers:
        assert_unbroken(rows[account.business.id], account.business.payout_balance)
    assert verify_books(shared_database).balanced


def assert_unbroken(rows: list[HistoryRow], funds_cents: int) -> None:
    """Check that the balances of allocations follow one from another, the business's and each user's."""
    by_balance = sorted(rows, key=lambda row: -row.payout_balance_after)
    assert [row.payout_balance_after + row.amount for row in by_balance] == [
        funds_cents,
        *[row.payout_balance_after for row in by_balance[:-1]],
    ]
    by_user: dict[str | None, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        by_user[row.email].append((row.user_balance_after or 0, row.amount))
    for steps in by_user.values():
        for (before, _), (after, amount) in pairwise([(0, 0), *sorted(steps)]):
            assert after == before + amount
    keys = [row.idempotency_key for row in rows if row.idempotency_key]
    assert len(keys) == len(set(keys))


def test_groups_over_the_same_businesses_in_any_order_never_deadlock(shared_database: Database) -> None:
    payers = [open_account(shared_database) for _ in range(6)]
    random = Random(7)  # noqa: S311 (a fixed sequence)
    groups = [
        [allocation_of(each, f"{random.randrange(3)}@example.com", 1) for each in random.sample(payers, 6)]
        for _ in range(60)
    ]
    with ThreadPoolExecutor(THREADS) as threads:
        for outcomes in threads.map(lambda group: allocate(shared_database, *group), groups):
            assert outcomes == [Outcome.ALLOCATED] * 6
    assert verify_books(shared_database).balanced


def test_copies_of_one_group_at_once_pay_once(shared_database: Database) -> None:
    payers = [open_account(shared_database) for _ in range(3)]
    group: list[Allocation] = [allocation_of(each, f"{n}@example.com", 3) for each in payers for n in range(5)]
    start = Event()

    def deliver(_: int) -> list[Outcome]:
        start.wait()
        return allocate(shared_database, *group)

    with ThreadPoolExecutor(THREADS) as threads:
        deliveries = [threads.submit(deliver, number) for number in range(THREADS)]
        start.set()
        assert all(each.result() == [Outcome.ALLOCATED] * 15 for each in deliveries)
    written = {(each.business.id, row.id) for each in payers for row in read_history(shared_database, each.business.id)}
    assert written == keys_of(group)
    assert all(read_payout_balance(shared_database, each.business.id) == 999_985 for each in payers)
    assert verify_books(shared_database).balanced


def test_group_larger_than_the_sockets_buffer_is_carried_out(database: Database) -> None:
    # More than half a megabyte in each direction of the pipeline; without care for what is unsent, it never ends.
    payer = open_account(database)
    email = f"{'e' * 60}@{'d' * 60}.example"
    for first in range(0, 10_000, 2_500):
        group = [
            allocation_of(payer, email, 1, idempotency_key=f"{number:0>250}") for number in range(first, first + 2_500)
        ]
        assert set(allocate(database, *group)) == {Outcome.ALLOCATED}
    assert verify_books(database).balanced
