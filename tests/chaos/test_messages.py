"""Messages arrive more than once, far too late, or are not ours."""

import json
import os
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest

from core.database.connection import read_clock_us
from core.ids import new_id
from core.messages import Allocation, GroupCodec, Outcome, Reply
from tests.chaos.cluster import Cluster, run_cluster
from tests.chaos.faults import sleep_until
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import CLIENTS, slowest_s, steady_load, unexpected
from tests.polling import wait_until
from tests.servers import Account
from workers.app import ALLOCATE_TASK, QUEUE, RESULT_KEY_PREFIX, create_celery

HOUR_US = 3_600_000_000


@contextmanager
def messages_being_tripled(cluster: Cluster) -> Iterator[list[bytes]]:
    """Take messages off the queue, as a worker does, and put each back three times; gives those messages.

    What was tripled stays as it is: copies of copies would fill the queue faster than a slow machine empties it.
    """
    taken: list[bytes] = []
    stopping = threading.Event()

    def triple() -> None:
        with cluster.redis() as client:
            while not stopping.wait(0.02):
                found: Any = client.brpop([QUEUE], timeout=0.5)
                if found is None:
                    continue
                message = found[1]
                if message in taken:
                    client.rpush(QUEUE, message)  # at the end that is taken next, where it was
                else:
                    taken.append(message)
                    client.lpush(QUEUE, message, message, message)

    thread = threading.Thread(target=triple)
    thread.start()
    try:
        yield taken
    finally:
        stopping.set()
        thread.join()


def send(cluster: Cluster, allocation: Allocation) -> str:
    """Put a message on the queue as an API process does; return its task id."""
    task_id = f"late-{new_id().hex}"
    celery = create_celery(cluster.settings)
    try:
        celery.send_task(ALLOCATE_TASK, args=[codec(cluster).seal([allocation], task_id)], task_id=task_id)
    finally:
        celery.close()
    return task_id


def codec(cluster: Cluster) -> GroupCodec:
    return GroupCodec(cluster.settings.hash_secret_bytes)


def reply_to(cluster: Cluster, task_id: str) -> object:
    """Return what is in Redis as a task's result."""
    with cluster.redis() as client:
        wait_until(lambda: client.exists(RESULT_KEY_PREFIX + task_id), "a reply", 10)
        return json.loads(client.get(RESULT_KEY_PREFIX + task_id) or b"")["result"]


def opened_reply_to(cluster: Cluster, task_id: str) -> Reply | None:
    return codec(cluster).open_reply(reply_to(cluster, task_id), task_id)


def make_allocation(cluster: Cluster, account: Account, email: str, *, late_us: int) -> Allocation:
    with cluster.database.transaction() as connection:
        now_us = read_clock_us(connection)
    return Allocation(new_id(), account.business.id, account.api_key_id, email, 77, now_us - late_us)


@pytest.mark.overlap(seconds=20)
def test_message_delivered_three_times_pays_once_and_one_that_is_an_hour_late_not_at_all() -> None:
    with run_cluster() as cluster:
        with steady_load(cluster) as load:
            with messages_being_tripled(cluster) as tripled:
                load.wait_for_answers(500)
            last_tripled_at = time.monotonic()
            assert len(tripled) > 20
            late = make_allocation(cluster, load.accounts[0], "late@example.com", late_us=HOUR_US)
            late_replies = [opened_reply_to(cluster, send(cluster, late)) for _ in range(3)]
            sleep_until(last_tripled_at + cluster.settings.reply_timeout_s + 0.5)
            with cluster.redis() as client:  # the others once more: late, too, and paid already
                client.lpush(QUEUE, *tripled)
            load.wait_for_answers(100)
        assert late_replies == [Reply([Outcome.EXPIRED])] * 3
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, load.answers)  # where nobody asked for the late one


CANARY = "canary.in.the.coal.mine"
ANSWERED = {"business that does not exist"}
"""Sealed by one of ours, so it is carried out, and refused."""


def task_message(body: bytes | str, task_id: str | None = None, **properties: object) -> bytes:
    """Make a well-formed Celery message of our task, with any body and content type."""
    id_ = task_id or f"foreign-{new_id().hex}"
    message = {
        "body": body if isinstance(body, str) else b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": ALLOCATE_TASK, "id": id_, "root_id": id_, "argsrepr": CANARY, "retries": 0},
        "properties": {
            "correlation_id": id_,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": id_,
        },
    }
    return json.dumps(message | properties).encode()


def arguments(*values: object) -> bytes:
    return json.dumps([values, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()


def foreign_messages(cluster: Cluster) -> dict[str, bytes]:
    task_id = f"foreign-{new_id().hex}"
    sealed = codec(cluster).seal([], task_id)
    stranger = Allocation(new_id(), UUID(int=1), UUID(int=2), f"{CANARY}@example.com", 5, 1 << 60)
    headers = json.loads(task_message(b""))["headers"]
    return {
        "arguments are no JSON": task_message(f'[["{CANARY}'.encode()),
        "arguments are another JSON": task_message(json.dumps({CANARY: [CANARY]}).encode()),
        "no arguments": task_message(b"[[], {}, {}]"),
        "argument of another type": task_message(arguments({CANARY: CANARY})),
        "argument of a type that kombu reads": task_message(
            arguments({"__type__": "datetime", "__value__": CANARY})
        ),
        "unknown version": task_message(arguments(f"3:{CANARY}{sealed}")),
        "sealed by another": task_message(
            arguments(GroupCodec(CANARY.encode() * 3).seal([stranger], task_id)), task_id
        ),
        "copied from another task": task_message(arguments(codec(cluster).seal([stranger], "another"))),
        "business that does not exist": task_message(arguments(codec(cluster).seal([stranger], task_id)), task_id),
        "10 MB": task_message(arguments("1:" + CANARY * (10_000_000 // len(CANARY)))),
        "10 MB that is not text": os.urandom(10_000_000),
        "pickle": task_message(
            b"cos\nsystem\n(S'echo " + CANARY.encode() + b"'\ntR.",
            **{"content-type": "application/x-python-serialize", "content-encoding": "binary"},
        ),
        "YAML": task_message(f"- {CANARY}".encode(), **{"content-type": "application/x-yaml"}),
        "unknown content type": task_message(CANARY.encode(), **{"content-type": CANARY}),
        "unknown encoding": task_message(arguments(CANARY), **{"content-encoding": CANARY}),
        "body that is not base64": task_message(f"{CANARY}é"),
        "unknown task": task_message(arguments(CANARY), headers=headers | {"task": CANARY}),
        "no headers": task_message(arguments(CANARY), headers={}),
        "no properties": task_message(arguments(CANARY), properties={}),
        "not Celery's": CANARY.encode(),
        "JSON but not Celery's": json.dumps({CANARY: CANARY}).encode(),
        "a JSON string": json.dumps(CANARY).encode(),
        "nothing": b"",
        "not UTF-8": b"\xff\xfe" + CANARY.encode(),
    }  # fmt: skip


@pytest.mark.overlap(seconds=25)
def test_worker_drops_foreign_messages_without_their_content_and_goes_on() -> None:
    mistakes: list[str] = []
    with run_cluster(workers=1) as cluster:
        [worker] = cluster.workers
        with steady_load(cluster, think_s=0.5) as load, cluster.redis() as client:
            load.wait_for_answers(CLIENTS)
            for what, message in foreign_messages(cluster).items():
                before = len(worker.log_since_start())
                client.rpush(QUEUE, message)  # at the end that is taken next
                wait_until(lambda: client.llen(QUEUE) == 0 or not worker.is_running(), f"{what} is taken", 10)
                answers = load.wait_for_answers(8)
                log = worker.log_since_start()[before:]
                if not worker.is_running():
                    mistakes.append(f"{what}: the worker ended: {log[:200]}")
                    worker.start()
                    cluster.wait_until_ready(worker)
                    continue
                if slowest_s(answers) >= 3:
                    mistakes.append(f"{what}: an answer took {slowest_s(answers):.1f} s")
                if CANARY in log or "Traceback" in log:
                    mistakes.append(f"{what}: its content is in the log: {log[:200]}")
                if "dropped" not in log and what not in ANSWERED:
                    mistakes.append(f"{what}: the log does not name it: {log[:200]}")
        assert not mistakes, "\n".join(mistakes)
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, load.answers)  # where nobody asked for any of these
        assert CANARY not in cluster.logs()
