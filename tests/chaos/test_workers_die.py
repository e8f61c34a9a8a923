"""Workers are killed, stopped, woken, or not there at all."""

import time

import pytest

from tests.chaos.cluster import run_cluster
from tests.chaos.faults import stop_worker_that_holds_a_row
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import CLIENTS, slowest_s, steady_load, unexpected
from tests.chaos.test_servers_die import ANSWER_WITHIN_S

KILLS = 3


def test_killing_one_of_two_workers_in_its_transaction_again_and_again_costs_no_error_and_three_seconds() -> None:
    with run_cluster() as cluster:
        # A refusal of a batch that was sent twice is told at the deadline, so all businesses have money here.
        with steady_load(cluster, has_poor_business=False) as load:
            load.wait_for_answers(100)
            for _ in range(KILLS):
                worker = stop_worker_that_holds_a_row(cluster)
                worker.kill()
                time.sleep(1)  # as `payouts up` waits
                worker.start()
                cluster.wait_until_ready(worker)
                load.wait_for_answers(100)
        assert not unexpected(load, {201})
        assert slowest_s(load.answers) <= 3
        assert_history_is_what_clients_were_told(cluster, load.answers)


@pytest.mark.overlap(seconds=25)
def test_worker_stopped_for_ten_seconds_while_it_holds_the_row_is_not_noticed_and_writes_nothing_twice() -> None:
    with run_cluster() as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            worker = stop_worker_that_holds_a_row(cluster)
            time.sleep(10)
            worker.go_on()
            load.wait_for_answers(200)
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, load.answers)


@pytest.mark.overlap(seconds=25)
def test_without_any_worker_every_call_is_answered_500_and_is_never_paid() -> None:
    with run_cluster(workers=0) as cluster:
        with steady_load(cluster) as load:
            early = load.wait_for_answers(CLIENTS, timeout_s=15)
            assert not unexpected(load, {500}, early)
            for name in ("worker-1", "worker-2"):
                cluster.start(name)
            cluster.wait_until_ready()
            ready_at = time.monotonic()
            calm = load.wait_for_answers(100, since=ready_at)
            assert not unexpected(load, {201}, calm)
        assert not unexpected(load, {201, 500})
        assert slowest_s(load.answers) <= ANSWER_WITHIN_S
        assert_history_is_what_clients_were_told(cluster, load.answers)
