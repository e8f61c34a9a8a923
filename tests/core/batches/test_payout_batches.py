"""Payout batches on a real PostgreSQL: whatever comes between two chunks, each row is paid once, or given back."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from threading import Barrier
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from core.batches import acceptance, payment, reading
from core.batches.acceptance import Accepted, Sorting, Submission
from core.batches.payout_batch import BatchRow, BatchStatus, PayoutBatch, PayoutBatchError, RowOutcome
from core.database.connection import DATABASE_ERRORS, Database
from core.ids import new_id
from core.messages import Outcome
from core.parties.api_keys import revoke_api_key
from core.parties.businesses import fund_business, set_payouts_enabled
from tests.core.batch_builders import (
    accept,
    assert_books_balance,
    cancel,
    count_items,
    find_stalled,
    make_rows,
    pay_all,
    pay_chunk,
    read_balances,
    read_batch,
    read_business,
    read_progress,
    submission_of,
    switch_payouts,
    try_to_accept,
)
from tests.core.builders import (
    HASH_SECRET,
    allocate,
    allocation_of,
    read_history,
    read_user_balances,
    run_sql,
    wait_until_blocked,
    withdraw,
)
from tests.servers import Account, Servers, open_account

THREADS = 8
FUNDS_CENTS = 1_000_000


@pytest.fixture(scope="module")
def database(servers: Servers) -> Iterator[Database]:
    """One for all tests, each with a business of its own, and for eight threads at once."""
    with (
        servers.clone() as url,
        Database(url, transaction_timeout_s=None, connect_timeout_s=30, pool_size=10) as opened,
    ):
        yield opened


@pytest.fixture(autouse=True)
def _books_balance(database: Database) -> Iterator[None]:
    """Check the books behind every test, whatever else it looks at."""
    yield
    assert_books_balance(database)


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


# Paying


def test_a_chunk_credits_and_writes_the_history_and_uses_the_reservation_up(database: Database, payer: Account) -> None:
    batch = accept(database, payer, [BatchRow("a@example.com", 100), BatchRow("b@example.com", 20)])
    assert pay_chunk(database, batch, 0) is None
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 2, 120)
    assert read_balances(database, payer) == (FUNDS_CENTS - 120, 0)
    assert read_user_balances(database, payer.business.id) == {"a@example.com": 100, "b@example.com": 20}
    rows = read_history(database, payer.business.id)
    assert [(row.type, row.email, row.amount, row.payout_balance_after, row.user_balance_after) for row in rows] == [
        ("allocation", "a@example.com", 100, FUNDS_CENTS - 120, 100),
        ("allocation", "b@example.com", 20, FUNDS_CENTS - 120, 20),
    ]


@pytest.mark.parametrize("rows_max", [1, 2, 3, 6, 7, 100])
def test_chunks_of_any_size_pay_each_row_once_and_in_order(database: Database, payer: Account, rows_max: int) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4, 8, 16, 32, 64))
    position: int | None = 0
    paid = 0
    while position is not None:
        position = pay_chunk(database, batch, position, rows_max)
        paid = min(paid + rows_max, 7)
        status = BatchStatus.COMPLETED if paid == 7 else BatchStatus.PROCESSING
        assert read_progress(database, batch) == (status, paid, 2**paid - 1)
        assert position == (paid if paid < 7 else None)
        assert read_balances(database, payer) == (FUNDS_CENTS - 127, 127 - (2**paid - 1))
        assert_books_balance(database)
    history = read_history(database, payer.business.id)
    assert [row.amount for row in history] == [1, 2, 4, 8, 16, 32, 64]


def test_each_row_says_its_users_balance_right_after_it(database: Database, payer: Account) -> None:
    emails = ["a@example.com", "b@example.com", "a@example.com", "a@example.com", "b@example.com", "a@example.com"]
    allocate(database, allocation_of(payer, "a@example.com", 1_000))
    batch = accept(database, payer, [BatchRow(email, 10**number) for number, email in enumerate(emails)])
    assert pay_chunk(database, batch, 0, 4) == 4
    allocate(database, allocation_of(payer, "a@example.com", 7))
    assert pay_chunk(database, batch, 4, 4) is None
    running: dict[str | None, int] = defaultdict(int)
    with database.transaction() as connection:
        query = sa.text(
            "SELECT email, amount, user_balance_after FROM payout_transactions AS history "
            "JOIN payout_users ON payout_users.id = payout_user_id WHERE history.business_id = :id "
            "ORDER BY history.created_at, history.id"
        )
        for email, amount, user_balance_after in connection.execute(query, {"id": payer.business.id}):
            running[email] += amount
            assert user_balance_after == running[email]
    assert running == {"a@example.com": 1_007 + 1 + 100 + 1_000 + 100_000, "b@example.com": 10 + 10_000}


def test_the_history_says_what_is_free_and_a_batch_does_not_change_that(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(10, 20))
    assert pay_chunk(database, batch, 0, 1) == 1
    allocate(database, allocation_of(payer, "sync@example.com", 100))
    assert pay_chunk(database, batch, 1, 1) is None
    rows = sorted(read_history(database, payer.business.id), key=lambda row: row.amount)
    assert [(row.amount, row.payout_balance_after) for row in rows] == [
        (10, FUNDS_CENTS - 30),
        (20, FUNDS_CENTS - 130),
        (100, FUNDS_CENTS - 130),
    ]


def test_a_user_of_a_batch_is_the_same_as_that_of_one_call(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, "old@example.com", 1), allocation_of(payer, "other@example.com", 1))
    pay_all(database, accept(database, payer, [BatchRow("old@example.com", 2), BatchRow("new@example.com", 3)]))
    allocate(database, allocation_of(payer, "new@example.com", 4))
    assert read_user_balances(database, payer.business.id) == {
        "old@example.com": 3,
        "other@example.com": 1,
        "new@example.com": 7,
    }
    query = sa.text(
        "SELECT item.hash_digest = payee.hash_digest FROM payout_batch_items AS item "
        "JOIN payout_users AS payee USING (business_id, email) WHERE business_id = :id"
    )
    with database.transaction() as connection:
        assert connection.execute(query, {"id": payer.business.id}).scalars().all() == [True, True]


def test_an_inactive_user_is_paid_and_stays_inactive(database: Database, payer: Account) -> None:
    allocate(database, allocation_of(payer, "a@example.com", 1))
    run_sql(database, "UPDATE payout_users SET status = 'inactive' WHERE business_id = :id", id=payer.business.id)
    pay_all(database, accept(database, payer, [BatchRow("a@example.com", 2)]))
    with database.transaction() as connection:
        query = sa.text("SELECT balance, status FROM payout_users WHERE business_id = :id")
        row = connection.execute(query, {"id": payer.business.id}).one()
    assert tuple(row) == (3, "inactive")


def test_batches_of_two_businesses_do_not_touch_each_other(database: Database, payer: Account) -> None:
    other = open_account(database)
    own, foreign = (accept(database, each, make_rows(10, 20)) for each in (payer, other))
    with database.pipeline() as connection:
        assert payment.pay_chunk(connection, payer.business.id, foreign.id, 0, 500).next_first is None
        assert payment.pay_chunk(connection, other.business.id, own.id, 0, 500).next_first is None
    with database.transaction() as connection:
        assert reading.find_batch(connection, payer.business.id, foreign.id) is None
        with pytest.raises(PayoutBatchError, match=r"There is no such payout batch\."):
            payment.cancel(connection, payer.business.id, foreign.id)
    assert read_progress(database, own) == read_progress(database, foreign) == (BatchStatus.QUEUED, 0, 0)
    pay_all(database, own)
    assert read_user_balances(database, other.business.id) == {}


@pytest.mark.parametrize("first", [0, 1, 3, 4, 5, 2**40])
def test_a_message_that_names_another_row_than_the_next_does_nothing(
    database: Database, payer: Account, first: int
) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4, 8))
    assert pay_chunk(database, batch, 0, 2) == 2
    before = read_batch(database, batch), read_history(database, payer.business.id)
    assert pay_chunk(database, batch, first, 2) is None
    assert (read_batch(database, batch), read_history(database, payer.business.id)) == before


def test_nothing_is_paid_of_what_is_finished_or_unknown(database: Database, payer: Account) -> None:
    paid, cancelled = (accept(database, payer, make_rows(1, 2, 4)) for _ in range(2))
    pay_all(database, paid)
    pay_chunk(database, cancelled, 0, 1)
    cancel(database, cancelled)
    for batch in (paid, cancelled):
        before = read_batch(database, batch)
        for first in range(4):
            assert pay_chunk(database, batch, first) is None
        assert read_batch(database, batch) == before
    with database.pipeline() as connection:
        assert payment.pay_chunk(connection, payer.business.id, uuid4(), 0, 500).next_first is None
        assert payment.pay_chunk(connection, uuid4(), paid.id, 0, 500).next_first is None


def test_copies_of_a_message_at_once_pay_once(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(*range(1, 41)))
    start = Barrier(THREADS)

    def work(_: int) -> None:
        for first in range(0, 40, 10):
            start.wait()
            pay_chunk(database, batch, first, 10)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, range(THREADS)))
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 40, 820)
    assert len(read_history(database, account.business.id)) == 40


def test_workers_that_race_each_other_through_a_batch_pay_each_row_once(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(*range(1, 201), emails=17))

    def work(seed: int) -> None:
        random = Random(seed)  # noqa: S311 (a fixed sequence)
        while (found := read_batch(database, batch)).finished_at is None:
            pay_all(database, batch, found.processed, random.randint(1, 20))

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, range(THREADS)))
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 200, 20_100)
    assert read_balances(database, account) == (FUNDS_CENTS - 20_100, 0)


# Breaking off


def die_in_chunk(database: Database, batch: PayoutBatch, first: int, rows_max: int) -> None:
    """Pay a chunk, but end before its commit."""

    def pay_and_die() -> None:
        with database.pipeline() as connection:
            payment.pay_chunk(connection, batch.business_id, batch.id, first, rows_max)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pay_and_die()


def test_a_worker_that_dies_in_a_chunk_leaves_it_to_the_next(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4, 8, 16))
    assert pay_chunk(database, batch, 0, 2) == 2
    die_in_chunk(database, batch, 2, 2)
    assert read_progress(database, batch) == (BatchStatus.PROCESSING, 2, 3)
    assert find_stalled(database, payer) == [(batch.id, 2)]
    pay_all(database, batch, 2, 2)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 5, 31)


def test_a_chunk_that_cannot_be_paid_stays_reserved_as_a_whole(database: Database, payer: Account) -> None:
    run_sql(database, "ALTER TABLE payout_transactions ADD CONSTRAINT refuse CHECK (amount <> 666) NOT VALID")
    batch = accept(database, payer, make_rows(1, 2, 4, 666))
    assert pay_chunk(database, batch, 0, 2) == 2
    for _ in range(2):
        with pytest.raises(DATABASE_ERRORS, match="refuse"):
            pay_chunk(database, batch, 2, 2)
        assert read_progress(database, batch) == (BatchStatus.PROCESSING, 2, 3)
        assert read_balances(database, payer) == (FUNDS_CENTS - 673, 670)
    run_sql(database, "ALTER TABLE payout_transactions DROP CONSTRAINT refuse")
    pay_all(database, batch, 2)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 4, 673)


def test_a_session_that_is_ended_in_a_chunk_loses_nothing(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4))

    def pay_and_be_cut() -> None:
        with database.pipeline() as connection:
            payment.pay_chunk(connection, payer.business.id, batch.id, 0, 2)
            connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(DATABASE_ERRORS):
        pay_and_be_cut()
    assert read_progress(database, batch) == (BatchStatus.QUEUED, 0, 0)
    pay_all(database, batch)
    assert read_user_balances(database, payer.business.id) == {
        "0@example.com": 1,
        "1@example.com": 2,
        "2@example.com": 4,
    }


# Payouts that are disabled midway


def test_while_payouts_are_disabled_the_rest_waits(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4, 8))
    assert pay_chunk(database, batch, 0, 2) == 2
    switch_payouts(database, payer, enabled=False)
    before = read_batch(database, batch)
    assert pay_chunk(database, batch, 2, 2) is None
    assert read_batch(database, batch) == before
    assert find_stalled(database, payer) == []
    assert read_balances(database, payer) == (FUNDS_CENTS - 15, 12)

    switch_payouts(database, payer, enabled=True)
    assert find_stalled(database, payer) == [(batch.id, 2)]
    pay_all(database, batch, 2, 1)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 4, 15)


def test_a_chunk_that_waits_for_a_disabling_pays_nothing(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(1, 2))
    with ThreadPoolExecutor() as threads:
        with database.transaction() as connection:
            set_payouts_enabled(connection, account.business.id, enabled=False)
            position = threads.submit(pay_chunk, database, batch, 0, 1)
            wait_until_blocked(database)
        assert position.result() is None
    assert read_progress(database, batch) == (BatchStatus.QUEUED, 0, 0)


def test_a_batch_goes_on_when_the_key_that_brought_it_is_revoked(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2))
    with database.transaction() as connection:
        revoke_api_key(connection, payer.api_key_id)
    pay_all(database, batch)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 2, 3)


# Cancelling


@pytest.mark.parametrize("paid", [0, 1, 3])
@pytest.mark.parametrize("enabled", [True, False])
def test_cancelling_gives_the_rest_back(database: Database, payer: Account, paid: int, enabled: bool) -> None:
    other = accept(database, payer, make_rows(1_000))
    batch = accept(database, payer, make_rows(1, 2, 4, 8))
    if paid:
        assert pay_chunk(database, batch, 0, paid) == paid
    switch_payouts(database, payer, enabled=enabled)
    cancelled = cancel(database, batch)
    assert (cancelled.status, cancelled.processed, cancelled.allocated_amount) == (
        BatchStatus.CANCELLED,
        paid,
        2**paid - 1,
    )
    assert cancelled == read_batch(database, batch)
    assert cancelled.finished_at is not None
    assert read_balances(database, payer) == (FUNDS_CENTS - 1_000 - (2**paid - 1), 1_000)
    assert read_progress(database, other) == (BatchStatus.QUEUED, 0, 0)


def test_cancelling_twice_gives_back_once(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2))
    cancel(database, batch)
    with pytest.raises(PayoutBatchError, match=r"The payout batch is cancelled already\."):
        cancel(database, batch)
    assert read_balances(database, payer) == (FUNDS_CENTS, 0)


def test_what_is_completed_cannot_be_cancelled(database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(1, 2))
    pay_all(database, batch)
    with pytest.raises(PayoutBatchError, match=r"The payout batch is completed already\."):
        cancel(database, batch)
    assert read_balances(database, payer) == (FUNDS_CENTS - 3, 0)


def test_cancelling_at_once_gives_back_once(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(1, 2, 4))
    pay_chunk(database, batch, 0, 1)
    start = Barrier(THREADS)

    def try_to_cancel(_: int) -> bool:
        start.wait()
        try:
            cancel(database, batch)
        except PayoutBatchError:
            return False
        return True

    with ThreadPoolExecutor(THREADS) as threads:
        assert sum(threads.map(try_to_cancel, range(THREADS))) == 1
    assert read_balances(database, account) == (FUNDS_CENTS - 1, 0)


def test_cancelling_waits_for_the_chunk_that_is_under_way(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(1, 2, 4))
    with ThreadPoolExecutor() as threads:
        with database.pipeline() as connection:
            assert payment.pay_chunk(connection, account.business.id, batch.id, 0, 2).next_first == 2
            cancelled = threads.submit(cancel, database, batch)
            wait_until_blocked(database)
        assert cancelled.result().allocated_amount == 3
    assert read_balances(database, account) == (FUNDS_CENTS - 3, 0)


def test_a_chunk_that_waits_for_a_cancelling_pays_nothing(database: Database) -> None:
    account = open_account(database)
    batch = accept(database, account, make_rows(1, 2, 4))
    with ThreadPoolExecutor() as threads:
        with database.transaction() as connection:
            payment.cancel(connection, account.business.id, batch.id)
            position = threads.submit(pay_chunk, database, batch, 0, 2)
            wait_until_blocked(database)
        assert position.result() is None
    assert read_progress(database, batch) == (BatchStatus.CANCELLED, 0, 0)


def test_cancelling_and_the_last_chunk_at_once_are_one_or_the_other(database: Database) -> None:
    account = open_account(database)
    seen: Counter[BatchStatus] = Counter()
    start = Barrier(2)

    def cancel_or_not(batch: PayoutBatch) -> None:
        start.wait()
        with suppress(PayoutBatchError):
            cancel(database, batch)

    def pay(batch: PayoutBatch) -> None:
        start.wait()
        pay_all(database, batch, rows_max=2)

    with ThreadPoolExecutor(2) as threads:
        for _ in range(25):
            batch = accept(database, account, make_rows(1, 2, 4))
            free = read_business(database, account).payout_balance
            for work in [threads.submit(cancel_or_not, batch), threads.submit(pay, batch)]:
                work.result()
            status, _, allocated = read_progress(database, batch)
            seen[status] += 1
            assert allocated in ({7} if status is BatchStatus.COMPLETED else {0, 3})
            assert read_balances(database, account) == (free + 7 - allocated, 0)
    assert seen.keys() <= {BatchStatus.COMPLETED, BatchStatus.CANCELLED}


# What became of the rows


def test_rows_are_pending_then_allocated_or_cancelled(database: Database, payer: Account) -> None:
    rows = [BatchRow("a@example.com", 1, "x"), BatchRow("b@example.com", 2), BatchRow("a@example.com", 4, "y")]
    batch = accept(database, payer, rows)

    def read_outcomes() -> list[RowOutcome]:
        with database.transaction() as connection:
            found = reading.find_batch(connection, payer.business.id, batch.id)
            assert found is not None
            results = reading.list_results(connection, found, limit=10)
            assert [BatchRow(row.email, row.amount, row.reference) for row in results] == rows
            assert [row.position for row in results] == [0, 1, 2]
            assert reading.list_results(connection, found, limit=1, behind=0) == results[1:2]
            assert reading.list_results(connection, found, limit=9, behind=2) == []
        paid = {row.id: row.amount for row in read_history(database, payer.business.id)}
        allocated = [row for row in results if row.outcome is RowOutcome.ALLOCATED]
        assert {row.transaction_id: row.amount for row in allocated} == paid
        return [row.outcome for row in results]

    assert read_outcomes() == [RowOutcome.PENDING] * 3
    pay_chunk(database, batch, 0, 1)
    assert read_outcomes() == [RowOutcome.ALLOCATED, RowOutcome.PENDING, RowOutcome.PENDING]
    cancel(database, batch)
    assert read_outcomes() == [RowOutcome.ALLOCATED, RowOutcome.CANCELLED, RowOutcome.CANCELLED]


def test_batches_are_listed_newest_first_and_none_of_others(database: Database, payer: Account) -> None:
    accept(database, open_account(database), make_rows(1))
    batches = [accept(database, payer, make_rows(amount)) for amount in (1, 2, 3)]
    with database.transaction() as connection:
        listed = reading.list_batches(connection, payer.business.id, limit=10)
        assert listed == batches[::-1]
        assert reading.list_batches(connection, payer.business.id, limit=1, behind=listed[0].id) == [batches[1]]
        assert reading.list_batches(connection, payer.business.id, limit=9, behind=listed[2].id) == []
        assert reading.find_batch_anywhere(connection, batches[0].id) == batches[0]
        assert reading.find_batch_anywhere(connection, uuid4()) is None


# Finding what stands still


def test_only_unfinished_batches_that_nobody_works_on_are_found(database: Database, payer: Account) -> None:
    fresh, idle, begun, paid, cancelled = (accept(database, payer, make_rows(1, 2, 4)) for _ in range(5))
    pay_chunk(database, begun, 0, 2)
    pay_all(database, paid)
    cancel(database, cancelled)
    run_sql(
        database,
        "UPDATE payout_batches SET updated_at = now() - interval '1 hour' WHERE business_id = :id AND id <> :fresh",
        id=payer.business.id,
        fresh=fresh.id,
    )
    assert set(find_stalled(database, payer, idle_s=600)) == {(idle.id, 0), (begun.id, 2)}
    assert find_stalled(database, payer, idle_s=7_200.5) == []
    pay_chunk(database, begun, 2, 1)
    pay_chunk(database, idle, 0, 1)
    assert find_stalled(database, payer, idle_s=600) == []


def test_one_look_finds_batches_of_all_businesses(database: Database, payer: Account) -> None:
    other = open_account(database)
    batches = [accept(database, each, make_rows(1)) for each in (payer, other, payer)]
    assert {batch_id for batch_id, _ in find_stalled(database, payer, other)} == {batch.id for batch in batches}


# All at once


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_at_once_the_books_balance(database: Database, seed: int) -> None:
    """Threads accept, pay (also from stale rows, and dying), cancel, pay single calls, fund, disable and enable."""
    accounts = [open_account(database, funds_cents=2_000), open_account(database, funds_cents=2_000)]
    random = Random(seed)  # noqa: S311 (a fixed sequence)

    def pick_batch(random: Random) -> PayoutBatch | None:
        account = random.choice(accounts)
        with database.transaction() as connection:
            found = reading.list_batches(connection, account.business.id, limit=6)
        return random.choice(found) if found else None

    def submit(random: Random) -> None:
        rows = make_rows(*(random.randint(1, 60) for _ in range(random.randint(1, 25))), emails=5)
        key = random.choice([None, f"key {random.randint(0, 3)}"])
        try_to_accept(database, random.choice(accounts), rows, key)

    def pay(random: Random) -> None:
        batch = pick_batch(random)
        if batch is not None:
            first = max(0, batch.processed + random.choice([0, 0, 0, 0, -3, 3]))
            pay_chunk(database, batch, first, random.randint(1, 9))

    def die(random: Random) -> None:
        batch = pick_batch(random)
        if batch is not None:
            die_in_chunk(database, batch, batch.processed, 5)

    def give_up(random: Random) -> None:
        batch = pick_batch(random)
        if batch is not None:
            with suppress(PayoutBatchError):
                cancel(database, batch)

    def pay_one(random: Random) -> None:
        chosen = [random.choice(accounts) for _ in range(3)]
        allocate(
            database,
            *(allocation_of(each, f"{random.randint(0, 5)}@example.com", random.randint(1, 50)) for each in chosen),
        )

    def fund(random: Random) -> None:
        with database.transaction() as connection:
            fund_business(connection, random.choice(accounts).business.id, random.randint(1, 300))

    def switch(random: Random) -> None:
        switch_payouts(database, random.choice(accounts), enabled=random.random() < 0.8)

    def look(random: Random) -> None:
        assert_books_balance(database)

    acts: list[Callable[[Random], None]] = [
        *[pay] * 10,
        *[submit] * 5,
        *[pay_one] * 4,
        die,
        give_up,
        fund,
        switch,
        look,
    ]

    def work(seed: int) -> None:
        own = Random(seed)  # noqa: S311 (a fixed sequence)
        for _ in range(40):
            own.choice(acts)(own)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, [random.randrange(2**32) for _ in range(THREADS)]))

    assert_books_balance(database)
    for account in accounts:
        switch_payouts(database, account, enabled=True)
    with database.transaction() as connection:
        batches = [
            batch
            for account in accounts
            for batch in reading.list_batches(connection, account.business.id, limit=1_000)
        ]
    by_id = {batch.id: batch for batch in batches}
    for batch_id, first in find_stalled(database, *accounts):
        pay_all(database, by_id[batch_id], first, 7)
    assert find_stalled(database, *accounts) == []
    assert {read_batch(database, batch).finished_at is None for batch in batches} == {False}
    assert [read_business(database, account).reserved_balance for account in accounts] == [0, 0]


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
