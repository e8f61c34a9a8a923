"""What was answered 500 is never paid: whichever processes end, whatever clocks do, whenever a commit goes through."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from core.batches.payout_batch import BatchStatus
from tests.chaos.cluster import Cluster, run_cluster
from tests.chaos.faults import kill_valkey, terminate_sessions
from tests.chaos.load import Answer, Connection, call
from tests.chaos.test_servers_die import ANSWER_WITHIN_S
from tests.polling import wait_until
from tests.servers import Account, verify_books

CALLERS = 100
FINISHED_WITHIN_S = 60.0

_STANDING = sa.text("""
    SELECT count(*) FROM payout_transactions AS allocation
    WHERE business_id = :id AND type = 'allocation' AND NOT EXISTS (
        SELECT FROM payout_transactions AS reversal
        WHERE reversal.business_id = allocation.business_id AND reversal.reversed_id = allocation.id
    )
""")
_WRITTEN = sa.text("SELECT count(*) FROM payout_transactions WHERE business_id = :id AND type = 'allocation'")
_COMMITS_THAT_WAIT = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
_BALANCES = sa.text("SELECT payout_balance, reserved_balance FROM businesses WHERE id = :id")
_BATCHES = sa.text("SELECT status, processed FROM payout_batches WHERE business_id = :id")


@contextmanager
def commits_hanging(cluster: Cluster) -> Iterator[None]:
    """Have each commit wait for a standby that does not exist; at the end, they all go through."""
    _set_standby(cluster, "nobody")
    try:
        yield
    finally:
        _set_standby(cluster, "")


def _set_standby(cluster: Cluster, name: str) -> None:
    with cluster.server.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'"))
        connection.execute(sa.text("SELECT pg_reload_conf()"))


def count_commits_that_wait(cluster: Cluster) -> int:
    with cluster.server.engine.connect() as connection:
        return int(connection.execute(_COMMITS_THAT_WAIT).scalar_one())


def read(cluster: Cluster, query: sa.TextClause, account: Account) -> Sequence[Any]:
    with cluster.database.engine.connect() as connection:
        return connection.execute(query, {"id": account.business.id}).all()


def ask_all(cluster: Cluster, account: Account, *, callers: int = CALLERS) -> "Future[list[Answer]]":
    """Have callers ask for one allocation each, all at once."""

    async def ask(number: int) -> Answer:
        host, port = cluster.address("web-1")
        connection = Connection()
        try:
            return await call(connection, account, "web-1", port, f"caller.{number}@example.com", 7, host=host)
        finally:
            connection.close()

    async def run() -> list[Answer]:
        return await asyncio.gather(*(ask(number) for number in range(callers)))

    executor = ThreadPoolExecutor(1)
    future = executor.submit(lambda: asyncio.run(run()))
    executor.shutdown(wait=False)
    return future


def assert_all_were_answered_500(answers: list[Answer]) -> None:
    assert {answer.status for answer in answers} == {500}
    assert max(answer.seconds for answer in answers) <= ANSWER_WITHIN_S


def assert_nothing_is_debited(cluster: Cluster, account: Account) -> None:
    """It may have been for a while: what had committed is taken back, and does not come again."""
    wait_until(lambda: read(cluster, _STANDING, account) == [(0,)], "nothing stands debited", FINISHED_WITHIN_S)
    time.sleep(3)
    assert read(cluster, _STANDING, account) == [(0,)]
    assert read(cluster, _BALANCES, account) == [(account.business.payout_balance, 0)]
    books = verify_books(cluster.database)
    assert books.balanced, books.discrepancies


def run_command(cluster: Cluster, *arguments: str) -> tuple[int, Any]:
    payouts = Path(sys.executable).parent / "payouts"
    done = subprocess.run(
        [payouts, *arguments, "--json"], env=cluster.environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, json.loads(done.stdout)


def ids_in_log(text: str) -> set[str]:
    """Return the allocations that lines about unresolved 500s name."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    named = [line["allocation_ids"] for line in lines if "before they are resolved" in line["message"]]
    return {id_ for ids in named for id_ in ids}


def ids_answered_in_doubt(text: str) -> set[str]:
    """Return the allocations whose requests, by their lines, were answered 500 before they were certain."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    found = {line["allocation_id"] for line in lines if line.get("outcome") == "failed" and line.get("status") == 500}
    assert found, "no call was in doubt"
    return found


@pytest.mark.overlap(seconds=45)
@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_the_next_process_finishes_what_the_last_one_answered_500(end: str) -> None:
    with run_cluster() as cluster:
        account = cluster.open_account()
        web = cluster.processes["web-1"]
        with commits_hanging(cluster):
            answers = ask_all(cluster, account).result()
            assert_all_were_answered_500(answers)
            assert count_commits_that_wait(cluster), "no commit was in doubt"
            web.signal(signal.Signals[end])
            web.wait()
            code, listed = run_command(cluster, "resolve", "--list")
            assert code == 0
            in_doubt = {each["id"] for each in listed["in_doubt"]}
            assert in_doubt
            if end == "SIGTERM":  # SIGKILL takes the last 0.1 s of the log with it
                log = web.log.read_text()
                assert ids_in_log(log) == ids_answered_in_doubt(log) == in_doubt
        wait_until(lambda: read(cluster, _WRITTEN, account) != [(0,)], "a commit went through", 10)
        web.start()
        cluster.wait_until_ready(web)
        assert_nothing_is_debited(cluster, account)
        wait_until(lambda: run_command(cluster, "resolve", "--list")[1]["in_doubt"] == [], "all is finished", 30)


@pytest.mark.overlap(seconds=45)
def test_a_worker_finishes_what_was_answered_500_while_no_api_process_comes_back() -> None:
    with run_cluster(batches=1, beats=1) as cluster:
        account = cluster.open_account()
        with commits_hanging(cluster):
            assert_all_were_answered_500(ask_all(cluster, account).result())
            cluster.processes["web-1"].kill()
        assert_nothing_is_debited(cluster, account)


@pytest.mark.overlap(seconds=45)
def test_a_command_finishes_what_was_answered_500_while_nothing_else_runs() -> None:
    with run_cluster() as cluster:
        account = cluster.open_account()
        with commits_hanging(cluster):
            assert_all_were_answered_500(ask_all(cluster, account).result())
            for process in cluster.processes.values():
                process.kill()
        code, listed = run_command(cluster, "resolve", "--list")
        assert code == 0
        in_doubt = {each["id"] for each in listed["in_doubt"]}
        assert in_doubt
        code, result = run_command(cluster, "resolve")
        assert code == 0
        assert set(result["finished"]) == in_doubt
        assert_nothing_is_debited(cluster, account)


@pytest.mark.overlap(seconds=60)
def test_host_that_dies_with_redis_and_database_out_of_reach_costs_nothing() -> None:
    with run_cluster(proxied=True) as cluster:
        assert cluster.links is not None
        account = cluster.open_account()
        with commits_hanging(cluster):
            asking = ask_all(cluster, account)
            wait_until(lambda: count_commits_that_wait(cluster), "a commit hangs", 5)
            kill_valkey(cluster)
            cluster.links.api_postgres.cut()
            assert_all_were_answered_500(asking.result())
            for process in cluster.processes.values():
                process.kill()
        cluster.links.api_postgres.restore()
        wait_until(lambda: read(cluster, _WRITTEN, account) != [(0,)], "a commit went through", 10)
        cluster.valkey.start()
        for process in cluster.processes.values():
            process.start()
        cluster.wait_until_ready()
        assert_nothing_is_debited(cluster, account)


@pytest.mark.overlap(seconds=45)
def test_nothing_that_was_answered_500_is_paid_after_the_databases_clock_was_set_back() -> None:
    with run_cluster() as cluster:
        account = cluster.open_account()
        for worker in cluster.workers:
            worker.stop()
        answers = ask_all(cluster, account, callers=20).result()
        assert_all_were_answered_500(answers)
        set_clock_back(cluster, minutes=1)
        for worker in cluster.workers:
            worker.go_on()
        cluster.wait_until_queue_is_empty()
        assert_nothing_is_debited(cluster, account)
        assert read(cluster, _WRITTEN, account) == [(0,)], "it was paid, and reversed"
        # New calls get deadlines beyond what was refused, though the clock is behind it.
        wait_until(lambda: ask_all(cluster, account, callers=1).result()[0].status == 201, "calls are paid", 15)
        later = ask_all(cluster, account, callers=20).result()
        assert {answer.status for answer in later} == {201}


def set_clock_back(cluster: Cluster, *, minutes: int) -> None:
    """Have every session find a clock that is behind."""
    with cluster.database.transaction() as connection:
        connection.execute(sa.text("CREATE SCHEMA past"))
        connection.execute(
            sa.text(
                "CREATE FUNCTION past.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE "
                f"AS $$ SELECT pg_catalog.clock_timestamp() - interval '{minutes} minutes' $$"
            )
        )
        connection.execute(sa.text("ALTER DATABASE payouts SET search_path = past, public, pg_catalog"))
    terminate_sessions(cluster)
    cluster.database.close()


@pytest.mark.overlap(seconds=80)
def test_batch_that_was_answered_500_is_never_paid_though_its_commit_goes_through() -> None:
    with run_cluster(proxied=True, batches=1, beats=1) as cluster:
        assert cluster.links is not None
        account = cluster.open_account()
        with commits_hanging(cluster):
            asking = send_batch_in_background(cluster, account)
            wait_until(lambda: count_commits_that_wait(cluster), "the commit hangs", 10)
            cluster.links.api_postgres.refuse()
            cut_at = time.monotonic()
            time.sleep(5)
        # The commit went through; workers are alive and could pay it.
        wait_until(lambda: read(cluster, _BATCHES, account), "the batch is there", 10)
        while not asking.done() or time.monotonic() < cut_at + 25:
            assert read(cluster, _BATCHES, account) == [(BatchStatus.QUEUED, 0)]
            time.sleep(0.5)
        cluster.links.api_postgres.restore()
        assert asking.result().status_code == 500
        wait_until(
            lambda: read(cluster, _BATCHES, account) == [(BatchStatus.CANCELLED, 0)],
            "it is cancelled",
            FINISHED_WITHIN_S,
        )
        assert_nothing_is_debited(cluster, account)
        assert read(cluster, _WRITTEN, account) == [(0,)]


@pytest.mark.overlap(seconds=80)
def test_batch_whose_api_process_is_killed_before_it_answers_is_not_paid_unless_it_is_sent_again() -> None:
    with run_cluster(batches=1, beats=1) as cluster:
        account = cluster.open_account()
        with commits_hanging(cluster):
            asking = send_batch_in_background(cluster, account, key="march")
            wait_until(lambda: count_commits_that_wait(cluster), "the commit hangs", 10)
            cluster.processes["web-1"].kill()
            with pytest.raises(httpx.TransportError):
                asking.result()
        wait_until(lambda: read(cluster, _BATCHES, account), "the batch is there", 10)
        time.sleep(15)  # the periodic task looks for batches on which nobody works every 10 s
        assert read(cluster, _BATCHES, account) == [(BatchStatus.QUEUED, 0)]
        cluster.processes["web-1"].start()
        cluster.wait_until_ready(cluster.processes["web-1"])
        again = send_batch(cluster, account, "march")
        assert again.status_code == 202
        assert again.headers["idempotent-replayed"] == "true"
        wait_until(lambda: read(cluster, _BATCHES, account) == [(BatchStatus.COMPLETED, 3)], "it is paid", 20)
        assert verify_books(cluster.database).balanced


def send_batch(cluster: Cluster, account: Account, key: str | None = None) -> httpx.Response:
    host, port = cluster.address("web-1")
    rows = [{"email": f"row.{number}@example.com", "amount": 5} for number in range(3)]
    headers = account.headers | ({"Idempotency-Key": key} if key else {})
    url = f"http://{host}:{port}/payout/batches"
    return httpx.post(url, json={"allocations": rows}, headers=headers, timeout=120, trust_env=False)


def send_batch_in_background(cluster: Cluster, account: Account, key: str | None = None) -> "Future[httpx.Response]":
    executor = ThreadPoolExecutor(1)
    future = executor.submit(send_batch, cluster, account, key)
    executor.shutdown(wait=False)
    return future


@pytest.mark.overlap(seconds=25)
def test_everything_that_was_logged_before_the_end_is_in_the_log() -> None:
    with run_cluster() as cluster:
        account = cluster.open_account()
        web = cluster.processes["web-1"]
        answers = ask_all(cluster, account, callers=50).result()
        assert {answer.status for answer in answers} == {201}
        web.terminate()
        web.wait()
        logged = re.findall(r'"route":"/payout/create"', web.log.read_text())
        assert len(logged) == 50
