"""Receiving replies: on the fake protocol, and from a real Valkey whose connections break."""

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fakeredis
import msgspec
import pytest
from redis.asyncio import Redis

from api.allocations.replies import Replies, Told
from api.local.valkey import EmbeddedValkey
from core import metrics
from core.messages import GroupCodec, Outcome, Reply
from core.sealing import Seal
from tests.servers import HASH_SECRET

CODEC = GroupCodec(HASH_SECRET.encode())
PREFIX = "api-test-"
KEY = "celery-task-meta-" + PREFIX
WAIT_S = 10


def make_result(name: str, *outcomes: Outcome, status: str = "SUCCESS") -> str:
    """Return what Celery stores for a reply that a worker sealed."""
    return wrap(CODEC.seal_reply(Reply(list(outcomes)), PREFIX + name), status)


def wrap(result: object, status: str = "SUCCESS") -> str:
    return json.dumps({"status": status, "result": result, "traceback": None, "children": [], "task_id": "x"})


async def send(client: Redis, name: str, *outcomes: Outcome) -> None:
    await send_raw(client, name, make_result(name, *outcomes))


async def send_raw(client: Redis, name: str, result: str | bytes) -> None:
    """Do as Celery does: store, then publish."""
    await client.set(KEY + name, result)
    await client.publish(KEY + name, result)


@asynccontextmanager
async def listening(client: Redis) -> AsyncIterator[Replies]:
    replies = Replies(client, CODEC, PREFIX)
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


def receive(result: str | bytes) -> Told:
    """Return what a caller gets for a result."""

    async def run() -> Told:
        async with fake() as (replies, client):
            future = replies.expect_later(PREFIX + "1")
            await send_raw(client, "1", result)
            return await asyncio.wait_for(future, WAIT_S)

    return asyncio.run(run())


def count_forgeries() -> float:
    return metrics.API.get_sample_value("payouts_forgeries_total", {"reason": "reply"}) or 0


@asynccontextmanager
async def connect(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey.url, socket_timeout=0.5, socket_connect_timeout=0.5) as client:
        yield client


def test_outcomes_arrive_in_order() -> None:
    outcomes = list(Outcome)
    assert receive(make_result("1", *outcomes)) == Reply(outcomes)


def test_empty_group_is_answered_with_nothing() -> None:
    assert receive(make_result("1")) == Reply([])


@pytest.mark.parametrize("status", ["FAILURE", "RETRY", "REVOKED", "STARTED", "PENDING"])
def test_task_that_did_not_succeed_is_none(status: str) -> None:
    assert receive(make_result("1", Outcome.ALLOCATED, status=status)) is None


@pytest.mark.parametrize(
    "result",
    [
        json.dumps({"status": "FAILURE", "result": {"exc_type": "WorkerLostError", "exc_message": ["x"]}}),
        '{"status": "SUCCESS"}',
        wrap(None),
    ],
)
def test_task_that_failed_as_a_whole_is_none(result: str) -> None:
    assert receive(result) is None


def test_outcome_of_a_newer_worker_is_none() -> None:
    """It is found out at the deadline."""
    newer = msgspec.msgpack.encode([["an outcome of a newer worker"]])
    sealed = base64.b64encode(Seal(HASH_SECRET.encode(), "reply").seal(newer, f"2:{PREFIX}1".encode())).decode()
    assert receive(wrap(f"2:{sealed}")) is None


FORGERIES: list[str | bytes] = [
    wrap(["allocated"]),
    wrap(["expired"]),
    wrap(CODEC.seal_reply(Reply([Outcome.ALLOCATED]), PREFIX + "another")),
    wrap(GroupCodec(b"another secret, which is long enough").seal_reply(Reply([Outcome.ALLOCATED]), PREFIX + "1")),
    wrap(CODEC.seal([], PREFIX + "1")),
    wrap(CODEC.seal_reply(Reply([Outcome.ALLOCATED]), PREFIX + "1")[:-4]),
    wrap("3" + CODEC.seal_reply(Reply([Outcome.ALLOCATED]), PREFIX + "1")),
    wrap("2:"),
    wrap("allocated"),
    wrap([1]),
    wrap({"outcomes": ["allocated"]}),
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
]


@pytest.mark.parametrize("forged", FORGERIES)
def test_what_no_worker_sealed_for_the_task_is_dropped_counted_and_logged(
    forged: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker's own reply is still expected, and received."""

    async def run() -> None:
        async with fake() as (replies, client):
            future = replies.expect_later(PREFIX + "1")
            await send_raw(client, "1", forged)
            await send(client, "1", Outcome.EXPIRED)
            assert await asyncio.wait_for(future, WAIT_S) == Reply([Outcome.EXPIRED])

    before = count_forgeries()
    asyncio.run(run())
    assert count_forgeries() == before + 1
    assert [message for message in caplog.messages if "a reply was dropped" in message]
    assert "allocated" not in caplog.text


def test_forgeries_do_not_end_the_listening() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            for number, forged in enumerate(FORGERIES):
                replies.expect_later(f"{PREFIX}{number}")
                await send_raw(client, str(number), forged)
            future = replies.expect_later(PREFIX + "good")
            await send(client, "good", Outcome.ALLOCATED)
            assert await asyncio.wait_for(future, WAIT_S) == Reply([Outcome.ALLOCATED])

    asyncio.run(run())


def test_each_waits_for_its_own() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            futures = [replies.expect_later(f"{PREFIX}{number}") for number in range(3)]
            for number, outcome in ((2, Outcome.EXPIRED), (0, Outcome.ALLOCATED), (1, Outcome.FAILED)):
                await send(client, str(number), outcome)
            found = await asyncio.wait_for(asyncio.gather(*futures), WAIT_S)
            assert found == [Reply([each]) for each in (Outcome.ALLOCATED, Outcome.FAILED, Outcome.EXPIRED)]

    asyncio.run(run())


def test_second_reply_to_the_same_task_is_ignored() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            future = replies.expect_later(PREFIX + "1")
            await send(client, "1", Outcome.ALLOCATED)
            assert await asyncio.wait_for(future, WAIT_S) == Reply([Outcome.ALLOCATED])
            await send(client, "1", Outcome.EXPIRED)
            other = replies.expect_later(PREFIX + "2")
            await send(client, "2")
            await asyncio.wait_for(other, WAIT_S)
            assert future.result() == Reply([Outcome.ALLOCATED])

    asyncio.run(run())


def test_forgotten_task_is_never_answered() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            forgotten, other = replies.expect_later(PREFIX + "1"), replies.expect_later(PREFIX + "2")
            replies.forget(PREFIX + "1")
            replies.forget(PREFIX + "never expected")
            await send(client, "1", Outcome.ALLOCATED)
            await send(client, "2", Outcome.ALLOCATED)
            await asyncio.wait_for(other, WAIT_S)
            assert not forgotten.done()

    asyncio.run(run())


def test_reply_to_someone_who_gave_up_does_no_harm() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            given_up, other = replies.expect_later(PREFIX + "1"), replies.expect_later(PREFIX + "2")
            given_up.cancel()
            await send(client, "1", Outcome.ALLOCATED)
            await send(client, "2", Outcome.ALLOCATED)
            assert await asyncio.wait_for(other, WAIT_S) == Reply([Outcome.ALLOCATED])

    asyncio.run(run())


def test_reply_of_another_process_is_not_received() -> None:
    async def run() -> None:
        async with fake() as (replies, client):
            future, own = replies.expect_later("api-other-1"), replies.expect_later(PREFIX + "1")
            await client.publish("celery-task-meta-api-other-1", make_result("1", Outcome.ALLOCATED))
            await send(client, "1", Outcome.ALLOCATED)
            await asyncio.wait_for(own, WAIT_S)
            assert not future.done()

    asyncio.run(run())


def test_result_stored_before_the_subscription_is_fetched() -> None:
    async def run() -> None:
        async with fakeredis.FakeAsyncRedis() as client:
            replies = Replies(client, CODEC, PREFIX)
            missed, open_ = replies.expect_later(PREFIX + "1"), replies.expect_later(PREFIX + "2")
            await send(client, "1", Outcome.ALLOCATED)
            task = asyncio.create_task(replies.listen())
            assert await asyncio.wait_for(missed, WAIT_S) == Reply([Outcome.ALLOCATED])
            assert not open_.done()
            await send(client, "2", Outcome.EXPIRED)
            assert await asyncio.wait_for(open_, WAIT_S) == Reply([Outcome.EXPIRED])
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
            await client.set(KEY + "1", make_result("1", Outcome.ALLOCATED))
            assert await asyncio.wait_for(future, WAIT_S) == Reply([Outcome.ALLOCATED])
            await asyncio.wait_for(replies.subscribed.wait(), WAIT_S)

    asyncio.run(run())
    assert [message for message in caplog.messages if "subscription was lost" in message]


def test_reply_arrives_from_a_real_valkey(valkey: EmbeddedValkey) -> None:
    async def run() -> None:
        async with connect(valkey) as client, listening(client) as replies:
            future = replies.expect_later(PREFIX + "1")
            await send(client, "1", Outcome.ALLOCATED)
            assert await asyncio.wait_for(future, WAIT_S) == Reply([Outcome.ALLOCATED])

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
                    pipeline.set(f"{KEY}{round_}", make_result(str(round_), Outcome.ALLOCATED))
                    pipeline.publish(f"{KEY}{round_}", make_result(str(round_), Outcome.ALLOCATED))
                    killed, _, received = await pipeline.execute()
                assert (killed, received) == (1, 0)
                assert await asyncio.wait_for(missed, WAIT_S) == Reply([Outcome.ALLOCATED])
                await wait_for_subscriber(client)
                await send(client, f"later-{round_}", Outcome.EXPIRED)
                assert await asyncio.wait_for(later, WAIT_S) == Reply([Outcome.EXPIRED])

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
            await send(client, "1", Outcome.ALLOCATED)
            assert await asyncio.wait_for(future, WAIT_S) == Reply([Outcome.ALLOCATED])

    asyncio.run(run())


def test_valkey_that_restarts_empty_is_subscribed_to_again(valkey: EmbeddedValkey) -> None:
    async def run() -> None:
        async with connect(valkey) as client, listening(client) as replies:
            future = replies.expect_later(PREFIX + "1")
            await asyncio.to_thread(valkey.stop)
            await wait_until_lost(replies)
            await asyncio.to_thread(valkey.start)
            await asyncio.wait_for(replies.subscribed.wait(), WAIT_S)
            await send(client, "1", Outcome.ALLOCATED)
            assert await asyncio.wait_for(future, WAIT_S) == Reply([Outcome.ALLOCATED])

    asyncio.run(run())


async def wait_until_lost(replies: Replies) -> None:
    async with asyncio.timeout(WAIT_S):
        while replies.subscribed.is_set():  # noqa: ASYNC110 (it is an event for being there, not for being lost)
            await asyncio.sleep(0.01)


async def wait_for_subscriber(client: Redis) -> None:
    async with asyncio.timeout(WAIT_S):
        while await client.pubsub_numpat() == 0:  # noqa: ASYNC110 (another process's event)
            await asyncio.sleep(0.01)
