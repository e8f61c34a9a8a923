"""What the metrics of running processes say is what happened."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from api.local.ports import find_free_port
from core.parties import api_keys
from tests.polling import wait_until
from tests.servers import Servers, System, open_account, run_system, run_valkey, wait_until_ready
from workers.app import BATCHES_QUEUE, QUEUE, VERDICT_KEY
from workers.metrics import PORTS

Samples = dict[str, float]


def read(url: str) -> Samples:
    """All samples, by name and labels in their order: `payouts_allocations_total{outcome="failed"}`."""
    response = httpx.get(f"{url}/metrics", timeout=10)
    assert response.status_code == 200
    samples = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return samples


def wait_for(url: str, is_true: Callable[[Samples], object], what: str, timeout_s: float = 30) -> Samples:
    read_last: list[Samples] = []

    def find() -> object:
        read_last[:] = [read(url)]
        return is_true(read_last[0])

    wait_until(find, lambda: f"{what}: {read_last}", timeout_s, pause_s=0.2)
    return read_last[0]


def grown(before: Samples, after: Samples) -> Samples:
    return {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}


def find_metrics_base() -> int:
    """A port with free ones behind it."""
    return min(find_free_port(), 65_000)


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return find_metrics_base()


@pytest.fixture(scope="module")
def watched(servers: Servers, metrics_port: int) -> Iterator[System]:
    with run_valkey() as valkey:
        own = Servers(servers.postgres_url, valkey.url)
        with run_system(own, metrics_port=str(metrics_port), verify_every_s="1") as running:
            yield running


def worker_urls(system: System) -> list[str]:
    """Where the workers said that they serve, `worker` first."""

    def find() -> list[str] | None:
        found = {
            name: line.split("metrics are at ")[1].partition("/metrics")[0]
            for name in ("worker", "batches")
            for line in (system.log_dir / f"{name}.log").read_text().splitlines()
            if "metrics are at " in line
        }
        return [found["worker"], found["batches"]] if len(found) == 2 else None

    return wait_until(find, system.logs, 20, pause_s=0.1) or []


def test_metrics_are_prometheus_s_text_format_without_a_key(watched: System) -> None:
    response = httpx.get(f"{watched.base_url}/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    accept = "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = httpx.get(f"{watched.base_url}/metrics", headers={"Accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert response.text.endswith("# EOF\n")
    assert httpx.post(f"{watched.base_url}/metrics").status_code == 405


def test_counts_are_what_was_sent(watched: System) -> None:
    rich, poor = open_account(watched.database), open_account(watched.database, funds_cents=1)
    disabled = open_account(watched.database, payouts_enabled=False)
    revoked = open_account(watched.database)
    worker_url, _ = worker_urls(watched)
    with watched.client() as client:
        assert watched.pay(client, revoked, "user@example.com", 1).status_code == 201
        before, worker_before = read(watched.base_url), read(worker_url)
        with ThreadPoolExecutor(10) as threads:
            paid = list(threads.map(lambda i: watched.pay(client, rich, f"u{i}@example.com", 1), range(30)))
        assert {response.status_code for response in paid} == {201}
        once = {"email": "once@example.com", "amount": 5}
        keyed = rich.headers | {"Idempotency-Key": "once"}
        assert [client.post("/payout/create", json=once, headers=keyed).status_code for _ in range(3)] == [201] * 3
        other = {"email": "once@example.com", "amount": 6}
        assert client.post("/payout/create", json=other, headers=keyed).status_code == 422
        assert [watched.pay(client, poor, "user@example.com", 2).status_code for _ in range(2)] == [400] * 2
        assert watched.pay(client, disabled, "user@example.com", 2).status_code == 403
        with watched.database.transaction() as connection:
            api_keys.revoke_api_key(connection, revoked.api_key_id)
        assert watched.pay(client, revoked, "user@example.com", 1).status_code == 401
        assert client.post("/payout/create", content=b"{", headers=rich.headers).status_code == 400
    expected = {
        "allocated": 31,
        "replayed": 2,
        "idempotency_key_reused": 1,
        "insufficient_balance": 2,
        "payouts_disabled": 1,
    }
    after, worker_after = read(watched.base_url), read(worker_url)
    told, decided = grown(before, after), grown(worker_before, worker_after)
    # The revoked key may have been known to the API, or not; either way the caller was told so.
    outcomes = {name: told.get(f'payouts_allocations_total{{outcome="{name}"}}', 0) for name in expected}
    assert outcomes == expected
    assert {name: decided[f'payouts_worker_allocations_total{{outcome="{name}"}}'] for name in expected} == expected
    sent = sum(value for name, value in told.items() if name.startswith("payouts_allocations_total"))
    assert told["payouts_group_allocations_sum"] == told["payouts_allocation_seconds_count"] == sent
    assert told["payouts_waiting_seconds_count"] == sent
    assert told["payouts_group_allocations_count"] <= sent
    assert told["payouts_round_trip_seconds_count"] == told["payouts_group_allocations_count"]
    assert 0 < told["payouts_allocation_seconds_sum"] < 40 * 10
    assert decided['payouts_sql_seconds_count{work="allocations"}'] == decided["payouts_locked_seconds_count"]
    assert decided['payouts_task_seconds_count{task="payouts.allocate"}'] >= told["payouts_group_allocations_count"]
    posted = {status: told[f'payouts_http_requests_total{{method="POST",route="/payout/create",status="{status}"}}']
              for status in (201, 400, 401, 403, 422)}  # fmt: skip
    assert posted == {201: 33, 400: 3, 401: 1, 403: 1, 422: 1}
    assert told['payouts_http_request_seconds_count{method="POST",route="/payout/create"}'] == 39
    assert after["payouts_waiting_callers"] == 0
    assert (
        after['payouts_http_request_seconds_bucket{le="+Inf",method="POST",route="/payout/create"}']
        == after['payouts_http_request_seconds_count{method="POST",route="/payout/create"}']
    )


def test_routes_are_templates_and_no_path_or_method_makes_a_series(watched: System) -> None:
    account = open_account(watched.database)
    before = read(watched.base_url)
    with watched.client() as client:
        for name in ("usr_1", "usr_2", "%3Cscript%3E"):
            assert client.get(f"/payout/users/{name}", headers=account.headers).status_code == 404
        for path in ("/nothing", "/else", "/payout/create/7"):
            assert client.get(path).status_code == 404
        assert client.put("/payout/create").status_code == 405
        assert client.request("PROPFIND", "/nothing").status_code in {404, 405}
    told = {name: value for name, value in grown(before, read(watched.base_url)).items() if "requests_total" in name}
    assert told.pop('payouts_http_requests_total{method="GET",route="/payout/users/{user_id}",status="404"}') == 3
    assert told.pop('payouts_http_requests_total{method="GET",route="unmatched",status="404"}') == 3
    assert told.pop('payouts_http_requests_total{method="PUT",route="/payout/create",status="405"}') == 1
    told.pop('payouts_http_requests_total{method="GET",route="/metrics",status="200"}', None)
    (other,) = told
    assert 'method="other"' in other


def test_nobody_is_named(watched: System) -> None:
    account = open_account(watched.database, name="A Telling Name")
    with watched.client() as client:
        response = watched.pay(client, account, "q7x3v@example.com", 4711)
        client.get("/payout/users", params={"email": "q7x3v@example.com"}, headers=account.headers)
    urls = [watched.base_url, *worker_urls(watched)]
    shown = "".join(httpx.get(f"{url}/metrics").text for url in urls)
    secrets = [account.secret_key, response.json()["hash"], "q7x3v", "Telling", account.business.id.hex]
    secrets += [str(account.business.id), watched.environment["PAYOUTS_HASH_SECRET"], "postgresql://", "redis://"]
    assert [secret for secret in secrets if secret in shown] == []


def test_payout_batch_rows_are_counted(watched: System) -> None:
    account = open_account(watched.database)
    _, url = worker_urls(watched)
    before, worker_before = read(watched.base_url), read(url)
    rows = [{"email": f"u{number}@example.com", "amount": 1} for number in range(1203)]
    with watched.client() as client:
        sent = client.post("/payout/batches", json={"allocations": rows}, headers=account.headers)
    assert sent.status_code == 202
    after = wait_for(
        url, lambda now: "payouts_payout_batches_completed_total" in grown(worker_before, now), "completed"
    )
    paid = grown(worker_before, after)
    assert paid["payouts_payout_batch_rows_paid_total"] == 1203
    assert paid["payouts_payout_batches_completed_total"] == 1
    assert paid['payouts_sql_seconds_count{work="chunk"}'] >= 3
    told = wait_for(watched.base_url, lambda now: now["payouts_open_payout_batch_rows"] == 0, "no open rows")
    assert grown(before, told)["payouts_payout_batch_rows_accepted_total"] == 1203
    assert grown(before, told)["payouts_payout_batches_accepted_total"] == 1


def test_verdict_on_the_books_is_given_out_and_follows_them(watched: System) -> None:
    account = open_account(watched.database)
    told = wait_for(watched.base_url, lambda now: now.get("payouts_books_balanced") == 1, "books balance")
    assert told["payouts_books_discrepancies"] == 0
    assert told["payouts_books_verify_every_seconds"] == 1
    assert abs(time.time() - told["payouts_books_verified_timestamp_seconds"]) < 60

    def add(cents: int) -> None:
        with watched.database.transaction() as connection:
            statement = sa.text("UPDATE businesses SET payout_balance = payout_balance + :cents WHERE id = :id")
            connection.execute(statement, {"cents": cents, "id": account.business.id})

    add(1)
    wait_for(watched.base_url, lambda now: now["payouts_books_balanced"] == 0, "books do not balance")
    assert read(watched.base_url)["payouts_books_discrepancies"] == 1
    add(-1)
    again = wait_for(watched.base_url, lambda now: now["payouts_books_balanced"] == 1, "books balance again")
    assert again["payouts_books_verified_timestamp_seconds"] > told["payouts_books_verified_timestamp_seconds"]
    assert "payouts verify" in watched.logs()


def test_lost_verdict_is_found_anew_and_a_forged_one_is_no_verdict(watched: System) -> None:
    with redis.Redis.from_url(watched.environment["PAYOUTS_REDIS_URL"]) as client:
        balanced = b'{"discrepancies": 0, "ended_at_us": 4000000000000000, "took_s": 1.0}'
        for lost in (None, b"not a verdict", balanced):
            client.delete(VERDICT_KEY) if lost is None else client.set(VERDICT_KEY, lost)
            told = wait_for(watched.base_url, lambda now: now.get("payouts_books_balanced") == 1, "found anew")
            assert told['payouts_reachable{server="redis"}'] == 1


def test_scrapes_at_once_are_all_answered(watched: System) -> None:
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: read(watched.base_url), range(40)))
    assert all(
        f'payouts_queue_messages{{queue="{queue}"}}' in each for each in answers for queue in (QUEUE, BATCHES_QUEUE)
    )


@contextmanager
def stopped(system: System, name: str) -> Iterator[None]:
    """Let a process do nothing for a while; it is found by the port, since only ours has this environment."""
    pid = find_pid(system, name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def find_pid(system: System, name: str) -> int:
    for process in Path("/proc").iterdir():
        try:
            is_ours = f"PAYOUTS_DATABASE_URL={system.environment['PAYOUTS_DATABASE_URL']}".encode() in (
                process / "environ"
            ).read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_ours and any(part.startswith(f"{name}-".encode()) for part in command):
            return int(process.name)
    raise AssertionError(name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")
def test_calls_answered_429_are_counted_by_what_there_was_too_much_of(servers: Servers) -> None:
    with run_valkey() as valkey:
        own = Servers(servers.postgres_url, valkey.url)
        with run_system(own, rate_limit_per_s="1", rate_limit_burst="5", waiting_max="1") as system:
            eager, others = open_account(system.database), open_account(system.database)
            with system.client() as client:
                statuses = [client.get("/balance", headers=eager.headers).status_code for _ in range(8)]
                assert statuses.count(429) >= 1
                assert system.pay(client, others, "user@example.com", 1).status_code == 201
                with ThreadPoolExecutor(1) as threads:
                    with stopped(system, "worker"):
                        waiting = threads.submit(system.pay, client, others, "user@example.com", 1)
                        told = wait_for(system.base_url, lambda now: now["payouts_waiting_callers"] == 1, "one waits")
                        assert system.pay(client, others, "user@example.com", 1).status_code == 429
                    assert waiting.result().status_code in {201, 500}
            more = grown(told, read(system.base_url))
            assert more['payouts_too_many_requests_total{reason="waiting"}'] == 1
            assert told['payouts_too_many_requests_total{reason="rate_limit"}'] == statuses.count(429)
            told = wait_for(system.base_url, lambda now: now["payouts_waiting_callers"] == 0, "nobody waits")
            assert told['payouts_http_requests_total{method="GET",route="/balance",status="429"}'] == statuses.count(
                429
            )


@pytest.mark.timeout(300)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")
def test_stopped_workers_show_as_old_messages_resends_and_resolves(servers: Servers) -> None:
    """And what is sent meanwhile is expired, also when the workers come back and find the messages."""
    port = find_metrics_base()
    with run_valkey() as valkey:
        own = Servers(servers.postgres_url, valkey.url)
        with run_system(own, metrics_port=str(port), reply_timeout_s="4", batch_stalled_after_s="1") as system:
            account = open_account(system.database)
            worker_url, batches_url = worker_urls(system)
            rows = [{"email": "user@example.com", "amount": 1}] * 7
            with system.client() as client, stopped(system, "worker"), stopped(system, "batches"):
                before = read(system.base_url)
                assert before['payouts_reachable{server="broker"}'] == 1
                sent = client.post("/payout/batches", json={"allocations": rows}, headers=account.headers)
                assert sent.status_code == 202
                assert system.pay(client, account, "user@example.com", 1).status_code == 500
                told = wait_for(
                    system.base_url,
                    lambda now: min(
                        now[f'payouts_queue_oldest_message_age_seconds{{queue="{queue}"}}']
                        for queue in (QUEUE, BATCHES_QUEUE)
                    ) > 3,
                    "old messages",
                )  # fmt: skip
                # The worker's hand may hold one of the messages that were sent, but not all copies.
                assert told[f'payouts_queue_messages{{queue="{QUEUE}"}}'] >= 1
                assert told[f'payouts_queue_messages{{queue="{BATCHES_QUEUE}"}}'] >= 1
                assert told['payouts_open_payout_batches{status="queued"}'] == 1
                assert told["payouts_open_payout_batch_rows"] == 7
                assert told["payouts_payout_batch_idle_seconds"] > 2
                more = grown(before, told)
                assert more["payouts_resends_total"] >= 2
                assert more['payouts_resolutions_total{result="never"}'] == 1
                assert more['payouts_allocations_total{outcome="expired"}'] == 1
                assert more['payouts_http_requests_total{method="POST",route="/payout/create",status="500"}'] == 1
                assert more["payouts_round_trip_age_seconds"] > 3
                older = wait_for(
                    system.base_url,
                    lambda now: (
                        now[f'payouts_queue_oldest_message_age_seconds{{queue="{QUEUE}"}}']
                        > told[f'payouts_queue_oldest_message_age_seconds{{queue="{QUEUE}"}}'] + 1
                    ),
                    "it grows",
                )
                assert "payouts_reversals_total" not in grown(before, older)
            after = wait_for(
                system.base_url,
                lambda now: (
                    now[f'payouts_queue_messages{{queue="{QUEUE}"}}']
                    == now[f'payouts_queue_messages{{queue="{BATCHES_QUEUE}"}}']
                    == now["payouts_open_payout_batch_rows"]
                    == 0
                ),
                "all is worked off",
            )
            assert after[f'payouts_queue_oldest_message_age_seconds{{queue="{QUEUE}"}}'] == 0
            assert read(worker_url)['payouts_worker_allocations_total{outcome="expired"}'] >= 2
            assert read(batches_url)["payouts_payout_batch_rows_paid_total"] == 7


def test_idle_system_tells_a_worker_that_consumes_from_none(servers: Servers) -> None:
    """Without a call, an empty group goes through the queue; nobody asks for health here."""
    with run_valkey() as valkey, run_system(Servers(servers.postgres_url, valkey.url)) as system:
        seen = wait_for(system.base_url, lambda now: now["payouts_round_trip_age_seconds"] > 9, "idle")
        assert grown(seen, read(system.base_url)).get("payouts_allocations_total") is None
        wait_for(system.base_url, lambda now: now["payouts_round_trip_age_seconds"] < 5, "a round trip of its own")


def test_broker_that_is_gone_leaves_no_sample_of_queues(servers: Servers) -> None:
    with run_valkey() as valkey:
        own = Servers(servers.postgres_url, valkey.url)
        with run_system(own) as system:
            assert read(system.base_url)[f'payouts_queue_messages{{queue="{QUEUE}"}}'] >= 0
            valkey.stop()
            told = wait_for(system.base_url, lambda now: now['payouts_reachable{server="broker"}'] == 0, "gone")
            assert not any(name.startswith("payouts_queue_") for name in told)
            assert not any(name.startswith("payouts_books_balanced") for name in told)
            assert told['payouts_reachable{server="redis"}'] == 0
            assert told['payouts_reachable{server="database"}'] == 1
            assert told["payouts_replies_subscribed"] == 0
            valkey.start()
            wait_for(system.base_url, lambda now: now['payouts_reachable{server="broker"}'] == 1, "back")


def test_workers_take_the_next_free_port_and_go_on_without_one(servers: Servers, watched: System) -> None:
    first = int(worker_urls(watched)[0].rpartition(":")[2])
    urls = worker_urls(watched)
    assert len(set(urls)) == 2
    assert all(0 <= int(url.rpartition(":")[2]) - min(first, int(urls[1].rpartition(":")[2])) < PORTS for url in urls)
    with run_valkey() as valkey:
        own = Servers(servers.postgres_url, valkey.url)
        # An address that this machine does not have.
        with run_system(own, metrics_port=str(first), metrics_host="203.0.113.1") as system:
            account = open_account(system.database)
            with system.client() as client:
                assert system.pay(client, account, "user@example.com", 1).status_code == 201
            assert f"no metrics are served on the ports {first} to {first + PORTS - 1}: " in system.logs()


def test_prefork_pool_serves_no_metrics_and_says_so(watched: System) -> None:
    port = find_metrics_base()
    command = ["celery", "--quiet", "--app", "workers.main", "worker", "--queues", "nothing", "--pool", "prefork"]
    environment = watched.environment | {"PAYOUTS_METRICS_PORT": str(port)}
    process = subprocess.Popen(
        [*command, "--concurrency", "2", "--loglevel", "INFO", "--hostname", f"prefork-{port}@%h"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "ready." in line:
                break
        assert any("no metrics are served: tasks run in other processes" in line for line in lines), lines
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_several_api_processes_behind_one_port_answer_for_all(watched: System) -> None:
    port = find_free_port()
    account = open_account(watched.database)
    uvicorn = [
        "uvicorn",
        "--factory",
        "api.app:create_app_from_environment",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        [*uvicorn, "--no-access-log", "--log-level", "warning", "--workers", "3"], env=watched.environment
    )
    url = f"http://127.0.0.1:{port}"
    pay = {
        "url": f"{url}/payout/create",
        "json": {"email": "user@example.com", "amount": 1},
        "headers": account.headers,
    }
    try:
        wait_until_ready(url)
        for _ in range(40):  # each over a connection of its own, for any of the processes
            assert httpx.post(**pay).status_code == 201  # type: ignore[arg-type]
        told = wait_for(
            url, lambda now: now['payouts_allocations_total{outcome="allocated"}'] == 40, "all are counted", 10
        )
        assert told['payouts_api_pool_connections_max{pool="calls"}'] == 3 * 8
        assert told["payouts_allocation_seconds_count"] == 40
        assert told["payouts_batch_allocations_count"] == told["payouts_group_allocations_count"] > 0
        assert not any(name.startswith(("process_", "payouts_worker_", "payouts_task_")) for name in told)
        assert {read(url)['payouts_allocations_total{outcome="allocated"}'] for _ in range(12)} == {40}
        assert all(f'payouts_queue_messages{{queue="{QUEUE}"}}' in read(url) for _ in range(6))
        # One dies: what it counted stays, its gauges go, and another takes its place.
        children = child_pids(process.pid)
        os.kill(children[0], signal.SIGKILL)
        wait_until(
            lambda: children[0] not in child_pids(process.pid) and len(child_pids(process.pid)) >= len(children),
            "another takes its place",
            30,
            pause_s=0.2,
        )
        wait_for_all(url, 'payouts_api_pool_connections_max{pool="calls"}', 24)
        assert read(url)['payouts_allocations_total{outcome="allocated"}'] == 40
    finally:
        process.terminate()
        process.wait(30)


def wait_for_all(url: str, name: str, value: float) -> None:
    wait_until(lambda: read(url)[name] == value, name, 30, passing=(httpx.TransportError,), pause_s=0.2)


def child_pids(pid: int) -> list[int]:
    """The serving processes: uvicorn's children that run our code, not Python's own resource tracker."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if fields[1] == str(pid) and fields[0] != "Z" and b"spawn_main" in command:
            found.append(int(path.name))
    return sorted(found)
