"""What is no message on the queue is dropped, and the worker goes on with what comes behind it."""

import json
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from api.embedded import EmbeddedValkey
from core.settings import load_settings
from tests.servers import HASH_SECRET
from workers.app import ALLOCATE_TASK, QUEUE, create_celery

ENVELOPE = {"body": "", "content-type": "application/json", "content-encoding": "utf-8", "headers": {}}


@pytest.fixture
def celery(valkey: EmbeddedValkey) -> Celery:
    return create_celery(
        load_settings(
            {
                "PAYOUTS_DATABASE_URL": "postgresql://nobody@127.0.0.1/nothing",
                "PAYOUTS_REDIS_URL": valkey.url,
                "PAYOUTS_HASH_SECRET": HASH_SECRET,
            }
        )
    )


@pytest.mark.parametrize(
    "item",
    [
        b"no JSON",
        b"",
        b"\xff\xfe",
        b'"text"',
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        json.dumps(ENVELOPE).encode(),
        json.dumps(ENVELOPE | {"properties": {}}).encode(),
        json.dumps(ENVELOPE | {"body": "?", "properties": {"body_encoding": "base64"}}).encode(),
    ],
    ids=lambda item: repr(item[:20]),
)
def test_what_is_no_message_is_dropped_without_its_content(
    celery: Celery, valkey: EmbeddedValkey, item: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[Any] = []
    with Redis.from_url(valkey.url) as client, celery.connection_for_read() as connection:
        client.lpush(QUEUE, item)
        celery.send_task(ALLOCATE_TASK, args=["behind it"], task_id="task")
        consumer = celery.amqp.TaskConsumer(connection.channel(), callbacks=[lambda body, _: received.append(body)])
        with consumer:
            while not received:
                connection.drain_events(timeout=5)
        assert client.llen(QUEUE) == 0
    assert received[0][0] == ["behind it"]
    assert "a message was dropped" in caplog.text
    assert repr(item)[2:-1][:10] not in caplog.text or not item


def test_all_messages_are_published_with_one_client(celery: Celery) -> None:
    with celery.connection_for_write() as connection:
        channel = connection.channel()
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
