"""RabbitMQ as the broker, on a real one: what arrives, what arrives again, and what never does."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import amqp
import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from api.allocations.publisher import Publisher
from api.local.ports import find_free_port
from core.messages import GroupCodec
from core.settings.loader import load_settings
from tests.chaos.cluster import PROCFILE
from tests.polling import wait_until
from tests.rabbitmq import RabbitMQ, needs_rabbitmq, run_rabbitmq
from tests.servers import Servers, System, open_account, run_system, verify_books
from tests.tls import Authority, forward, make_authority
from workers.app import BATCHES_QUEUE, QUEUE, create_celery

pytestmark = needs_rabbitmq
ENDS_WITHIN_S = 20


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def broker(authority: Authority) -> Iterator[RabbitMQ]:
    with run_rabbitmq(authority) as running:
        yield running


@pytest.fixture(scope="module")
def rabbit_system(servers: Servers, broker: RabbitMQ) -> Iterator[System]:
    """Keeps its replies and locks on Valkey."""
    with run_system(servers, broker_url=broker.url) as running:
        yield running


def celery_on(broker_url: str, redis_url: str = "redis://127.0.0.1:1/0", **settings: str) -> Celery:
    return create_celery(
        load_settings(
            {
                "PAYOUTS_DATABASE_URL": "postgresql://nobody@127.0.0.1/nothing",
                "PAYOUTS_REDIS_URL": redis_url,
                "PAYOUTS_BROKER_URL": broker_url,
                "PAYOUTS_HASH_SECRET": "the hash secret of these tests, long enough",
            }
            | settings
        )
    )


def test_calls_pay_once_and_refusals_are_answered_at_once(rabbit_system: System) -> None:
    account = open_account(rabbit_system.database, funds_cents=1_000)
    with rabbit_system.client() as client:
        assert rabbit_system.pay(client, account, "a@example.com", 600).status_code == 201
        refused = rabbit_system.pay(client, account, "a@example.com", 600)
        assert (refused.status_code, refused.json()) == (400, {"error": "Insufficient payout balance"})
        balance = client.get("/balance", headers=account.headers).json()
    assert balance["payout_balance"] == 400
    assert verify_books(rabbit_system.database).balanced


def test_payout_batch_is_paid(rabbit_system: System) -> None:
    account = open_account(rabbit_system.database)
    rows = [{"email": f"user.{number}@example.com", "amount": 100 + number} for number in range(700)]
    with rabbit_system.client() as client:
        accepted = client.post("/payout/batches", json={"allocations": rows}, headers=account.headers)
        assert accepted.status_code == 202
        path = f"/payout/batches/{accepted.json()['id']}"
        wait_until(
            lambda: client.get(path, headers=account.headers).json()["status"] == "completed", "the batch is paid", 30
        )
        assert client.get("/balance", headers=account.headers).json()["payout_balance"] == 1_000_000 - sum(
            int(str(row["amount"])) for row in rows
        )
    assert verify_books(rabbit_system.database).balanced


def test_queues_are_quorum_queues_and_there_are_no_others_than_ours(rabbit_system: System, broker: RabbitMQ) -> None:
    lines = broker.rabbitmqctl("--quiet", "list_queues", "name", "type").splitlines()
    types = dict(line.split("\t") for line in lines if not line.startswith("name\t"))
    assert types.pop(QUEUE) == types.pop(BATCHES_QUEUE) == "quorum"
    assert all("pidbox" in name for name in types)


def test_a_message_that_is_delivered_again_is_dropped(rabbit_system: System, broker: RabbitMQ) -> None:
    """It may have been carried out by the consumer whose connection broke: here the test itself, which took it."""
    before = len(rabbit_system.logs())
    account = open_account(rabbit_system.database)
    calls = 0
    with rabbit_system.client() as client, broker.connect() as taker:
        channel = taker.channel()
        channel.basic_qos(0, 1, False)
        taken: list[amqp.Message] = []
        channel.basic_consume(QUEUE, callback=taken.append)
        while not taken:  # deliveries go round
            calls += 1
            assert calls < 20
            assert rabbit_system.pay(client, account, f"user.{calls}@example.com", 7).status_code == 201
            with suppress(TimeoutError):
                taker.drain_events(timeout=0.2)
        taker.collect()  # without an acknowledgement
        wait_until(lambda: "it was delivered before" in rabbit_system.logs()[before:], "it is dropped", 20)
        balance = client.get("/balance", headers=account.headers).json()["payout_balance"]
    assert balance == 1_000_000 - 7 * calls
    assert broker.count_messages(QUEUE) == 0


def test_a_batch_that_nobody_takes_is_gone_after_its_deadline(broker: RabbitMQ) -> None:
    broker.rabbitmqctl("add_vhost", "nobody")
    broker.rabbitmqctl("set_permissions", "--vhost", "nobody", "payouts", ".*", ".*", ".*")
    celery = celery_on(f"{broker.url.removesuffix('//')}/nobody")
    publisher = Publisher(celery, GroupCodec(b"x" * 32), "api-", threads=1, expires_after_s=1.5)
    try:
        asyncio.run(publisher.publish("api-1", []))
        assert broker.count_messages(QUEUE, virtual_host="nobody") == 1
        wait_until(lambda: broker.count_messages(QUEUE, virtual_host="nobody") == 0, "the message is gone", 20)
    finally:
        publisher.close()


def test_a_broker_that_takes_no_messages_is_not_waited_for(broker: RabbitMQ) -> None:
    celery = celery_on(broker.url, PAYOUTS_RESEND_AFTER_S="0.5")
    celery.send_task("unheard.of", queue=BATCHES_QUEUE, ignore_result=True)
    broker.rabbitmqctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        started_at = time.monotonic()
        for _ in range(3):
            with pytest.raises(OperationalError):
                celery.send_task("unheard.of", queue=BATCHES_QUEUE, ignore_result=True)
        assert time.monotonic() - started_at < 20  # by default, for ever
    finally:
        broker.rabbitmqctl("set_vm_memory_high_watermark", "0.8")
    celery.send_task("unheard.of", queue=BATCHES_QUEUE, ignore_result=True)
    celery.close()


def test_another_node_is_tried_where_one_is_gone(broker: RabbitMQ) -> None:
    gone = f"amqp://payouts:{broker.password}@127.0.0.1:{find_free_port()}//"
    celery = celery_on(f"{gone};{broker.url}")
    celery.send_task("unheard.of", queue=BATCHES_QUEUE, ignore_result=True)
    celery.close()


def run_worker(rabbit_system: System, broker_url: str) -> subprocess.CompletedProcess[str]:
    """Run a worker that ends by itself."""
    return subprocess.run(
        PROCFILE["worker"],
        shell=True,
        env=rabbit_system.environment | {"PAYOUTS_BROKER_URL": broker_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=ENDS_WITHIN_S,
    )


def assert_refused(result: subprocess.CompletedProcess[str], broker: RabbitMQ, reason: str) -> None:
    lines = [line for line in result.stdout.splitlines() if line]
    assert result.returncode == 1, result.stdout
    assert len(lines) == 1, result.stdout
    assert reason in lines[0]
    assert "PAYOUTS_BROKER_URL" in lines[0]
    assert broker.password not in result.stdout


@pytest.mark.parametrize("wrong", ["password", "virtual host"])
def test_worker_ends_with_one_line_where_the_broker_refuses_it(
    rabbit_system: System, broker: RabbitMQ, wrong: str
) -> None:
    url = broker.url.replace(broker.password, f"{broker.password}x") if wrong == "password" else f"{broker.url}nowhere"
    assert_refused(run_worker(rabbit_system, url), broker, "refuses the user, the password or the virtual host")


def tls_url(broker: RabbitMQ, ca_file: Path | None, host: str = "127.0.0.1") -> str:
    option = f"?ssl_ca_certs={ca_file}" if ca_file else ""
    return f"amqps://payouts:{broker.password}@{host}:{broker.tls_port}//{option}"


def test_amqps_is_served(servers: Servers, broker: RabbitMQ, authority: Authority) -> None:
    with run_system(servers, broker_url=tls_url(broker, authority.ca_file)) as system, system.client() as client:
        assert system.pay(client, open_account(system.database), "a@example.com", 5).status_code == 201


@pytest.mark.parametrize("wrong", ["authority", "no authority", "host"])
def test_worker_ends_with_one_line_where_the_certificate_is_not_trusted(
    rabbit_system: System, broker: RabbitMQ, authority: Authority, tmp_path: Path, wrong: str
) -> None:
    urls = {
        "authority": tls_url(broker, make_authority(tmp_path).ca_file),
        "no authority": tls_url(broker, None),
        # The certificate is for 127.0.0.1 alone.
        "host": tls_url(broker, authority.ca_file, host="127.0.0.2"),
    }
    with forward("127.0.0.2", broker.tls_port):
        result = run_worker(rabbit_system, urls[wrong])
    assert_refused(result, broker, "has a certificate that is not trusted")
