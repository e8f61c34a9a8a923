"""Redis behind Sentinels, for broker, replies and locks: the primary is killed, and its replica takes over."""

import time

import pytest

from tests.chaos.cluster import run_cluster
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import slowest_s, steady_load, unexpected
from tests.chaos.test_servers_die import ANSWER_WITHIN_S, assert_recovered
from tests.sentinel import run_sentinels


@pytest.mark.overlap(seconds=50)
def test_killed_primary_whose_replica_takes_over_costs_no_money() -> None:
    with run_sentinels() as sentinels, run_cluster(redis_url=sentinels.url, rate_limit_per_s="100000") as cluster:
        with steady_load(cluster) as load:
            for _ in range(2):
                load.wait_for_answers(150)
                killed = sentinels.primary_port()
                sentinels.fail_over()
                assert_recovered(load, time.monotonic())
                sentinels.start_server(killed)
                sentinels.wait_until_complete()
        assert not unexpected(load, {201, 500})
        assert slowest_s(load.answers) <= ANSWER_WITHIN_S
        assert any(answer.status == 400 for answer in load.answers), "the poor business never ran out of money"
        assert all(worker.is_running() for worker in cluster.workers)
        assert "Traceback" not in cluster.logs()
        assert_history_is_what_clients_were_told(cluster, load.answers)
