"""What is no message on the queue is dropped, and the worker goes on with what comes behind it."""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis, RedisError

from api.local.valkey import EmbeddedValkey
from api.web.rate_limit import RateLimiter
from core.settings.loader import Settings, load_settings
from tests.chaos.cluster import PROCFILE
from tests.servers import HASH_SECRET
from tests.tls import forward, make_authority, run_tls_in_front_of
from workers.app import ALLOCATE_TASK, QUEUE, create_celery
from workers.broker.transport import MESSAGES_MAX, SentinelTransport, Transport
from workers.servers import open_async_redis, open_redis

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


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_sentinels_have_this_transport_too(scheme: str) -> None:
    url = f"{scheme}+sentinel://:password@host,other:26380/service/1"
    with celery_on(url).connection_for_read() as connection:
        assert isinstance(connection.transport, SentinelTransport)
        assert bool(connection.ssl) is (scheme == "rediss")
        assert "password" not in connection.as_uri()


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
    with celery.backend.client as client:
        assert client.connection_pool.make_connection().cert_reqs == verification


def receive(celery: Celery, timeout_s: float = 1) -> list[Any]:
    """Consume as a worker does: on a new connection, until nothing comes any more."""
    received: list[Any] = []

    def take(body: Any, message: Any) -> None:
        received.append(body[0])
        message.ack()

    with (
        celery.connection_for_read() as connection,
        connection.channel() as channel,
        celery.amqp.TaskConsumer(channel, callbacks=[take]),
        suppress(TimeoutError),
    ):
        while True:
            connection.drain_events(timeout=timeout_s)
    return received


def test_messages_of_before_a_restart_or_failover_are_not_delivered(celery: Celery, valkey: EmbeddedValkey) -> None:
    """A server that saved itself to disk, or a replica, may have messages again that were taken already."""
    celery.send_task(ALLOCATE_TASK, args=["taken"], task_id="taken")
    with Redis.from_url(valkey.url) as client:
        copy = client.lindex(QUEUE, 0)
        assert receive(celery) == [["taken"]]
        assert client.llen(QUEUE) == 0
        marks = [key for key in client.scan_iter("payouts:queue:*") if client.type(key) == b"string"]
        assert len(marks) == 1
        client.set(marks[0], "another server's id")  # as the copy of another server's data says
        client.lpush(QUEUE, copy)
        assert receive(celery) == []
        assert client.llen(QUEUE) == 0
    celery.send_task(ALLOCATE_TASK, args=["new"], task_id="new")
    assert receive(celery) == [["new"]]


def test_a_consumer_that_connects_again_loses_no_message(celery: Celery) -> None:
    for number in range(3):
        celery.send_task(ALLOCATE_TASK, args=[number], task_id=str(number))
        assert receive(celery) == [[number]]


def test_the_queue_keeps_the_newest_messages_while_nobody_takes_them(celery: Celery, valkey: EmbeddedValkey) -> None:
    with Redis.from_url(valkey.url) as client:
        client.lpush(QUEUE, *(f"old {number}" for number in range(MESSAGES_MAX)))
        celery.send_task(ALLOCATE_TASK, args=["new"], task_id="new")
        assert client.llen(QUEUE) == MESSAGES_MAX
        newest = client.lindex(QUEUE, 0)
        assert newest is not None
        assert b"new" in newest
        assert client.lindex(QUEUE, -1) == b"old 1"


def test_a_message_is_sent_only_once_where_the_connection_breaks(celery: Celery) -> None:
    with celery.connection_for_write() as connection:
        pool = connection.default_channel.pool
        assert pool.make_connection().retry.get_retries() == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the limiter's client is not closed
def test_tls_is_checked_and_the_same_for_broker_replies_locks_and_limits(
    valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    """The wheel's Valkey has no TLS, so it is terminated in front of it."""
    (tmp_path / "other").mkdir()
    authority, other = make_authority(tmp_path), make_authority(tmp_path / "other")
    with run_tls_in_front_of(valkey.port, authority) as port, forward("127.0.0.2", port):
        url = valkey.url.replace("redis://", "rediss://").replace(f":{valkey.port}/", f":{port}/")

        def settings_with(redis_url: str) -> Settings:
            return load_settings(
                {
                    "PAYOUTS_DATABASE_URL": "postgresql://nobody@127.0.0.1/nothing",
                    "PAYOUTS_REDIS_URL": redis_url,
                    "PAYOUTS_HASH_SECRET": HASH_SECRET,
                    "PAYOUTS_RATE_LIMIT_PER_S": "1",
                    "PAYOUTS_REDIS_TIMEOUT_S": "2",
                }
            )

        async def ask_on_the_event_loop(settings: Settings) -> bool:
            scope: dict[str, Any] = {}
            limiter = RateLimiter(settings)
            async with open_async_redis(settings, retries=0) as client:
                answered = bool(await client.ping())
            return answered and await limiter.take(UUID(int=1), scope) is None and bool(scope)

        trusted = settings_with(f"{url}?ssl_ca_certs={authority.ca_file}")
        with open_redis(trusted, retries=0) as client:
            assert client.ping()
        assert asyncio.run(ask_on_the_event_loop(trusted))
        celery = create_celery(trusted)
        celery.send_task(ALLOCATE_TASK, args=["over TLS"], task_id="task")
        assert receive(celery) == [["over TLS"]]
        with celery.backend.client as client:
            assert client.ping()

        for wrong in (
            url,
            f"{url}?ssl_ca_certs={other.ca_file}",
            f"{url.replace('127.0.0.1', '127.0.0.2')}?ssl_ca_certs={authority.ca_file}",
        ):
            untrusted = settings_with(wrong)
            with open_redis(untrusted, retries=0) as client, pytest.raises(RedisError, match="certificate"):
                client.ping()
            with pytest.raises(RedisError, match="certificate"):
                asyncio.run(ask_on_the_event_loop(untrusted))
            with pytest.raises(OperationalError, match="certificate"):
                create_celery(untrusted).connection_for_write().default_channel.client.ping()


def test_worker_ends_with_one_line_where_redis_refuses_its_password(valkey: EmbeddedValkey) -> None:
    result = subprocess.run(
        PROCFILE["worker"],
        shell=True,
        env={
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PAYOUTS_DATABASE_URL": "postgresql://nobody@127.0.0.1/nothing",
            "PAYOUTS_REDIS_URL": f"redis://:another-password@127.0.0.1:{valkey.port}/0",
            "PAYOUTS_HASH_SECRET": HASH_SECRET,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    [line] = [line for line in result.stdout.splitlines() if line]
    assert result.returncode == 1
    assert "the broker refuses the user, the password or the virtual host; see PAYOUTS_BROKER_URL" in line
    assert "another-password" not in line
