"""Resolving, on a real PostgreSQL: what is said at the deadline is true for ever."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import redis
import sqlalchemy as sa

from api.allocations.database_clock import DatabaseClock
from api.allocations.resolver import Resolver
from api.allocations.waiting_list import Pending
from core import metrics
from core.database.connection import Database
from core.ids import IdKind, format_id, new_id
from core.in_doubt.files import RecordFiles
from core.in_doubt.records import InDoubt, RecordCodec
from core.ledger import statements
from core.messages import Allocation, Outcome
from tests.servers import HASH_SECRET, Account, open_account, verify_books
from workers.in_doubt import InDoubtRecords

SECRET = HASH_SECRET.encode()
WAIT_S = 20


@pytest.fixture
def impatient(database_url: str) -> Iterator[Database]:
    """The database as the resolver sees it: its transactions end soon."""
    with Database(database_url, transaction_timeout_s=0.2) as opened:
        yield opened


def count(name: str, **labels: str) -> float:
    metrics.count_what_was_noted()
    return metrics.API.get_sample_value(name, labels) or 0


def ask(account: Account, clock: DatabaseClock, *, deadline_in_s: float, amount: int = 7) -> Allocation:
    deadline_us = clock.now_us() + round(deadline_in_s * 1_000_000)
    return Allocation(new_id(), account.business.id, account.api_key_id, "user@example.com", amount, deadline_us)


def allocate(database: Database, *allocations: Allocation) -> list[Outcome]:
    with database.transaction() as connection:
        return statements.allocate(connection, SECRET, allocations)


def read_types(database: Database) -> list[str]:
    """Return the types in the history of all businesses, without fundings."""
    with database.transaction() as connection:
        query = sa.text("SELECT type FROM payout_transactions WHERE type <> 'funding' ORDER BY id")
        return list(connection.execute(query).scalars())


def make_clock(database: Database) -> DatabaseClock:
    clock = DatabaseClock(database)
    clock.measure()
    return clock


def pend(allocation: Allocation) -> Pending:
    loop = asyncio.get_running_loop()
    remaining_s = (allocation.deadline_us - time.time_ns() // 1000) / 1_000_000
    return Pending(allocation, loop.create_future(), loop.time() + remaining_s)


@contextmanager
def uncommitted(database: Database, allocation: Allocation) -> Iterator[threading.Event]:
    """Have a worker in the middle of an allocation: all written, and committed when the event is set."""
    written, finish = threading.Event(), threading.Event()

    def work() -> None:
        with database.transaction() as connection:
            assert statements.allocate(connection, SECRET, [allocation]) == [Outcome.ALLOCATED]
            written.set()
            finish.wait(WAIT_S)

    thread = threading.Thread(target=work)
    thread.start()
    assert written.wait(WAIT_S)
    try:
        yield finish
    finally:
        finish.set()
        thread.join()


def test_each_is_answered_from_the_history(database: Database, records: InDoubtRecords) -> None:
    account, clock = open_account(database), make_clock(database)
    committed, never, refused = (ask(account, clock, deadline_in_s=0.2) for _ in range(3))
    assert allocate(database, committed) == [Outcome.ALLOCATED]

    async def run() -> None:
        due = [pend(committed), pend(never), pend(refused)]
        due[2].refusal = Outcome.INSUFFICIENT_BALANCE
        await asyncio.wait_for(Resolver(database, records, timeout_s=WAIT_S).resolve(due), WAIT_S)
        outcomes = [pending.outcome.result() for pending in due]
        assert outcomes == [Outcome.ALLOCATED, Outcome.EXPIRED, Outcome.INSUFFICIENT_BALANCE]

    asyncio.run(run())
    assert read_types(database) == ["allocation"]


def test_refusal_of_one_copy_gives_way_to_a_copy_that_paid(database: Database, records: InDoubtRecords) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=0.2)
    assert allocate(database, allocation) == [Outcome.ALLOCATED]

    async def run() -> None:
        pending = pend(allocation)
        pending.refusal = Outcome.PAYOUTS_DISABLED
        await asyncio.wait_for(Resolver(database, records, timeout_s=WAIT_S).resolve([pending]), WAIT_S)
        assert pending.outcome.result() is Outcome.ALLOCATED

    asyncio.run(run())


def test_nobody_is_answered_expired_before_the_deadline(database: Database, records: InDoubtRecords) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=0.5)

    async def run() -> None:
        pending = pend(allocation)
        await asyncio.wait_for(Resolver(database, records, timeout_s=WAIT_S).resolve([pending]), WAIT_S)
        assert pending.outcome.result() is Outcome.EXPIRED

    asyncio.run(run())
    assert time.time_ns() // 1000 > allocation.deadline_us
    assert allocate(database, allocation) == [Outcome.EXPIRED]


def test_clock_that_is_ahead_answers_nothing_too_early(database: Database, records: InDoubtRecords) -> None:
    account = open_account(database)
    ahead = DatabaseClock(database)
    ahead._offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000 + 500_000
    allocation = ask(account, ahead, deadline_in_s=0)

    async def run() -> None:
        pending = pend(allocation)
        pending.due_at = asyncio.get_running_loop().time()
        await asyncio.wait_for(Resolver(database, records, timeout_s=WAIT_S).resolve([pending]), WAIT_S)
        assert pending.outcome.result() is Outcome.EXPIRED

    asyncio.run(run())
    assert allocate(database, allocation) == [Outcome.EXPIRED]


def test_a_worker_in_the_middle_is_waited_for(database: Database, records: InDoubtRecords) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=0.3)

    async def run() -> None:
        pending = pend(allocation)
        with uncommitted(database, allocation) as finish:
            resolving = asyncio.create_task(Resolver(database, records, timeout_s=WAIT_S).resolve([pending]))
            await asyncio.sleep(0.6)
            assert not pending.outcome.done()
            finish.set()
            await asyncio.wait_for(resolving, WAIT_S)
        assert pending.outcome.result() is Outcome.ALLOCATED

    asyncio.run(run())
    assert verify_books(database).balanced


def test_what_was_answered_failed_but_is_committed_is_reversed(
    database: Database, records: InDoubtRecords, impatient: Database, caplog: pytest.LogCaptureFixture
) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=0.3)
    reversals = count("payouts_reversals_total")
    resolves = {
        result: count("payouts_resolutions_total", result=result) for result in ("committed", "never", "unknown")
    }

    async def run() -> None:
        pending = pend(allocation)
        with uncommitted(database, allocation) as finish:
            resolving = asyncio.create_task(Resolver(impatient, records, timeout_s=0.3).resolve([pending]))
            assert await asyncio.wait_for(pending.outcome, WAIT_S) is Outcome.FAILED
            assert count("payouts_resolutions_total", result="unknown") == resolves["unknown"] + 1
            finish.set()
            await asyncio.wait_for(resolving, WAIT_S)

    asyncio.run(run())
    assert read_types(database) == ["allocation", "reversal"]
    assert verify_books(database).balanced
    assert [record.levelname for record in caplog.records if "it is reversed" in record.message] == ["ERROR"]
    assert "example.com" not in caplog.text
    assert count("payouts_reversals_total") == reversals + 1
    assert count("payouts_resolutions_total", result="committed") == resolves["committed"] + 1
    assert count("payouts_resolutions_total", result="never") == resolves["never"]


def test_what_is_answered_failed_is_recorded_before_and_forgotten_when_it_is_resolved(
    database: Database, records: InDoubtRecords, impatient: Database
) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=0.3)

    async def run() -> None:
        pending = pend(allocation)
        told: list[list[UUID]] = []
        pending.outcome.add_done_callback(lambda _: told.append([record.id for record in records.read()]))
        with uncommitted(database, allocation) as finish:
            resolver = Resolver(impatient, records, timeout_s=0.3)
            resolving = asyncio.create_task(resolver.resolve([pending]))
            assert await asyncio.wait_for(pending.outcome, WAIT_S) is Outcome.FAILED
            await asyncio.sleep(0)
            assert told == [[allocation.id]]
            finish.set()
            await asyncio.wait_for(resolving, WAIT_S)
        assert records.read() == []
        assert resolver.given_up == 0

    asyncio.run(run())


def test_what_comes_while_a_500_is_being_recorded_does_not_change_it(
    database: Database, records: InDoubtRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=0)
    begun, go_on = threading.Event(), threading.Event()
    add = records.files.add

    def add_slowly(new: Sequence[InDoubt]) -> None:
        begun.set()
        assert go_on.wait(WAIT_S)
        add(new)

    monkeypatch.setattr(records.files, "add", add_slowly)  # a slow disk

    async def run() -> None:
        pending = pend(allocation)
        caller = pending.outcome
        resolver = Resolver(database, records, timeout_s=WAIT_S)
        resolver._give_up(pending)
        assert await asyncio.to_thread(begun.wait, WAIT_S)
        pending.answer(Outcome.ALLOCATED)  # a reply of a worker, say
        assert not caller.done()
        go_on.set()
        assert await asyncio.wait_for(caller, WAIT_S) is Outcome.FAILED
        await resolver.close()

    asyncio.run(run())
    assert [record.id for record in records.read()] == [allocation.id]


def test_every_call_that_is_left_in_doubt_is_named_in_the_log(
    database: Database, records: InDoubtRecords, caplog: pytest.LogCaptureFixture
) -> None:
    account, clock = open_account(database), make_clock(database)
    allocations = [ask(account, clock, deadline_in_s=0) for _ in range(50)]

    async def run() -> None:
        resolver = Resolver(database, records, timeout_s=WAIT_S)
        for allocation in allocations:
            resolver._give_up(pend(allocation))
        await resolver.close()

    asyncio.run(run())
    ids = {format_id(IdKind.TRANSACTION, allocation.id) for allocation in allocations}
    for text in ("before they are resolved", "left in doubt"):
        lines = [record for record in caplog.records if text in record.message]
        named = [name for line in lines for name in getattr(line, "fields")["allocation_ids"]]  # noqa: B009
        assert set(named) == ids
        assert all(getattr(line, "always") for line in lines), "lines that are alike are left out"  # noqa: B009


def test_neither_redis_nor_folder_keeps_nobody_waiting(
    database: Database, records: InDoubtRecords, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=0)
    (tmp_path / "state").write_text("no folder")
    codec = RecordCodec(SECRET)
    nowhere = InDoubtRecords(redis.Redis(port=1), RecordFiles(tmp_path / "state", codec), codec)

    async def run() -> None:
        pending = pend(allocation)
        caller = pending.outcome
        resolver = Resolver(database, nowhere, timeout_s=WAIT_S)
        resolver._give_up(pending)
        assert await asyncio.wait_for(caller, WAIT_S) is Outcome.FAILED
        await resolver.close()

    asyncio.run(run())
    assert "cannot be recorded outside this process" in caplog.text


def test_caller_that_the_server_lets_go_is_recorded_first(database: Database, records: InDoubtRecords) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=60)

    async def run() -> None:
        pending = pend(allocation)
        pending.outcome.cancel()
        resolver = Resolver(database, records, timeout_s=WAIT_S)
        await asyncio.wait_for(resolver.record(pending), WAIT_S)
        assert [record.id for record in records.read()] == [allocation.id]
        await resolver.close()

    asyncio.run(run())


def test_clock_that_was_set_back_delays_no_answer_and_nothing_is_paid_later(
    database: Database, records: InDoubtRecords
) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=60)  # as the database's clock then says

    async def run() -> None:
        pending = pend(allocation)
        pending.due_at = asyncio.get_running_loop().time()
        await asyncio.wait_for(Resolver(database, records, timeout_s=WAIT_S).resolve([pending]), WAIT_S)
        assert pending.outcome.result() is Outcome.EXPIRED

    asyncio.run(run())
    assert allocate(database, allocation) == [Outcome.EXPIRED]


def test_what_was_answered_failed_and_is_not_committed_stays_so(
    database: Database, records: InDoubtRecords, impatient: Database
) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=0.1)

    async def run() -> None:
        pending = pend(allocation)
        with database.transaction() as connection:
            connection.execute(sa.text("SELECT FROM businesses WHERE id = :id FOR UPDATE"), {"id": account.business.id})
            resolving = asyncio.create_task(Resolver(impatient, records, timeout_s=0.3).resolve([pending]))
            assert await asyncio.wait_for(pending.outcome, WAIT_S) is Outcome.FAILED
        await asyncio.wait_for(resolving, WAIT_S)
        assert pending.outcome.result() is Outcome.FAILED

    asyncio.run(run())
    assert allocate(database, allocation) == [Outcome.EXPIRED]
    assert read_types(database) == []


def test_database_that_comes_back_in_time_answers_as_if_nothing_had_been(
    database: Database, records: InDoubtRecords, impatient: Database
) -> None:
    account, clock = open_account(database), make_clock(database)
    allocation = ask(account, clock, deadline_in_s=0.3)

    async def run() -> None:
        pending = pend(allocation)
        with uncommitted(database, allocation) as finish:
            resolving = asyncio.create_task(Resolver(impatient, records, timeout_s=WAIT_S).resolve([pending]))
            await asyncio.sleep(0.8)  # several attempts end at their time limit
            assert not pending.outcome.done()
            finish.set()
            await asyncio.wait_for(resolving, WAIT_S)
        assert pending.outcome.result() is Outcome.ALLOCATED

    asyncio.run(run())
    assert read_types(database) == ["allocation"]


def test_a_caller_who_has_gone_keeps_nothing_from_resolving(database: Database, records: InDoubtRecords) -> None:
    account, clock = open_account(database), make_clock(database)
    gone, stays = (ask(account, clock, deadline_in_s=0.2) for _ in range(2))
    assert allocate(database, gone, stays) == [Outcome.ALLOCATED] * 2

    async def run() -> None:
        due = [pend(gone), pend(stays)]
        due[0].outcome.cancel()
        await asyncio.wait_for(Resolver(database, records, timeout_s=WAIT_S).resolve(due), WAIT_S)
        assert due[1].outcome.result() is Outcome.ALLOCATED

    asyncio.run(run())
    assert read_types(database) == ["allocation"] * 2


def test_each_is_answered_at_its_own_deadline(database: Database, records: InDoubtRecords) -> None:
    account, clock = open_account(database), make_clock(database)
    first, last = (ask(account, clock, deadline_in_s=seconds) for seconds in (0.1, 3))

    async def run() -> None:
        due = [pend(last), pend(first)]
        resolving = asyncio.create_task(Resolver(database, records, timeout_s=WAIT_S).resolve(due))
        assert await asyncio.wait_for(due[1].outcome, WAIT_S) is Outcome.EXPIRED
        assert not due[0].outcome.done()
        assert await asyncio.wait_for(due[0].outcome, WAIT_S) is Outcome.EXPIRED
        await resolving

    asyncio.run(run())
