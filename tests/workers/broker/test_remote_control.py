"""Remote control: a worker answers questions, whoever asks, and obeys no orders."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from core.settings.loader import load_settings
from tests.servers import Account, Servers, System, open_account, run_system, run_valkey
from workers.app import QUEUE, create_celery
from workers.broker.remote_control import QUESTIONS

CANARY = "canary.in.the.coal.mine"
DROPPED = "a message of remote control was dropped"


@pytest.fixture(scope="module")
def controlled(servers: Servers) -> Iterator[System]:
    with run_valkey() as valkey, run_system(Servers(servers.postgres_url, valkey.url)) as system:
        yield system


@pytest.fixture(scope="module")
def celery(controlled: System) -> Iterator[Celery]:
    with create_celery(load_settings(controlled.environment)) as opened:
        yield opened


@pytest.fixture
def account(controlled: System) -> Account:
    return open_account(controlled.database)


def is_alive(system: System, account: Account) -> bool:
    with system.client() as client:
        return system.pay(client, account, "user@example.com", 1).status_code == 201


def ask(celery: Celery, command: str, **arguments: object) -> object:
    return celery.control.broadcast(command, arguments=arguments, reply=True, timeout=1.0)


@pytest.mark.parametrize("question", sorted(QUESTIONS))
def test_questions_are_answered_without_their_arguments(celery: Celery, question: str) -> None:
    replies = ask(celery, question, safe=True, **{CANARY: CANARY})
    assert isinstance(replies, list)
    assert replies
    assert CANARY not in str(replies)


ORDERS: dict[str, dict[str, Any]] = {
    "shutdown": {},
    "cancel_consumer": {"queue": QUEUE},
    "add_consumer": {"queue": CANARY},
    "rate_limit": {"task_name": "payouts.allocate", "rate_limit": "1/h"},
    "time_limit": {"task_name": "payouts.allocate", "hard": 1},
    "revoke": {"task_id": CANARY, "terminate": True},
    "terminate": {"task_id": CANARY, "signal": "KILL"},
    "pool_restart": {},
    "pool_shrink": {"n": 1},
    "disable_events": {},
    "conf": {},
    "report": {},
    "hello": {"from_node": CANARY, "revoked": {}},
    "memdump": {},
    CANARY: {},
}


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_orders_are_dropped_and_the_worker_goes_on(
    controlled: System, celery: Celery, account: Account, order: str
) -> None:
    before = controlled.logs()
    assert ask(celery, order, **ORDERS[order]) == []
    assert is_alive(controlled, account)
    log = controlled.logs()[len(before) :]
    assert CANARY not in log
    assert "Traceback" not in log
    assert DROPPED in log


@pytest.mark.parametrize(
    "body",
    [
        "text",
        5,
        None,
        [],
        {},
        {"method": None},
        {"method": ["shutdown"]},
        {"method": "ping", "destination": 5},
        {"method": "ping", "reply_to": CANARY},
        {"method": "ping", "reply_to": {"exchange": CANARY}},
        {"method": "ping", "pattern": CANARY, "matcher": CANARY},
        {"method": "ping", "arguments": [CANARY]},
    ],
)
def test_garbage_does_not_end_a_worker(controlled: System, celery: Celery, account: Account, body: object) -> None:
    before = controlled.logs()
    with celery.producer_pool.acquire() as producer:
        producer.publish(body, exchange=celery.control.mailbox.exchange, serializer="json", headers={"clock": CANARY})
    time.sleep(0.2)
    assert is_alive(controlled, account)
    log = controlled.logs()[len(before) :]
    assert CANARY not in log
    assert "Traceback" not in log
