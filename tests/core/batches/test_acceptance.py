"""Accepting on a real PostgreSQL: the whole amount is reserved once, or nothing is."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from core.batches import acceptance
from core.batches.acceptance import Accepted, Sorting, Submission
from core.batches.payout_batch import BatchRow, BatchStatus, PayoutBatch
from core.database.connection import Database
from core.ids import new_id
from core.messages import Outcome
from core.parties.api_keys import revoke_api_key
from tests.core.batch_builders import (
    accept,
    assert_books_balance,
    cancel,
    count_items,
    make_rows,
    pay_all,
    pay_chunk,
    read_balances,
    read_batch,
    submission_of,
    switch_payouts,
    try_to_accept,
)
from tests.core.batches.faults import FUNDS_CENTS, THREADS
from tests.core.builders import (
    HASH_SECRET,
    allocate,
    allocation_of,
    read_history,
    read_user_balances,
    wait_until_blocked,
    withdraw,
)
from tests.servers import Account, open_account

# Accepting


def test_accepting_moves_the_whole_amount_into_the_reservation(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(100, 20, 3))
    assert (batch.status, batch.total, batch.amount, batch.processed) == (BatchStatus.QUEUED, 3, 123, 0)
    assert (batch.allocated_amount, batch.finished_at) == (0, None)
    assert batch.created_at == batch.updated_at
    assert read_balances(database, payer) == (FUNDS_CENTS - 123, 123)
    assert read_user_balances(database, payer.business.id) == {}
    assert read_history(database, payer.business.id) == []
    assert read_batch(database, batch) == batch


def test_the_last_cent_may_be_reserved_and_no_more(database: Database) -> None:
    account = open_account(database, funds_cents=100)
    assert try_to_accept(database, account, make_rows(50, 51)) is Outcome.INSUFFICIENT_BALANCE
    assert count_items(database, account) == 0
    assert read_balances(database, account) == (100, 0)
    accept(database, account, make_rows(50, 50))
    assert read_balances(database, account) == (0, 100)
    assert try_to_accept(database, account, make_rows(1)) is Outcome.INSUFFICIENT_BALANCE


def test_a_total_over_64_bits_is_more_than_anybody_has(database: Database) -> None:
    account = open_account(database, funds_cents=10**18)
    rows = make_rows(2**63 - 1, 2**63 - 1, 2**63 - 1)
    with database.transaction() as connection:
        assert acceptance.sort_rows(connection, submission_of(account, rows)) is Outcome.INSUFFICIENT_BALANCE
    assert try_to_accept(database, account, rows) is Outcome.INSUFFICIENT_BALANCE
    assert (count_items(database, account), read_balances(database, account)) == (0, (10**18, 0))


def test_reserved_money_is_not_there_for_others(database: Database) -> None:
    account = open_account(database, funds_cents=100)
    accept(database, account, make_rows(60))
    assert allocate(database, allocation_of(account, amount_cents=41)) == [Outcome.INSUFFICIENT_BALANCE]
    assert allocate(database, allocation_of(account, amount_cents=40)) == [Outcome.ALLOCATED]
    assert read_balances(database, account) == (0, 60)


def test_batches_at_once_never_reserve_more_than_there_is(database: Database) -> None:
    account = open_account(database, funds_cents=350)
    start = Barrier(THREADS)

    def submit(_: int) -> acceptance.Answer:
        start.wait()
        return try_to_accept(database, account, make_rows(60, 40))

    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(submit, range(THREADS)))
    assert sum(isinstance(answer, Accepted) for answer in answers) == 3
    assert answers.count(Outcome.INSUFFICIENT_BALANCE) == THREADS - 3
    assert read_balances(database, account) == (50, 300)
    assert count_items(database, account) == 6


@pytest.mark.parametrize("is_asked_beforehand", [True, False])
def test_whoever_may_not_allocate_may_not_reserve(
    database: Database, payer: Account, is_asked_beforehand: bool
) -> None:
    other = open_account(database)

    def ask(api_key_id: UUID) -> acceptance.Answer | Sorting:
        submission = Submission.of(payer.business.id, api_key_id, make_rows(1), None)
        with database.transaction() as connection:
            if is_asked_beforehand:
                return acceptance.sort_rows(connection, submission)
            return acceptance.accept(connection, submission, new_id(), Sorting(1))

    assert ask(uuid4()) is ask(other.api_key_id) is Outcome.UNAUTHORIZED
    switch_payouts(database, payer, enabled=False)
    assert ask(payer.api_key_id) is Outcome.PAYOUTS_DISABLED
    with database.transaction() as connection:
        revoke_api_key(connection, payer.api_key_id)
    assert ask(payer.api_key_id) is Outcome.UNAUTHORIZED
    assert read_balances(database, payer) == (FUNDS_CENTS, 0)


def test_a_revoke_that_is_under_way_is_waited_for(database: Database) -> None:
    account = open_account(database)
    with ThreadPoolExecutor() as threads:
        with database.transaction() as connection:
            revoke_api_key(connection, account.api_key_id)
            answer = threads.submit(try_to_accept, database, account, make_rows(1))
            wait_until_blocked(database)
        assert answer.result() is Outcome.UNAUTHORIZED
    assert (count_items(database, account), read_balances(database, account)) == (0, (FUNDS_CENTS, 0))


def test_what_is_rolled_back_was_never_accepted(database: Database, payer: Account) -> None:
    submission, batch_id = submission_of(payer, make_rows(1, 2)), new_id()

    def break_off() -> None:
        with database.transaction() as connection:
            acceptance.load_rows(connection, HASH_SECRET, submission, batch_id, Sorting(3))
            acceptance.accept(connection, submission, batch_id, Sorting(3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert (count_items(database, payer), read_balances(database, payer)) == (0, (FUNDS_CENTS, 0))


# Idempotency keys


def assert_replays(answer: acceptance.Answer | Sorting, batch: PayoutBatch) -> None:
    assert isinstance(answer, Accepted)
    assert (answer.is_replay, answer.batch.id) == (True, batch.id)


@pytest.mark.parametrize("moment", range(5))
def test_the_same_offer_that_is_accepted_meanwhile_is_never_too_much(
    database: Database, payer: Account, moment: int
) -> None:
    """Sent twice at once, the second finds the balance gone: to the first, whose batch it gets."""
    rows = make_rows(FUNDS_CENTS)
    statements = 0

    def accept_between(*_: object) -> None:
        nonlocal statements
        if statements == moment:
            accept(database, payer, rows, "key")
        statements += 1

    with Database(database.engine.url.render_as_string(hide_password=False), transaction_timeout_s=None) as other:
        sa.event.listen(other.engine, "before_cursor_execute", accept_between)
        with other.transaction() as connection:
            obstacle = acceptance.sort_rows(connection, submission_of(payer, rows, "key"))
    assert isinstance(obstacle, Sorting | Accepted)


def test_a_key_replays_the_same_rows_and_refuses_others(database: Database, payer: Account) -> None:
    rows = [BatchRow("a@example.com", 5, "x"), BatchRow("b@example.com", 6)]
    batch = accept(database, payer, rows, "key")
    assert_replays(try_to_accept(database, payer, list(rows), "key"), batch)
    with database.transaction() as connection:
        assert_replays(acceptance.sort_rows(connection, submission_of(payer, rows, "key")), batch)
    others = [
        rows[:1],
        rows[::-1],
        [*rows, rows[1]],
        [BatchRow("a@example.com", 5), rows[1]],
        [BatchRow("a@example.com", 6, "x"), BatchRow("b@example.com", 5)],
    ]
    for other in others:
        assert try_to_accept(database, payer, other, "key") is Outcome.IDEMPOTENCY_KEY_REUSED
    assert read_balances(database, payer) == (FUNDS_CENTS - 11, 11)
    assert count_items(database, payer) == 2


def test_of_two_with_one_key_at_once_one_reserves_and_the_others_replay(database: Database) -> None:
    account = open_account(database, funds_cents=1_000)
    start = Barrier(THREADS)

    def submit(_: int) -> acceptance.Answer:
        start.wait()
        return try_to_accept(database, account, make_rows(600, 300), "key")

    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(submit, range(THREADS)))
    accepted = [answer for answer in answers if isinstance(answer, Accepted)]
    assert len(accepted) == THREADS
    assert Counter(answer.is_replay for answer in accepted) == {True: THREADS - 1, False: 1}
    assert len({answer.batch.id for answer in accepted}) == 1
    assert read_balances(database, account) == (100, 900)


def test_a_refusal_leaves_the_key_free(database: Database) -> None:
    account = open_account(database, funds_cents=10)
    assert try_to_accept(database, account, make_rows(11), "key") is Outcome.INSUFFICIENT_BALANCE
    accept(database, account, make_rows(10), "key")


def test_a_key_belongs_to_its_business(database: Database, payer: Account) -> None:
    other = open_account(database)
    assert accept(database, payer, make_rows(1), "key").id != accept(database, other, make_rows(1), "key").id


def test_a_key_replays_a_batch_that_is_paid_or_cancelled_and_moves_nothing(database: Database, payer: Account) -> None:
    paid = accept(database, payer, make_rows(1), "paid")
    pay_all(database, paid)
    cancelled = accept(database, payer, make_rows(2), "cancelled")
    cancel(database, cancelled)
    assert_replays(try_to_accept(database, payer, make_rows(1), "paid"), paid)
    assert_replays(try_to_accept(database, payer, make_rows(2), "cancelled"), cancelled)
    assert read_balances(database, payer) == (FUNDS_CENTS - 1, 0)


def test_a_key_is_used_up_by_a_batch_or_a_single_call_whichever_came_first(database: Database, payer: Account) -> None:
    rows = [BatchRow("a@example.com", 5)]
    single = allocation_of(payer, "a@example.com", 5, idempotency_key="single")
    assert allocate(database, single) == [Outcome.ALLOCATED]
    assert try_to_accept(database, payer, rows, "single") is Outcome.IDEMPOTENCY_KEY_REUSED
    batch = accept(database, payer, rows, "batch")
    late = allocation_of(payer, "a@example.com", 5, idempotency_key="batch")
    assert allocate(database, late) == [Outcome.IDEMPOTENCY_KEY_REUSED]
    cancel(database, batch)
    assert allocate(database, late) == [Outcome.IDEMPOTENCY_KEY_REUSED]
    other = open_account(database)
    assert allocate(database, allocation_of(other, idempotency_key="batch")) == [Outcome.ALLOCATED]
    accept(database, other, rows, "single")


def test_a_key_that_a_reversal_freed_may_accept_a_batch(database: Database, payer: Account) -> None:
    reversed_ = allocation_of(payer, "a@example.com", 5, idempotency_key="key")
    allocate(database, reversed_)
    assert withdraw(database, reversed_)
    batch = accept(database, payer, make_rows(7), "key")
    again = allocation_of(payer, "a@example.com", 5, idempotency_key="key")
    assert allocate(database, again) == [Outcome.IDEMPOTENCY_KEY_REUSED]
    assert_replays(try_to_accept(database, payer, make_rows(7), "key"), batch)
    pay_all(database, batch)


def test_of_a_batch_and_single_calls_with_one_key_at_once_one_kind_moves_money(database: Database) -> None:
    for _ in range(10):
        account = open_account(database)
        start = Barrier(4)

        def submit(account: Account, start: Barrier) -> acceptance.Answer:
            start.wait()
            return try_to_accept(database, account, make_rows(600), "key")

        def call(account: Account, start: Barrier) -> acceptance.Answer:
            start.wait()
            return allocate(database, allocation_of(account, "a@example.com", 50, idempotency_key="key"))[0]

        with ThreadPoolExecutor(4) as threads:
            works = [threads.submit(each, account, start) for each in (submit, call, submit, call)]
            answers = [work.result() for work in works]
        batches = [answer for answer in answers if isinstance(answer, Accepted)]
        assert answers.count(Outcome.IDEMPOTENCY_KEY_REUSED) == 2
        assert read_balances(database, account) == ((FUNDS_CENTS - 600, 600) if batches else (FUNDS_CENTS - 50, 0))


def test_a_replay_needs_no_funds_and_no_enabled_payouts(database: Database) -> None:
    account = open_account(database, funds_cents=10)
    batch = accept(database, account, make_rows(10), "key")
    switch_payouts(database, account, enabled=False)
    assert_replays(try_to_accept(database, account, make_rows(10), "key"), batch)


def test_a_member_offers_a_batch_without_a_key(database: Database) -> None:
    account = open_account(database, funds_cents=100)
    with database.transaction() as connection:
        revoke_api_key(connection, account.api_key_id)
    member = Account(account.business, None, "")  # type: ignore[arg-type]
    batch = accept(database, member, make_rows(10, 20))
    assert pay_chunk(database, batch, 0, 10) is None
    assert read_batch(database, batch).status is BatchStatus.COMPLETED
    assert try_to_accept(database, member, make_rows(71)) is Outcome.INSUFFICIENT_BALANCE
    switch_payouts(database, account, enabled=False)
    assert try_to_accept(database, member, make_rows(1)) is Outcome.PAYOUTS_DISABLED
    assert_books_balance(database)
