"""Looking at the queues: how many messages wait and since when, on a real broker where nobody consumes."""

import json
import time
from collections.abc import Iterator

import pytest
from celery import Celery
from redis import Redis

from api.local.valkey import EmbeddedValkey
from core.ids import new_id
from tests.workers.broker.test_transport import celery_on
from workers.app import ALLOCATE_TASK, BATCHES_QUEUE, FIND_STALLED_TASK, QUEUE, send_chunk
from workers.broker.queues import QueueState, QueueWatch
from workers.broker.transport import SENT_AT_HEADER


@pytest.fixture
def celery(valkey: EmbeddedValkey) -> Celery:
    return celery_on(valkey.url)


@pytest.fixture
def client(valkey: EmbeddedValkey) -> Iterator[Redis]:
    with Redis.from_url(valkey.url) as opened:
        yield opened


@pytest.fixture
def watch(celery: Celery) -> Iterator[QueueWatch]:
    opened = QueueWatch(celery)
    yield opened
    opened.close()


def send(celery: Celery, number: int = 1) -> None:
    for _ in range(number):
        celery.send_task(ALLOCATE_TASK, args=["sealed"])


def age(watch: QueueWatch, queue: str = QUEUE) -> float | None:
    (state,) = [state for state in watch.look() if state.queue == queue]
    return state.oldest_age_s


def backdate(client: Redis, key: str, index: int, seconds: float) -> None:
    message = json.loads(client.lindex(key, index) or b"")
    message["headers"][SENT_AT_HEADER] -= round(seconds * 1_000_000)
    client.lset(key, index, json.dumps(message))


def test_empty_queues_have_no_messages_and_no_age(watch: QueueWatch) -> None:
    assert watch.look() == [QueueState(QUEUE, 0, 0.0), QueueState(BATCHES_QUEUE, 0, 0.0)]


def test_age_is_of_the_message_that_is_taken_next_and_grows(celery: Celery, client: Redis, watch: QueueWatch) -> None:
    send(celery, 3)
    backdate(client, QUEUE, -1, 100)
    before, again = watch.look(), watch.look()
    assert [state.messages for state in before] == [3, 0]
    assert 100 <= (before[0].oldest_age_s or 0) < 130
    assert (again[0].oldest_age_s or 0) > (before[0].oldest_age_s or 0)
    with celery.connection_for_read() as connection:
        taken = connection.default_channel.basic_get(QUEUE, no_ack=True)
    assert taken.headers[SENT_AT_HEADER] < time.time_ns() // 1000 - 90_000_000
    assert (age(watch) or 0) < 30


def test_every_sender_s_messages_say_when_they_were_sent(celery: Celery, client: Redis, watch: QueueWatch) -> None:
    send_chunk(celery, new_id(), new_id(), 0)
    celery.send_task(FIND_STALLED_TASK)  # as beat does
    messages = [json.loads(message) for message in client.lrange(BATCHES_QUEUE, 0, -1)]
    seconds, microseconds = client.time()
    now_us = seconds * 1_000_000 + microseconds
    assert all(0 <= now_us - message["headers"][SENT_AT_HEADER] < 30_000_000 for message in messages)
    assert len(messages) == 2
    assert age(watch, BATCHES_QUEUE) is not None
    assert age(watch) == 0


def test_clock_of_the_sender_does_not_matter(
    celery: Celery, watch: QueueWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    send(celery)
    assert (age(watch) or 0) < 30


def test_oldest_of_all_priorities_counts(celery: Celery, client: Redis, watch: QueueWatch) -> None:
    celery.send_task(ALLOCATE_TASK, args=["sealed"], priority=9)
    (key,) = client.keys(f"{QUEUE}*")
    assert isinstance(key, bytes)
    assert key != QUEUE.encode()
    backdate(client, key.decode(), -1, 50)
    send(celery)
    (state, _) = watch.look()
    assert state.messages == 2
    assert 50 <= (state.oldest_age_s or 0) < 80


@pytest.mark.parametrize(
    "message",
    [
        b"no JSON",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"body": "e30=", "headers": {}}',
        b'{"headers": {"payouts_sent_at_us": "yesterday"}}',
        b'{"headers": {"payouts_sent_at_us": 1e999}}',
        b'{"headers": null}',
    ],
    ids=lambda message: repr(message[:30]),
)
def test_message_that_does_not_say_has_no_age(celery: Celery, client: Redis, watch: QueueWatch, message: bytes) -> None:
    """An older version's, say: no figure is better than a wrong one."""
    client.lpush(QUEUE, message)
    send(celery)
    assert watch.look()[0] == QueueState(QUEUE, 2, None)


def test_broker_that_comes_back_is_looked_at_again(celery: Celery, valkey: EmbeddedValkey, watch: QueueWatch) -> None:
    send(celery)
    assert watch.look()[0].messages == 1
    valkey.stop()
    with pytest.raises(Exception):  # noqa: B017, PT011 (the transport's own)
        watch.look()
    valkey.start()
    send(celery, 2)
    assert watch.look()[0].messages == 2
