"""Flower, driven through its own HTTP API while allocations and payout batches go through."""

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from redis import Redis

from api.local.ports import find_free_port
from api.local.procfile import parse_procfile
from core.credentials import digest_of
from tests.polling import wait_until
from tests.servers import HASH_SECRET, ROOT, Servers, System, open_account, run_system, run_valkey

FLOWER = parse_procfile((ROOT / "Procfile").read_text())["flower"]
EMAIL = "somebody.private@example.com"
PASSWORD = "flower-word-of-tests"  # noqa: S105
KEYS_AND_HASHES = re.compile(r"[sp]k_(live|test)_\w+|\b[0-9a-f]{64}\b")
FINISHED = ("SUCCESS", "FAILURE")


@dataclass
class Watched:
    """A system with Flower."""

    system: System
    url: str

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, auth=("payouts", PASSWORD), timeout=30)

    def tasks(self) -> dict[str, Any]:
        with self.client() as client:
            tasks: dict[str, Any] = client.get("/api/tasks", params={"limit": 1000}).json()
        return tasks

    def tasks_called(self, name: str) -> list[dict[str, Any]]:
        return [task for task in self.tasks().values() if task["name"] == name]


@pytest.fixture(scope="module")
def watched(servers: Servers) -> Iterator[Watched]:
    with run_valkey() as valkey, run_watched(Servers(servers.postgres_url, valkey.url)) as flower:
        yield flower


@contextmanager
def run_watched(servers: Servers) -> Iterator[Watched]:
    port = find_free_port()
    settings = {"flower_password": PASSWORD, "flower_port": str(port), "batch_stalled_after_s": "1"}
    with run_system(servers, **settings) as system:
        flower = Watched(system, f"http://127.0.0.1:{port}")
        wait_until(lambda: is_listening(port), system.logs, 30)
        wait_until(lambda: flower.tasks_called("payouts.find_stalled_batches"), system.logs, 30)
        yield flower


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_tasks_show_up_and_succeed_and_leak_nothing(watched: Watched) -> None:
    system = watched.system
    account = open_account(system.database)
    with system.client() as client, ThreadPoolExecutor(8) as threads:
        paid = list(threads.map(lambda n: system.pay(client, account, f"{n % 3}{EMAIL}", 1), range(40)))
        refused = system.pay(client, account, EMAIL, 100_000_000)
        rows = [{"email": f"{n}.{EMAIL}", "amount": 1, "reference": EMAIL} for n in range(700)]
        for row, n in zip(rows, range(700), strict=True):
            row["reference"] = f"{n} {EMAIL}"
        accepted = client.post("/payout/batches", json={"allocations": rows}, headers=account.headers)
    assert {response.status_code for response in paid} == {201}
    assert refused.status_code == 400
    assert accepted.status_code == 202
    batch_id = accepted.json()["id"]

    def find_finished() -> bool:
        chunks = [task for task in watched.tasks_called("payouts.pay_batch_chunk") if batch_id in task["args"]]
        allocations = watched.tasks_called("payouts.allocate")
        counted = sum(int(task["args"].split(" ")[0]) for task in allocations)
        finished = all(task["state"] in FINISHED for task in chunks + allocations)
        return (
            bool(chunks) and counted >= 41 and finished and any("insufficient" in str(t["result"]) for t in allocations)
        )

    wait_until(find_finished, watched.tasks, 30)
    tasks = watched.tasks()
    assert {task["state"] for task in tasks.values()} <= {"SUCCESS", "STARTED", "RECEIVED"}
    for task in tasks.values():
        assert task["exception"] is None
        assert task["kwargs"] == "{}"
    for task in watched.tasks_called("payouts.allocate"):
        assert re.fullmatch(r"\d+ allocations?, \d+ business(es)?", task["args"])
        assert re.fullmatch(r"(\d+ [a-z_]+(, )?)*", task["result"])
        assert task["worker"].startswith("worker-")
    for task in watched.tasks_called("payouts.pay_batch_chunk"):
        assert re.fullmatch(r"payout batch bat_\w+ from row \d+", task["args"])
        assert task["worker"].startswith("batches-")
    assert any(task["result"] == "'0 stalled'" for task in watched.tasks_called("payouts.find_stalled_batches"))

    seen = read_all_pages(watched)
    redis_password = urlsplit(system.environment["PAYOUTS_REDIS_URL"]).password
    assert redis_password
    secrets = [EMAIL, "example.com", account.secret_key, HASH_SECRET, redis_password, PASSWORD]
    secrets += [response.json()["hash"] for response in paid]
    secrets += [digest_of(response.json()["hash"]).hex() for response in paid]
    for text in (seen, system.logs()):
        assert not [secret for secret in secrets if secret in text]
        assert not KEYS_AND_HASHES.search(text)
    assert "Traceback" not in system.logs()


def read_all_pages(watched: Watched) -> str:
    """Return what Flower has to say, in JSON and on every page."""
    with watched.client() as client:

        def ask() -> dict[str, Any]:
            workers: dict[str, Any] = client.get("/api/workers", params={"refresh": "1"}).json()
            return workers

        # A worker that is busy answers a question late, and Flower waits for a second.
        wait_until(lambda: all("active_queues" in told for told in ask().values()), ask, 20)
        workers = ask()
        assert {name.split("-")[0] for name in workers} == {"worker", "batches"}
        (queues,) = client.get("/api/queues/length").json().values()
        assert {queue["name"] for queue in queues} == {"allocations", "batches"}
        paths = ["/", "/tasks", "/broker", "/metrics", "/api/workers", "/api/tasks", "/api/task/types"]
        paths += [f"/worker/{name}" for name in workers]
        paths += [f"/{page}/{id_}" for id_ in watched.tasks() for page in ("task", "api/task/info")]
        columns = "&".join(f"columns[{n}][data]={name}" for n, name in enumerate(("name", "args", "result", "kwargs")))
        paths.append(f"/tasks/datatable?draw=1&start=0&length=1000&order[0][column]=0&order[0][dir]=asc&{columns}")
        pages = [client.get(path) for path in paths]
        assert {page.status_code for page in pages} == {200}
        return "\n".join(page.text for page in pages)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Basic", "Basic x", "Bearer payouts", "Basic cGF5b3V0czo=", b"Basic \xff\xfe", "Basic w7w6w7w="],
)
def test_nothing_is_open_without_the_password(watched: Watched, authorization: str | bytes | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for path in ("/", "/api/tasks", "/api/workers", "/metrics", "/broker", "/static/css/flower.css", "/nothing"):
        response = httpx.get(watched.url + path, headers=headers)  # type: ignore[arg-type]
        assert (response.status_code, response.text) == (401, "Unauthorized\n")
        assert response.headers["WWW-Authenticate"].startswith("Basic ")
    assert httpx.get(watched.url + "/healthcheck").text == "OK"


def test_nothing_can_be_done_to_workers_and_tasks(watched: Watched) -> None:
    with watched.client() as client:
        (worker, *_) = client.get("/api/workers", params={"refresh": "1"}).json()
        for path in (
            f"worker/shutdown/{worker}",
            "task/async-apply/payouts.allocate",
            "task/send-task/payouts.allocate",
        ):
            assert client.post(f"/api/{path}", json={"args": []}).status_code == 403


def run_flower(system: System, **variables: str) -> subprocess.CompletedProcess[str]:
    # Without the setting that ends with 0.3, of which it would warn.
    environment = system.environment | {"PAYOUTS_BATCH_STALLED_AFTER_S": ""} | variables
    return subprocess.run(FLOWER, shell=True, env=environment, capture_output=True, text=True, timeout=60)


def test_flower_without_a_password_does_not_start(watched: Watched) -> None:
    ended = run_flower(watched.system, PAYOUTS_FLOWER_PASSWORD="")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("PAYOUTS_FLOWER_PASSWORD is not set")


@pytest.mark.parametrize("host", ["127.0.0.1", "host.invalid"])
def test_flower_that_cannot_listen_says_so_in_a_line(watched: Watched, host: str) -> None:
    ended = run_flower(watched.system, PAYOUTS_FLOWER_HOST=host)  # another one has the port
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"Flower cannot listen at {host}:")


def test_flower_outlives_a_broker_and_foreign_events(servers: Servers) -> None:
    with run_valkey() as valkey, run_watched(Servers(servers.postgres_url, valkey.url)) as watched:
        with Redis.from_url(valkey.url) as redis:
            for message in (EMAIL, '{"body": "e30=", "headers": {}, "properties": {}}'):
                assert redis.publish("/0.celeryev/worker.heartbeat", message) == 1
        valkey.stop()
        time.sleep(2)
        valkey.start()
        before = set(watched.tasks())
        wait_until(lambda: set(watched.tasks()) - before, watched.system.logs, timeout_s=60)
        log = (watched.system.log_dir / "flower.log").read_text()
        assert "Traceback" not in log
        assert EMAIL not in log
