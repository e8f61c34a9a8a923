"""Finding out for certain what became of an allocation."""

from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from core.database.connection import Database
from core.ledger import resolution, statements
from core.ledger.resolution import Resolution, read_deadline_clock_us
from core.messages import Allocation, Outcome
from tests.core.builders import (
    FAR_FUTURE_US,
    HASH_SECRET,
    UNKNOWN_ID,
    allocate,
    allocation_of,
    database_now_us,
    make_allocation,
    read_payout_balance,
    resolve,
    wait_until_blocked,
    withdraw,
)
from tests.servers import Account, open_account


def test_what_is_in_the_history_is_committed(database: Database, payer: Account) -> None:
    paid = allocation_of(payer)
    allocate(database, paid)
    assert resolve(database, paid) == Resolution(committed={paid.id: Outcome.ALLOCATED}, never=set())


def test_what_is_not_there_after_its_deadline_never_will_be(database: Database, payer: Account) -> None:
    missed = allocation_of(payer, deadline_us=database_now_us(database) - 1)
    assert resolve(database, missed) == Resolution(committed={}, never={missed.id})
    assert allocate(database, missed) == [Outcome.EXPIRED]


def test_before_the_deadline_nothing_is_certain(database: Database, payer: Account) -> None:
    waiting = allocation_of(payer)
    assert resolve(database, waiting) == Resolution(committed={}, never=set())


def test_each_of_several_is_resolved_by_itself(database: Database, payer: Account) -> None:
    other = open_account(database)
    paid, theirs = allocation_of(payer), allocation_of(other)
    waiting, missed = allocation_of(other), allocation_of(payer, deadline_us=0)
    allocate(database, paid, theirs)
    assert resolve(database, missed, paid, waiting, theirs) == Resolution(
        {paid.id: Outcome.ALLOCATED, theirs.id: Outcome.ALLOCATED}, {missed.id}
    )


def test_what_was_committed_in_time_stays_committed_after_its_deadline(database: Database, payer: Account) -> None:
    paid = allocation_of(payer)
    allocate(database, paid)
    late = allocation_of(payer, deadline_us=0)
    assert resolve(database, paid, late) == Resolution({paid.id: Outcome.ALLOCATED}, {late.id})


def test_an_allocation_of_an_unknown_business_never_will_be(database: Database, payer: Account) -> None:
    lost = make_allocation(UNKNOWN_ID, payer.api_key_id, deadline_us=0)
    assert resolve(database, lost) == Resolution({}, {lost.id})


def test_resolving_nothing_finds_nothing(database: Database) -> None:
    assert resolve(database) == Resolution({}, set())


def test_resolving_waits_for_a_worker_that_holds_the_row_and_sees_its_commit(shared_database: Database) -> None:
    payer = open_account(shared_database)
    paid = allocation_of(payer)
    with ThreadPoolExecutor() as threads:
        with shared_database.transaction() as connection:
            statements.allocate(connection, HASH_SECRET, [paid])
            resolving = threads.submit(resolve, shared_database, paid)
            wait_until_blocked(shared_database)
        assert resolving.result() == Resolution({paid.id: Outcome.ALLOCATED}, set())


def test_resolving_waits_for_a_worker_that_is_rolled_back(shared_database: Database) -> None:
    payer = open_account(shared_database)
    lost = allocation_of(payer, deadline_us=database_now_us(shared_database) + 60_000_000)
    with ThreadPoolExecutor() as threads:
        with shared_database.transaction() as connection:
            statements.allocate(connection, HASH_SECRET, [lost])
            resolving = threads.submit(resolve, shared_database, lost)
            wait_until_blocked(shared_database)
            connection.rollback()
        assert resolving.result() == Resolution({}, set())


def test_a_committed_allocation_can_be_taken_back(database: Database, payer: Account) -> None:
    paid = allocation_of(payer)
    allocate(database, paid)
    assert withdraw(database, paid)
    assert read_payout_balance(database, payer.business.id) == payer.business.payout_balance


def test_a_replay_whose_reply_was_lost_is_committed(database: Database, payer: Account) -> None:
    paid, again = [allocation_of(payer, idempotency_key="key") for _ in range(2)]
    assert [*allocate(database, paid), *allocate(database, again)] == [Outcome.ALLOCATED, Outcome.REPLAYED]
    assert resolve(database, paid, again).committed == {paid.id: Outcome.ALLOCATED, again.id: Outcome.REPLAYED}
    assert allocate(database, again) == [Outcome.REPLAYED]


def test_a_replay_that_was_answered_500_is_no_longer_committed(database: Database, payer: Account) -> None:
    paid = allocation_of(payer, idempotency_key="key")
    again = allocation_of(payer, idempotency_key="key")
    allocate(database, paid, again)
    assert not withdraw(database, again)
    assert resolve(database, again).committed == {}
    assert read_payout_balance(database, payer.business.id) == payer.business.payout_balance - 100


def test_what_is_resolved_as_never_is_not_paid_after_the_clock_was_set_back(database: Database, payer: Account) -> None:
    missed = allocation_of(payer)  # by the database's clock its deadline is far away, as after a step back
    assert resolve_overdue(database, missed) == Resolution({}, {missed.id})
    assert allocate(database, missed) == [Outcome.EXPIRED]
    assert resolve(database, missed) == Resolution({}, {missed.id})
    assert read_payout_balance(database, payer.business.id) == payer.business.payout_balance


def test_what_a_worker_found_expired_is_not_paid_after_the_clock_was_set_back(
    database: Database, payer: Account
) -> None:
    missed = allocation_of(payer, deadline_us=database_now_us(database) - 1)
    assert allocate(database, missed) == [Outcome.EXPIRED]
    assert read_fence_us(database, payer) == missed.deadline_us


def test_fence_refuses_its_own_business_up_to_its_deadline_and_nothing_else(database: Database, payer: Account) -> None:
    other = open_account(database)
    fenced = allocation_of(payer, deadline_us=FAR_FUTURE_US)
    resolve_overdue(database, fenced)
    equal, later = (allocation_of(payer, deadline_us=FAR_FUTURE_US + more_us) for more_us in (0, 1))
    theirs = allocation_of(other, deadline_us=FAR_FUTURE_US)
    assert allocate(database, equal, later, theirs) == [Outcome.EXPIRED, Outcome.ALLOCATED, Outcome.ALLOCATED]


def test_fence_is_never_lowered(database: Database, payer: Account) -> None:
    resolve_overdue(database, allocation_of(payer, deadline_us=FAR_FUTURE_US))
    resolve_overdue(database, allocation_of(payer, deadline_us=1))
    allocate(database, allocation_of(payer, deadline_us=1))
    assert read_fence_us(database, payer) == FAR_FUTURE_US


def test_allocation_that_was_paid_raises_no_fence(database: Database, payer: Account) -> None:
    paid = allocation_of(payer)
    allocate(database, paid)
    assert resolve_overdue(database, paid) == Resolution({paid.id: Outcome.ALLOCATED}, set())
    assert read_fence_us(database, payer) == 0


def test_what_was_taken_back_is_told_apart_from_what_stands(database: Database, payer: Account) -> None:
    paid = allocation_of(payer)
    allocate(database, paid)
    withdraw(database, paid)
    assert resolve(database, paid) == Resolution({}, set(), {paid.id})


def test_deadlines_count_from_behind_the_latest_fence(database: Database, payer: Account) -> None:
    with database.transaction() as connection:
        assert abs(read_deadline_clock_us(connection) - database_now_us(database)) < 60_000_000
    resolve_overdue(database, allocation_of(payer, deadline_us=FAR_FUTURE_US))
    resolve_overdue(database, allocation_of(open_account(database), deadline_us=FAR_FUTURE_US - 1))
    with database.transaction() as connection:
        assert read_deadline_clock_us(connection) == FAR_FUTURE_US


def resolve_overdue(database: Database, *allocations: Allocation) -> Resolution:
    with database.transaction() as connection:
        return resolution.resolve(connection, allocations, are_overdue=True)


def read_fence_us(database: Database, account: Account) -> int:
    with database.transaction() as connection:
        query = sa.text("SELECT fence_us FROM businesses WHERE id = :id")
        return int(connection.execute(query, {"id": account.business.id}).scalar_one())
