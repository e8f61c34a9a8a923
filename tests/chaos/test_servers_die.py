"""PostgreSQL or Valkey is killed, and comes back soon, late, or in the hands of somebody else."""

import time

import pytest

from tests.chaos.cluster import Cluster, run_cluster
from tests.chaos.faults import kill_postgres, kill_valkey, locks_being_deleted, sleep_until
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import Load, slowest_s, steady_load, unexpected

ANSWER_WITHIN_S = 10.0
BACK_TO_NORMAL_AFTER_S = 6.0
"""From the end of a fault on, calls that begin later than this see nothing of it."""


def assert_recovered(load: Load, restored_at: float) -> None:
    """Let calls go on until they see nothing of the fault any more."""
    calm = load.wait_for_answers(64, since=restored_at + BACK_TO_NORMAL_AFTER_S, timeout_s=40)
    assert not unexpected(load, {201}, calm)


@pytest.mark.overlap(seconds=20)
def test_killed_valkey_that_returns_empty_after_a_second_is_not_noticed() -> None:
    with run_cluster() as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            kill_valkey(cluster)
            time.sleep(1)
            cluster.valkey.start()
            assert_recovered(load, time.monotonic())
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, load.answers)


@pytest.mark.overlap(seconds=20)
def test_killed_postgres_that_recovers_within_two_seconds_is_not_noticed() -> None:
    with run_cluster() as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            kill_postgres(cluster)
            time.sleep(1)
            cluster.postgres.start()
            assert_recovered(load, time.monotonic())
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, load.answers)


@pytest.mark.overlap(seconds=45)
@pytest.mark.parametrize("server", ["valkey", "postgres"])
def test_server_that_is_gone_for_twenty_seconds_costs_errors_but_no_money(server: str) -> None:
    with run_cluster() as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            back_at = time.monotonic() + 20
            if server == "valkey":
                kill_valkey(cluster)
            else:
                kill_postgres(cluster)
            sleep_until(back_at)
            start(cluster, server)
            assert_recovered(load, time.monotonic())
        assert not unexpected(load, {201, 500})
        assert any(answer.status == 500 for answer in load.answers), "the fault was not felt"
        assert slowest_s(load.answers) <= ANSWER_WITHIN_S
        assert_history_is_what_clients_were_told(cluster, load.answers)


def start(cluster: Cluster, server: str) -> None:
    if server == "valkey":
        cluster.valkey.start()
    else:
        cluster.postgres.start()


@pytest.mark.overlap(seconds=15)
def test_losing_every_lock_every_50_ms_overdraws_nothing() -> None:
    with run_cluster(webs=2) as cluster:  # two, so that batches of the same business meet
        with steady_load(cluster, think_s=0.1) as load, locks_being_deleted(cluster, every_s=0.05) as deleted:
            load.wait_for_answers(1_000)
        assert sum(deleted) > 0, "there was no lock to delete"
        assert not unexpected(load, {201})
        assert any(answer.status == 400 for answer in load.answers), "the poor business never ran out of money"
        assert_history_is_what_clients_were_told(cluster, load.answers)
