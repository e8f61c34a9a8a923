"""API processes are killed, and callers hang up."""

import time

import pytest

from tests.chaos.cluster import run_cluster
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import CLIENTS, steady_load, unexpected


@pytest.mark.overlap(seconds=20)
def test_killing_an_api_process_breaks_its_open_connections_and_touches_no_others() -> None:
    with run_cluster(webs=2) as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            killed = cluster.processes["web-1"]
            killed_at = time.monotonic()
            killed.kill()
            time.sleep(1)
            killed.start()
            cluster.wait_until_ready(killed)
            ready_at = time.monotonic()
            calm = load.wait_for_answers(200, since=ready_at)
            assert {answer.web for answer in calm} == {"web-1", "web-2"}
            assert not unexpected(load, {201}, calm)
        assert not unexpected(load, {201}, [answer for answer in load.answers if answer.web == "web-2"])
        assert not unexpected(load, {201, None})
        lost = [answer for answer in load.answers if answer.status is None]
        assert lost, "nobody was connected to the killed process"
        assert all(answer.started_at <= ready_at and answer.ended_at >= killed_at for answer in lost)
        # Those whose connection was open; later calls find nobody who listens, and are not sent.
        assert sum(answer.was_sent for answer in lost) <= CLIENTS // 2
        assert_history_is_what_clients_were_told(cluster, load.answers)


@pytest.mark.overlap(seconds=15)
def test_clients_that_hang_up_before_the_answer_leave_consistent_books() -> None:
    with run_cluster() as cluster:
        with steady_load(cluster, hangs_up=True) as load:
            load.wait_for_answers(800)
        assert not unexpected(load, {201, None})
        assert sum(answer.status is None for answer in load.answers) > 100
        assert_history_is_what_clients_were_told(cluster, load.answers)
