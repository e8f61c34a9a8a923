"""What is no message on the queue is dropped, and the worker goes on with what comes behind it."""

import json
import socket
import ssl
import threading
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from api.embedded import EmbeddedValkey
from core.settings import load_settings
from tests.servers import HASH_SECRET
from workers.app import ALLOCATE_TASK, QUEUE, create_celery
from workers.transport import Transport

ENVELOPE = {"body": "", "content-type": "application/json", "content-encoding": "utf-8", "headers": {}}


def celery_on(redis_url: str, broker_url: str = "") -> Celery:
    return create_celery(
        load_settings(
            {
                "PAYOUTS_DATABASE_URL": "postgresql://nobody@127.0.0.1/nothing",
                "PAYOUTS_REDIS_URL": redis_url,
                "PAYOUTS_BROKER_URL": broker_url,
                "PAYOUTS_HASH_SECRET": HASH_SECRET,
            }
        )
    )


@pytest.fixture
def celery(valkey: EmbeddedValkey) -> Celery:
    return celery_on(valkey.url)


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


@pytest.mark.parametrize("broker_url", ["redis://host", "rediss://host", "redis+socket:///run/valkey.sock"])
def test_every_redis_url_has_this_transport(broker_url: str) -> None:
    with celery_on("redis://host", broker_url).connection_for_read() as connection:
        assert isinstance(connection.transport, Transport)


def test_rediss_speaks_tls_and_sends_no_password_in_the_clear() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"rediss://:broker-password@127.0.0.1:{listener.getsockname()[1]}/0"
        received = []

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                received.append(connection.recv(4096))

        server = threading.Thread(target=answer)
        server.start()
        with celery_on(url).connection_for_write() as connection, pytest.raises(Exception):  # noqa: B017, PT011
            connection.default_channel.client.ping()
        server.join()
    assert received[0][:1] == b"\x16"  # a TLS handshake
    assert b"broker-password" not in received[0]


@pytest.mark.parametrize(("query", "verification"), [("", ssl.CERT_REQUIRED), ("?ssl_cert_reqs=none", ssl.CERT_NONE)])
def test_rediss_asks_for_a_valid_certificate_unless_the_url_says_otherwise(
    query: str, verification: ssl.VerifyMode
) -> None:
    celery = celery_on(f"rediss://host/0{query}")
    assert celery.connection_for_write().ssl["ssl_cert_reqs"] == verification
    assert celery.backend.connparams["ssl_cert_reqs"] == verification
