"""The dispatcher on real servers where no worker consumes: the tests are the worker, or are not there."""

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from api.allocations.database_clock import DatabaseClock
from api.allocations.dispatcher import Dispatcher
from api.allocations.publisher import Publisher, make_instance_prefix
from api.allocations.replies import Replies
from api.allocations.resolver import Resolver
from api.local.ports import find_free_port
from api.local.valkey import EmbeddedValkey
from api.web.errors import TooManyWaitingError
from core.database.connection import Database
from core.ids import new_id
from core.messages import Allocation, GroupCodec, Outcome, Reply
from core.parties import businesses
from core.settings.loader import Settings
from tests.servers import HASH_SECRET, Account, open_account, run_valkey, verify_books
from workers.app import QUEUE, create_celery
from workers.in_doubt import open_records
from workers.locks import BusinessLocks
from workers.patience import Patience
from workers.tasks.allocations import GroupProcessor

# Celery calls what redis-py would rather have it call otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

CODEC = GroupCodec(HASH_SECRET.encode())
STATE_DIR = TemporaryDirectory(prefix="payouts-state-")
WAIT_S = 20


@dataclass
class Task:
    """A group as it was found on the queue."""

    id: str
    allocations: list[Allocation]


class Worker:
    """Takes groups off the real queue, when a test says so, and replies, when a test says so."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._redis = Redis.from_url(settings.redis_url, socket_timeout=2 * WAIT_S)
        self._celery: Celery = create_celery(settings)
        locks = BusinessLocks(self._redis, ttl_s=settings.lock_ttl_s, wait_s=settings.lock_wait_s)
        self._processor = GroupProcessor(database, locks, HASH_SECRET.encode(), Patience(settings.held_row_wait_s))

    async def take(self) -> Task:
        """Wait for a group."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + WAIT_S
        while loop.time() < give_up_at:
            # Briefly: a thread that waits for Redis holds up the end of a test that needs no more groups.
            popped = await asyncio.to_thread(self._redis.brpop, [QUEUE], 0.1)
            if popped is not None:
                return self._open(popped[1])
        raise TimeoutError

    def take_all(self) -> list[Task]:
        messages = self._redis.lrange(QUEUE, 0, -1)
        self._redis.delete(QUEUE)
        return [self._open(message) for message in messages]

    async def process(self, task: Task) -> list[Outcome]:
        return (await self.carry_out(task)).outcomes

    async def carry_out(self, task: Task) -> Reply:
        return await asyncio.to_thread(self._processor.process, task.allocations)

    async def reply(self, task: Task, outcomes: list[Outcome], *, untouched: Sequence[int] = ()) -> None:
        sealed = CODEC.seal_reply(Reply(outcomes, list(untouched)), task.id)
        await self.store_result(task, sealed)

    async def store_result(self, task: Task, result: object) -> None:
        """Answer as anybody may who can write to Redis."""
        await asyncio.to_thread(self._celery.backend.store_result, task.id, result, "SUCCESS")

    async def serve(self) -> None:
        """Be a good worker for ever."""
        while True:
            task = await self.take()
            reply = await self.carry_out(task)
            await self.reply(task, reply.outcomes, untouched=reply.untouched)

    def _open(self, message: bytes | str) -> Task:
        envelope = json.loads(message)
        args, _, _ = json.loads(base64.b64decode(envelope["body"]))
        task_id = envelope["headers"]["id"]
        return Task(task_id, CODEC.open(args[0], task_id).allocations)

    def close(self) -> None:
        self._redis.close()
        self._celery.close()


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with run_valkey() as running:
        yield running


@pytest.fixture
def settings(valkey: EmbeddedValkey, database_url: str) -> Settings:
    return make_settings(valkey.url, valkey.url, database_url)


def make_settings(redis_url: str, broker_url: str, database_url: str, **others: Any) -> Settings:
    values: dict[str, Any] = {"resend_after_s": 0.2, "reply_timeout_s": 1.0, "resolve_timeout_s": 5.0} | others
    values.setdefault("state_dir", STATE_DIR.name)
    return Settings(
        redis_url=redis_url, broker_url=broker_url, database_url=database_url, hash_secret=HASH_SECRET, **values
    )


@pytest.fixture
def worker(settings: Settings, database: Database) -> Iterator[Worker]:
    opened = Worker(settings, database)
    opened.take_all()
    yield opened
    opened.close()


@asynccontextmanager
async def dispatching(settings: Settings, database: Database) -> AsyncIterator[Dispatcher]:
    """Wire a dispatcher as the application does."""
    clock = DatabaseClock(database)
    prefix = make_instance_prefix()
    publisher = Publisher(create_celery(settings), CODEC, prefix, threads=4)
    async with AsyncRedis.from_url(settings.redis_url) as client:
        replies = Replies(client, CODEC, prefix)
        records = open_records(settings)
        resolver = Resolver(database, records, timeout_s=settings.resolve_timeout_s)
        dispatcher = Dispatcher(settings, clock, publisher, replies, resolver)
        await asyncio.to_thread(clock.measure)
        background = [asyncio.create_task(work) for work in (replies.listen(), dispatcher.sweep())]
        await asyncio.wait_for(replies.subscribed.wait(), WAIT_S)
        try:
            yield dispatcher
        finally:
            await dispatcher.close(WAIT_S)
            unfinished = set(background)
            while unfinished:  # as the application does: a library may swallow a cancellation
                for task in unfinished:
                    task.cancel()
                _, unfinished = await asyncio.wait(unfinished, timeout=0.2)
            await resolver.close()
            records.close()
            publisher.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work, 3 * WAIT_S)

    asyncio.run(bounded())


def ask(
    dispatcher: Dispatcher, account: Account, amount: int = 7, email: str = "user@example.com"
) -> asyncio.Task[Outcome]:
    """Have a caller wait for an allocation."""
    allocation = Allocation(new_id(), account.business.id, account.api_key_id, email, amount, dispatcher.deadline_us())
    return asyncio.create_task(dispatcher.allocate(allocation))


def balance_of(database: Database, account: Account) -> int:
    with database.transaction() as connection:
        return businesses.get_business(connection, account.business.id).payout_balance


def test_idle_dispatcher_sends_one_at_once(settings: Settings, database: Database, worker: Worker) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            call = ask(dispatcher, account)
            task = await worker.take()
            assert len(task.allocations) == 1
            await worker.reply(task, await worker.process(task))
            assert await call is Outcome.ALLOCATED

    account = open_account(database)
    run(work())
    assert balance_of(database, account) == 1_000_000 - 7


def test_those_who_come_while_a_group_is_under_way_are_the_next_two_groups(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            first = ask(dispatcher, account)
            task = await worker.take()
            others = [ask(dispatcher, account, email=f"u{number}@example.com") for number in range(10)]
            await asyncio.sleep(0)
            await worker.reply(task, await worker.process(task))
            assert await first is Outcome.ALLOCATED
            task = await worker.take()
            while len(task.allocations) == 1:  # a copy of the first, where this machine was slow
                task = await worker.take()
            assert len(task.allocations) == 6  # half of those who call, and one: the others prepare meanwhile
            serving = asyncio.create_task(worker.serve())
            await worker.reply(task, await worker.process(task))
            assert await asyncio.gather(*others) == [Outcome.ALLOCATED] * 10
            serving.cancel()

    account = open_account(database)
    settings = make_settings(settings.redis_url, settings.broker_url, settings.database_url, reply_timeout_s=6.0)
    run(work())
    assert verify_books(database).balanced


def test_callers_who_are_few_are_sent_soon_behind_a_group_without_answer(
    settings: Settings, database: Database, worker: Worker
) -> None:
    """Few wait for a group that is under way, to make a larger one; not for one that is stuck."""

    async def carry_out(task: Task) -> None:
        await worker.reply(task, await worker.process(task))

    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            calls = [ask(dispatcher, account) for account in accounts]
            one, another = await worker.take(), await worker.take()
            await carry_out(one)
            stuck = await worker.take()
            assert len(stuck.allocations) > 3
            await carry_out(another)
            await carry_out(await worker.take())
            for _ in range(6):  # each soon after the one before
                call = ask(dispatcher, quiet)
                task = await worker.take()
                assert [each.business_id for each in task.allocations] == [quiet.business.id]
                await carry_out(task)
                assert await call is Outcome.ALLOCATED
            await carry_out(stuck)
            assert await asyncio.gather(*calls) == [Outcome.ALLOCATED] * len(calls)

    accounts = [open_account(database) for _ in range(10)]
    quiet = open_account(database)
    settings = make_settings(
        settings.redis_url, settings.broker_url, settings.database_url, resend_after_s=20.0, reply_timeout_s=30.0
    )
    run(work())
    assert verify_books(database).balanced


def test_many_callers_over_many_businesses_are_all_paid(settings: Settings, database: Database, worker: Worker) -> None:
    settings = make_settings(
        settings.redis_url, settings.broker_url, settings.database_url, reply_timeout_s=15.0, group_max=7
    )

    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            serving = asyncio.create_task(worker.serve())
            calls = [ask(dispatcher, account, 1, f"u{n % 5}@example.com") for n in range(30) for account in accounts]
            assert await asyncio.gather(*calls) == [Outcome.ALLOCATED] * len(calls)
            serving.cancel()

    accounts = [open_account(database) for _ in range(4)]
    run(work())
    assert {balance_of(database, account) for account in accounts} == {1_000_000 - 30}
    assert verify_books(database).balanced


def test_without_a_worker_the_outcome_is_expired_and_nothing_is_ever_paid(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            calls = [ask(dispatcher, account) for account in accounts]
            assert await asyncio.gather(*calls) == [Outcome.EXPIRED] * 3

        tasks = worker.take_all()
        assert len(tasks) > 3  # resent
        assert len({task.id for task in tasks}) == len(tasks)
        assert len({allocation.id for task in tasks for allocation in task.allocations}) == 3
        for task in tasks:
            assert await worker.process(task) == [Outcome.EXPIRED] * len(task.allocations)

    accounts = [open_account(database) for _ in range(3)]
    run(work())
    assert {balance_of(database, account) for account in accounts} == {1_000_000}
    assert verify_books(database).payout_users == 0


def test_without_a_broker_the_outcome_is_expired(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = f"redis://127.0.0.1:{find_free_port()}/0"

    async def work() -> None:
        async with dispatching(
            make_settings(settings.redis_url, nowhere, settings.database_url), database
        ) as dispatcher:
            assert await ask(dispatcher, account) is Outcome.EXPIRED

    account = open_account(database)
    run(work())
    assert balance_of(database, account) == 1_000_000
    assert "a group of 1 may not have been sent" in caplog.text
    assert "example.com" not in caplog.text


def test_broker_that_hangs_keeps_nobody_past_the_deadline(settings: Settings, database: Database) -> None:
    async def work(port: int) -> None:
        hanging = make_settings(settings.redis_url, f"redis://127.0.0.1:{port}/0", settings.database_url)
        async with dispatching(hanging, database) as dispatcher:
            calls = [ask(dispatcher, account) for _ in range(3)]
            assert await asyncio.gather(*calls) == [Outcome.EXPIRED] * 3

    account = open_account(database)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # takes connections, and never says a word
        run(work(listening.getsockname()[1]))
    assert balance_of(database, account) == 1_000_000


def test_lost_reply_is_found_by_resolving(settings: Settings, database: Database, worker: Worker) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            call = ask(dispatcher, account)
            assert await worker.process(await worker.take()) == [Outcome.ALLOCATED]
            assert await call is Outcome.ALLOCATED

        for task in worker.take_all():
            assert await worker.process(task) == [Outcome.ALLOCATED]

    account = open_account(database)
    run(work())
    assert balance_of(database, account) == 1_000_000 - 7
    assert verify_books(database).balanced


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [([], "SUCCESS"), ([Outcome.ALLOCATED] * 2, "SUCCESS"), ([Outcome.FAILED], "SUCCESS"), ([], "FAILURE")],
)
def test_reply_that_decides_nothing_is_tried_again(
    settings: Settings, database: Database, worker: Worker, outcomes: list[Outcome], state: str
) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            call = ask(dispatcher, account)
            task = await worker.take()
            if state == "FAILURE":
                worker._celery.backend.mark_as_failure(task.id, RuntimeError("the worker was killed"))
            else:
                await worker.reply(task, outcomes)
            again = await worker.take()
            assert again.id != task.id
            assert again.allocations == task.allocations
            await worker.reply(again, await worker.process(again))
            assert await call is Outcome.ALLOCATED

    account = open_account(database)
    settings = make_settings(settings.redis_url, settings.broker_url, settings.database_url, reply_timeout_s=6.0)
    run(work())
    assert balance_of(database, account) == 1_000_000 - 7


@pytest.mark.parametrize("refusal", [Outcome.INSUFFICIENT_BALANCE, Outcome.PAYOUTS_DISABLED, Outcome.UNAUTHORIZED])
def test_refusal_of_the_only_copy_is_answered_at_once(
    settings: Settings, database: Database, worker: Worker, refusal: Outcome
) -> None:
    settings = make_settings(
        settings.redis_url, settings.broker_url, settings.database_url, resend_after_s=30, reply_timeout_s=60
    )

    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            call = ask(dispatcher, account)
            await worker.reply(await worker.take(), [refusal])
            assert await asyncio.wait_for(call, WAIT_S) is refusal

    account = open_account(database)
    run(work())


def test_refusal_of_one_of_two_copies_gives_way_to_the_copy_that_pays(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            call = ask(dispatcher, account)
            first, second = await worker.take(), await worker.take()
            assert await worker.process(first) == [Outcome.INSUFFICIENT_BALANCE]
            await worker.reply(first, [Outcome.INSUFFICIENT_BALANCE])
            with database.transaction() as connection:
                businesses.fund_business(connection, account.business.id, 7)
            assert await worker.process(second) == [Outcome.ALLOCATED]
            assert await call is Outcome.ALLOCATED

    account = open_account(database, funds_cents=0)
    settings = make_settings(settings.redis_url, settings.broker_url, settings.database_url, reply_timeout_s=3.0)
    run(work())
    assert balance_of(database, account) == 0
    assert verify_books(database).balanced


def test_refusal_of_every_copy_is_answered_at_the_deadline(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            call = ask(dispatcher, account)
            for task in (await worker.take(), await worker.take()):
                await worker.reply(task, await worker.process(task))
            assert await call is Outcome.INSUFFICIENT_BALANCE
            with database.transaction() as connection:
                businesses.fund_business(connection, account.business.id, 7)
            for task in worker.take_all():
                assert await worker.process(task) == [Outcome.EXPIRED]

    account = open_account(database, funds_cents=0)
    run(work())
    assert balance_of(database, account) == 7


def test_one_too_many_is_refused_and_never_sent(settings: Settings, database: Database, worker: Worker) -> None:
    settings = make_settings(settings.redis_url, settings.broker_url, settings.database_url, waiting_max=2)

    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            waiting = [ask(dispatcher, account) for _ in range(2)]
            refused = [ask(dispatcher, account, 99) for _ in range(3)]
            for call in refused:
                with pytest.raises(TooManyWaitingError):
                    await call
            assert await asyncio.gather(*waiting) == [Outcome.EXPIRED] * 2
            again = ask(dispatcher, account)  # those who were answered have made room
            assert await again is Outcome.EXPIRED
        amounts = {allocation.amount_cents for task in worker.take_all() for allocation in task.allocations}
        assert amounts == {7}

    account = open_account(database)
    run(work())


def test_a_caller_who_goes_makes_room(settings: Settings, database: Database, worker: Worker) -> None:
    settings = make_settings(settings.redis_url, settings.broker_url, settings.database_url, waiting_max=1)

    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            gone = ask(dispatcher, account)
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            assert await ask(dispatcher, account) is Outcome.EXPIRED

    account = open_account(database)
    run(work())


def test_those_who_wait_behind_a_group_without_answer_expire_unsent(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            first = ask(dispatcher, account, 7)
            await asyncio.sleep(0.1)
            second = ask(dispatcher, account, 8)
            assert [await first, await second] == [Outcome.EXPIRED] * 2
        for task in worker.take_all():
            assert await worker.process(task) == [Outcome.EXPIRED] * len(task.allocations)

    account = open_account(database)
    run(work())
    assert balance_of(database, account) == 1_000_000


def test_probe_tells_whether_a_worker_is_there(settings: Settings, database: Database, worker: Worker) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            before_s = dispatcher.round_trip_age_s
            assert not await dispatcher.probe(0.1)
            assert dispatcher.round_trip_age_s > before_s + 0.05
            worker.take_all()
            serving = asyncio.create_task(worker.serve())
            until_now_s = dispatcher.round_trip_age_s
            assert await dispatcher.probe(WAIT_S)
            assert dispatcher.round_trip_age_s < until_now_s
            serving.cancel()

    run(work())


def test_what_a_stopping_server_answers_500_for_is_taken_back(
    settings: Settings, database: Database, worker: Worker
) -> None:
    """A server out of patience cancels its handlers and answers 500 in their place."""

    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            call = ask(dispatcher, account)
            task = await worker.take()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await worker.process(task) == [Outcome.ALLOCATED]
            await worker.reply(task, [Outcome.ALLOCATED])

    account = open_account(database)
    run(work())
    assert balance_of(database, account) == 1_000_000
    assert verify_books(database).balanced


def test_caller_who_has_gone_before_anything_was_sent_is_not_paid(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            first, gone = ask(dispatcher, account), ask(dispatcher, account, email="gone@example.com")
            task = await worker.take()
            assert len(task.allocations) == 1
            gone.cancel()
            await worker.reply(task, await worker.process(task))
            assert await first is Outcome.ALLOCATED
            serving = asyncio.create_task(worker.serve())
            assert await ask(dispatcher, account, 5) is Outcome.ALLOCATED
            serving.cancel()

    account = open_account(database)
    run(work())
    assert balance_of(database, account) == 1_000_000 - 12


def test_message_that_the_worker_dropped_is_no_proof_of_a_worker(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            before_s = dispatcher.round_trip_age_s
            probe = asyncio.create_task(dispatcher.probe(WAIT_S))
            await worker.store_result(await worker.take(), None)
            assert not await probe
            assert dispatcher.round_trip_age_s >= before_s

    run(work())


# One business keeps no other waiting.


def make_patient(settings: Settings, **others: Any) -> Settings:
    """Return settings with which nothing is sent again for want of a reply."""
    patience = {"resend_after_s": 30.0, "reply_timeout_s": 60.0} | others
    return make_settings(settings.redis_url, settings.broker_url, settings.database_url, **patience)


def test_business_whose_calls_are_answered_goes_on_while_others_of_its_group_are_held_up(
    settings: Settings, database: Database, worker: Worker
) -> None:
    """What is held up is tried again by itself, and takes no place of the tasks under way."""

    async def work() -> None:
        async with dispatching(make_patient(settings, in_flight_max=1), database) as dispatcher:
            stuck = ask(dispatcher, held)
            task = await worker.take()
            others = [ask(dispatcher, free) for _ in range(5)]
            await worker.reply(task, [Outcome.FAILED], untouched=[0])
            paid = 0
            while paid < 5:
                task = await worker.take()
                is_held = [each.business_id == held.business.id for each in task.allocations]
                outcomes = [Outcome.FAILED if each else Outcome.ALLOCATED for each in is_held]
                await worker.reply(task, outcomes, untouched=[n for n, each in enumerate(is_held) if each])
                paid += outcomes.count(Outcome.ALLOCATED)
            assert await asyncio.gather(*others) == [Outcome.ALLOCATED] * 5
            assert not stuck.done()
            while not stuck.done():
                task = await worker.take()
                await worker.reply(task, await worker.process(task))
                await asyncio.sleep(0.1)
            assert stuck.result() is Outcome.ALLOCATED

    held, free = open_account(database), open_account(database)
    run(work())


def test_business_is_released_as_soon_as_its_own_calls_are_answered(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            blockers = [ask(dispatcher, account) for account in others]
            tasks = [await worker.take() for _ in others]
            calls = [ask(dispatcher, unknown), ask(dispatcher, free)]
            await asyncio.sleep(0)
            await worker.reply(tasks[0], await worker.process(tasks[0]))
            group = await worker.take()
            assert [each.business_id for each in group.allocations] == [unknown.business.id, free.business.id]
            # Nobody knows what became of the one; the call of the other is answered.
            await worker.reply(group, [Outcome.FAILED, Outcome.ALLOCATED])
            assert await calls[1] is Outcome.ALLOCATED
            await worker.reply(tasks[1], await worker.process(tasks[1]))
            assert await asyncio.gather(*blockers) == [Outcome.ALLOCATED] * 2
            later = ask(dispatcher, free)
            task = await worker.take()
            assert [each.business_id for each in task.allocations] == [free.business.id]
            await worker.reply(task, await worker.process(task))
            assert await later is Outcome.ALLOCATED
            assert not calls[0].done()
            again = await worker.take()  # in the end, for want of an answer
            await worker.reply(again, await worker.process(again))
            assert await calls[0] is Outcome.ALLOCATED

    unknown, free, *others = (open_account(database) for _ in range(4))
    settings = make_settings(
        settings.redis_url, settings.broker_url, settings.database_url, resend_after_s=3.0, reply_timeout_s=15.0
    )
    run(work())


def test_refusal_is_certain_where_every_earlier_copy_did_nothing(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(make_patient(settings), database) as dispatcher:
            call = ask(dispatcher, account)
            for _ in range(3):
                await worker.reply(await worker.take(), [Outcome.FAILED], untouched=[0])
            await worker.reply(await worker.take(), [Outcome.INSUFFICIENT_BALANCE])
            assert await asyncio.wait_for(call, WAIT_S) is Outcome.INSUFFICIENT_BALANCE

    account = open_account(database)
    run(work())


def test_refusal_is_not_certain_where_an_earlier_copy_may_have_done_something(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(patient, database) as dispatcher:
            call = ask(dispatcher, account)
            late = await worker.take()  # sent again, for want of a reply
            await worker.reply(await worker.take(), [Outcome.FAILED], untouched=[0])
            await worker.reply(await worker.take(), [Outcome.INSUFFICIENT_BALANCE])
            await asyncio.sleep(0.3)
            assert not call.done()
            assert await worker.process(late) == [Outcome.ALLOCATED]
            assert await call is Outcome.ALLOCATED

    account = open_account(database)
    patient = make_settings(settings.redis_url, settings.broker_url, settings.database_url, reply_timeout_s=3.0)
    run(work())


def test_calls_of_a_business_that_is_held_up_leave_room_for_others(
    settings: Settings, database: Database, worker: Worker
) -> None:
    async def work() -> None:
        async with dispatching(make_patient(settings, waiting_max=40), database) as dispatcher:
            calls = [ask(dispatcher, held)]
            await worker.reply(await worker.take(), [Outcome.FAILED], untouched=[0])
            await asyncio.sleep(0.02)
            calls += [ask(dispatcher, held) for _ in range(30)]
            await asyncio.sleep(0.02)
            refused = [call for call in calls if call.done()]
            assert len(refused) == 20
            assert all(isinstance(call.exception(), TooManyWaitingError) for call in refused)
            other = ask(dispatcher, free)
            serving = asyncio.create_task(worker.serve())
            assert await other is Outcome.ALLOCATED
            assert set(await asyncio.gather(*(call for call in calls if call not in refused))) == {Outcome.ALLOCATED}
            assert await ask(dispatcher, held) is Outcome.ALLOCATED
            serving.cancel()

    held, free = open_account(database), open_account(database)
    run(work())


@pytest.mark.parametrize("forged", [["allocated"], ["expired"], ["insufficient_balance"], "copied"])
def test_forged_reply_tells_no_caller_what_is_not_so(
    settings: Settings, database: Database, worker: Worker, forged: object
) -> None:
    """It is somebody with access to Redis; what the worker answers is told."""

    async def work() -> None:
        async with dispatching(make_patient(settings), database) as dispatcher:
            call = ask(dispatcher, account)
            task = await worker.take()
            copied = CODEC.seal_reply(Reply([Outcome.EXPIRED]), task.id[:-1])
            await worker.store_result(task, copied if forged == "copied" else forged)
            await asyncio.sleep(0.2)
            assert not call.done()
            await worker.reply(task, await worker.process(task))
            assert await call is Outcome.ALLOCATED

    account = open_account(database)
    run(work())
    assert balance_of(database, account) == 1_000_000 - 7


def test_worker_of_the_release_before_is_none_for_this_api(
    settings: Settings, database: Database, worker: Worker
) -> None:
    """It does not seal its replies, and workers are replaced first."""

    async def work() -> None:
        async with dispatching(settings, database) as dispatcher:
            probe = asyncio.create_task(dispatcher.probe(1.0))
            await worker.store_result(await worker.take(), [])
            assert not await probe

    run(work())
