"""Processes of the release before, and of one to come, beside today's."""

import asyncio
import time

import pytest

from core.ids import new_id
from tests import previous_release
from tests.chaos.cluster import Cluster, run_cluster
from tests.chaos.history import assert_history_is_what_clients_were_told, read_history
from tests.chaos.load import CLIENTS, Answer, Connection, Load, call, steady_load, unexpected
from tests.chaos.test_messages import make_allocation, reply_to
from tests.servers import ROOT, Account
from workers.app import QUEUE

MINUTE_US = 60_000_000


def send_as_the_release_before(cluster: Cluster, account: Account, email: str, *, late_us: int = -MINUTE_US) -> str:
    """Put a message on the queue as an API process of that release does; return its task id."""
    today = make_allocation(cluster, account, email, late_us=late_us)
    allocation = previous_release.Allocation(
        today.id, today.business_id, today.api_key_id, email, today.amount_cents, today.deadline_us
    )
    task_id = f"api-{new_id().hex}"
    with cluster.redis() as client:
        sealed = previous_release.seal([allocation], cluster.settings.hash_secret_bytes)
        client.lpush(QUEUE, previous_release.task(task_id, sealed))
    return task_id


@pytest.mark.overlap(seconds=10)
def test_worker_carries_out_what_an_api_process_of_the_release_before_sends() -> None:
    with run_cluster(workers=1) as cluster:
        account = cluster.open_account()
        assert reply_to(cluster, send_as_the_release_before(cluster, account, "a@example.com")) == ["allocated"]
        late = send_as_the_release_before(cluster, account, "late@example.com", late_us=MINUTE_US)
        assert reply_to(cluster, late) == ["expired"]
        assert [entry.email for entry in read_history(cluster.database)] == ["a@example.com"]


@pytest.mark.overlap(seconds=25)
def test_api_process_of_a_release_whose_messages_no_worker_knows_pays_nothing_and_disturbs_no_other() -> None:
    future = {"PYTHONPATH": str(ROOT / "tests" / "chaos" / "future")}
    with run_cluster(webs=1) as cluster:
        newer = cluster.start("web-2", **future)

        async def ask(account: Account, email: str) -> Answer:
            connection = Connection()
            try:
                return await call(connection, account, newer.name, cluster.ports[newer.name], email, 100)
            finally:
                connection.close()

        async def ask_three(account: Account) -> list[Answer]:
            return await asyncio.gather(*(ask(account, f"{number}@example.com") for number in range(3)))

        def use_today(load: Load) -> None:
            load.rotation = ["web-1"]

        with steady_load(cluster, arrange=use_today) as load:
            load.wait_for_answers(CLIENTS)
            answers: list[Answer] = []
            give_up_at = time.monotonic() + 30
            while not answers or any(not answer.was_sent for answer in answers):  # until it listens
                assert time.monotonic() < give_up_at
                answers = asyncio.run(ask_three(load.accounts[0]))
            load.wait_for_answers(CLIENTS)
        assert [answer.status for answer in answers] == [500] * 3
        assert not unexpected(load, {201})
        log = "".join(worker.log.read_text() for worker in cluster.workers)
        assert "a message was dropped: the message has an unknown version" in log
        assert "Traceback" not in log
        assert_history_is_what_clients_were_told(cluster, [*load.answers, *answers])
