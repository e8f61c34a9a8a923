"""A new version is rolled out: processes are replaced one by one under load."""

import time

import pytest

from tests.chaos.cluster import run_cluster
from tests.chaos.faults import rows_held
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import Load, steady_load, unexpected

ROUNDS = 3


@pytest.mark.overlap(seconds=25)
def test_replacing_workers_one_by_one_under_load_costs_no_error() -> None:
    with run_cluster() as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(64)
            for number in range(ROUNDS):
                old = cluster.workers[number]
                cluster.wait_until_ready(cluster.start(f"worker-{number + 3}"))
                old.terminate()
                assert old.wait() == 0
                load.wait_for_answers(64)
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, load.answers)


def take_turns(load: Load) -> None:
    load.follows_rotation = True


@pytest.mark.overlap(seconds=25)
def test_replacing_api_processes_one_by_one_under_load_costs_no_error() -> None:
    with run_cluster(webs=2) as cluster:
        with steady_load(cluster, arrange=take_turns) as load:
            load.wait_for_answers(64)
            for name in ["web-1", "web-2", "web-1"]:
                web = cluster.processes[name]
                with rows_held(cluster):  # so that calls are under way in it
                    time.sleep(0.5)
                    load.rotation = [other for other in ("web-1", "web-2") if other != name]
                    time.sleep(0.1)  # calls that chose it before have been sent
                    web.terminate()
                    asked_at = time.monotonic()
                    time.sleep(0.1)
                web.wait()
                finished = [
                    each for each in load.answers if each.web == name and each.started_at < asked_at < each.ended_at
                ]
                assert finished, "no call was under way"
                web.start()
                cluster.wait_until_ready(web)
                load.rotation = ["web-1", "web-2"]
                load.wait_for_answers(64)
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, load.answers)
