"""Finding out for certain what became of an allocation."""

from concurrent.futures import ThreadPoolExecutor

from core.database.connection import Database
from core.ledger import statements
from core.ledger.resolution import Resolution
from core.messages import Outcome
from tests.core.builders import (
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
            resolution = threads.submit(resolve, shared_database, paid)
            wait_until_blocked(shared_database)
        assert resolution.result() == Resolution({paid.id: Outcome.ALLOCATED}, set())


def test_resolving_waits_for_a_worker_that_is_rolled_back(shared_database: Database) -> None:
    payer = open_account(shared_database)
    lost = allocation_of(payer, deadline_us=database_now_us(shared_database) + 60_000_000)
    with ThreadPoolExecutor() as threads:
        with shared_database.transaction() as connection:
            statements.allocate(connection, HASH_SECRET, [lost])
            resolution = threads.submit(resolve, shared_database, lost)
            wait_until_blocked(shared_database)
            connection.rollback()
        assert resolution.result() == Resolution({}, set())


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
