"""Receiving replies: on the fake protocol, and from a real Valkey whose connections break."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fakeredis
import pytest
from redis.asyncio import Redis

from api.allocations.replies import Replies
from api.local.valkey import EmbeddedValkey
from core.messages import Outcome

PREFIX = "api-test-"
KEY = "celery-task-meta-" + PREFIX
WAIT_S = 10


def make_result(*outcomes: Outcome, status: str = "SUCCESS") -> str:
    return json.dumps({"status": status, "result": outcomes, "traceback": None, "children": [], "task_id": "x"})


async def send(client: Redis, name: str, result: str | bytes) -> None:
    """Do as Celery does: store, then publish."""
    await client.set(KEY + name, result)
    await client.publish(KEY + name, result)


@asynccontextmanager
async def listening(client: Redis) -> AsyncIterator[Replies]:
    replies = Replies(client, PREFIX)
    task = asyncio.create_task(replies.listen())
    try:
        await asyncio.wait_for(replies.subscribed.wait(), WAIT_S)
        yield replies
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def fake() -> AsyncIterator[tuple[Replies, Redis]]:
    async with fakeredis.FakeAsyncRedis() as client, listening(client) as replies:
        yield replies, client


def receive(result: str | bytes) -> list[Outcome] | None:
    """Return what a caller gets for a result."""

    async def run() -> list[Outcome] | None:
        async with fake() as (replies, client):
            future = replies.expect_later(PREFIX + "1")
            await send(client, "1", result)
            return await asyncio.wait_for(future, WAIT_S)

    return asyncio.run(run())


@asynccontextmanager
async def connect(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey.url, socket_timeout=0.5, socket_connect_timeout=0.5) as client:
        yield client


def test_outcomes_arrive_in_order() -> None:
    outcomes = list(Outcome)
    assert receive(make_result(*outcomes)) == outcomes


def test_empty_group_is_answered_with_nothing() -> None:
    assert receive(make_result()) == []


@pytest.mark.parametrize("status", ["FAILURE", "RETRY", "REVOKED", "STARTED", "PENDING"])
def test_task_that_did_not_succeed_is_none(status: str) -> None:
    assert receive(make_result(Outcome.ALLOCATED, status=status)) is None


@pytest.mark.parametrize(
    "result",
    [
        json.dumps({"status": "FAILURE", "result": {"exc_type": "WorkerLostError", "exc_message": ["x"]}}),
        make_result(Outcome.ALLOCATED).replace("allocated", "an outcome of a newer worker"),
        '{"status": "SUCCESS", "result": "allocated"}',
        '{"status": "SUCCESS", "result": [1]}',
        '{"status": "SUCCESS"}',
        '{"status": 5, "result": []}',
        '{"result": []}',
        "{}",
        "[]",
        "null",
        "not JSON",
        "",
        b"\x80\x04]\x94.",
        b'{"status": "SUCCESS", "result": ["\xff"]}',
        b'{"status": "SUCCESS", "result": "\\ud800"}',
        "[" * 5000,
        '{"status": "SUCCESS", "result": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_damaged_result_is_none(result: str | bytes) -> None:
    assert receive(result) is None


def test_damaged_result_does_not_end_the_listening() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            for name, result in (("1", b"\xff"), ("2", "[" * 5000), ("3", "{")):
                replies.expect_later(PREFIX + name)
                await send(client, name, result)
            future = replies.expect_later(PREFIX + "good")
            await send(client, "good", make_result(Outcome.ALLOCATED))
            assert await asyncio.wait_for(future, WAIT_S) == [Outcome.ALLOCATED]

    asyncio.run(run())


def test_each_waits_for_its_own() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            futures = [replies.expect_later(f"{PREFIX}{number}") for number in range(3)]
            for number, outcome in ((2, Outcome.EXPIRED), (0, Outcome.ALLOCATED), (1, Outcome.FAILED)):
                await send(client, str(number), make_result(outcome))
            found = await asyncio.wait_for(asyncio.gather(*futures), WAIT_S)
            assert found == [[Outcome.ALLOCATED], [Outcome.FAILED], [Outcome.EXPIRED]]

    asyncio.run(run())


def test_second_reply_to_the_same_task_is_ignored() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            future = replies.expect_later(PREFIX + "1")
            await send(client, "1", make_result(Outcome.ALLOCATED))
            assert await asyncio.wait_for(future, WAIT_S) == [Outcome.ALLOCATED]
            await send(client, "1", make_result(Outcome.EXPIRED))
            other = replies.expect_later(PREFIX + "2")
            await send(client, "2", make_result())
            await asyncio.wait_for(other, WAIT_S)
            assert future.result() == [Outcome.ALLOCATED]

    asyncio.run(run())


def test_forgotten_task_is_never_answered() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            forgotten, other = replies.expect_later(PREFIX + "1"), replies.expect_later(PREFIX + "2")
            replies.forget(PREFIX + "1")
            replies.forget(PREFIX + "never expected")
            await send(client, "1", make_result(Outcome.ALLOCATED))
            await send(client, "2", make_result(Outcome.ALLOCATED))
            await asyncio.wait_for(other, WAIT_S)
            assert not forgotten.done()

    asyncio.run(run())


def test_reply_to_someone_who_gave_up_does_no_harm() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            given_up, other = replies.expect_later(PREFIX + "1"), replies.expect_later(PREFIX + "2")
            given_up.cancel()
            await send(client, "1", make_result(Outcome.ALLOCATED))
            await send(client, "2", make_result(Outcome.ALLOCATED))
            assert await asyncio.wait_for(other, WAIT_S) == [Outcome.ALLOCATED]

    asyncio.run(run())


def test_reply_of_another_process_is_not_received() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            future, own = replies.expect_later("api-other-1"), replies.expect_later(PREFIX + "1")
            await client.publish("celery-task-meta-api-other-1", make_result(Outcome.ALLOCATED))
            await send(client, "1", make_result(Outcome.ALLOCATED))
            await asyncio.wait_for(own, WAIT_S)
            assert not future.done()

    asyncio.run(run())


def test_result_stored_before_the_subscription_is_fetched() -> None:
    async def run() -> None:
        async with fakeredis.FakeAsyncRedis() as client:
            replies = Replies(client, PREFIX)
            missed, open_ = replies.expect_later(PREFIX + "1"), replies.expect_later(PREFIX + "2")
            await send(client, "1", make_result(Outcome.ALLOCATED))
            task = asyncio.create_task(replies.listen())
            assert await asyncio.wait_for(missed, WAIT_S) == [Outcome.ALLOCATED]
            assert not open_.done()
            await send(client, "2", make_result(Outcome.EXPIRED))
            assert await asyncio.wait_for(open_, WAIT_S) == [Outcome.EXPIRED]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_lost_redis_is_tried_again_until_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        server = fakeredis.FakeServer()
        async with fakeredis.FakeAsyncRedis(server=server) as client, listening(client) as replies:
            future = replies.expect_later(PREFIX + "1")
            server.connected = False
            await wait_until_lost(replies)
            server.connected = True
            await client.set(KEY + "1", make_result(Outcome.ALLOCATED))
            assert await asyncio.wait_for(future, WAIT_S) == [Outcome.ALLOCATED]
            await asyncio.wait_for(replies.subscribed.wait(), WAIT_S)

    asyncio.run(run())
    assert [message for message in caplog.messages if "subscription was lost" in message]


def test_reply_arrives_from_a_real_valkey(valkey: EmbeddedValkey) -> None:
    async def run() -> None:
        async with connect(valkey) as client, listening(client) as replies:
            future = replies.expect_later(PREFIX + "1")
            await send(client, "1", make_result(Outcome.ALLOCATED))
            assert await asyncio.wait_for(future, WAIT_S) == [Outcome.ALLOCATED]

    asyncio.run(run())


def test_killed_connection_loses_no_reply(valkey: EmbeddedValkey) -> None:
    async def run() -> None:
        async with connect(valkey) as client, listening(client) as replies:
            for round_ in range(3):
                missed, later = (
                    replies.expect_later(f"{PREFIX}{round_}"),
                    replies.expect_later(f"{PREFIX}later-{round_}"),
                )
                async with client.pipeline(transaction=True) as pipeline:
                    # In one step, so that no subscriber can be there for the publishing.
                    pipeline.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                    pipeline.set(f"{KEY}{round_}", make_result(Outcome.ALLOCATED))
                    pipeline.publish(f"{KEY}{round_}", make_result(Outcome.ALLOCATED))
                    killed, _, received = await pipeline.execute()
                assert (killed, received) == (1, 0)
                assert await asyncio.wait_for(missed, WAIT_S) == [Outcome.ALLOCATED]
                await wait_for_subscriber(client)
                await send(client, f"later-{round_}", make_result(Outcome.EXPIRED))
                assert await asyncio.wait_for(later, WAIT_S) == [Outcome.EXPIRED]

    asyncio.run(run())


def test_valkey_that_hangs_is_noticed_and_comes_back(valkey: EmbeddedValkey) -> None:
    async def run() -> None:
        async with connect(valkey) as client, listening(client) as replies:
            future = replies.expect_later(PREFIX + "1")
            os.kill(valkey.pid, signal.SIGSTOP)
            try:
                await wait_until_lost(replies)
            finally:
                os.kill(valkey.pid, signal.SIGCONT)
            await asyncio.wait_for(replies.subscribed.wait(), WAIT_S)
            await send(client, "1", make_result(Outcome.ALLOCATED))
            assert await asyncio.wait_for(future, WAIT_S) == [Outcome.ALLOCATED]

    asyncio.run(run())


def test_valkey_that_restarts_empty_is_subscribed_to_again(valkey: EmbeddedValkey) -> None:
    async def run() -> None:
        async with connect(valkey) as client, listening(client) as replies:
            future = replies.expect_later(PREFIX + "1")
            await asyncio.to_thread(valkey.stop)
            await wait_until_lost(replies)
            await asyncio.to_thread(valkey.start)
            await asyncio.wait_for(replies.subscribed.wait(), WAIT_S)
            await send(client, "1", make_result(Outcome.ALLOCATED))
            assert await asyncio.wait_for(future, WAIT_S) == [Outcome.ALLOCATED]

    asyncio.run(run())


async def wait_until_lost(replies: Replies) -> None:
    async with asyncio.timeout(WAIT_S):
        while replies.subscribed.is_set():  # noqa: ASYNC110 (it is an event for being there, not for being lost)
            await asyncio.sleep(0.01)


async def wait_for_subscriber(client: Redis) -> None:
    async with asyncio.timeout(WAIT_S):
        while await client.pubsub_numpat() == 0:  # noqa: ASYNC110 (another process's event)
            await asyncio.sleep(0.01)
