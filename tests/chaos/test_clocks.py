"""The clocks of API and worker are wrong by a minute."""

import re
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.chaos.cluster import Process, run_cluster
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import CLIENTS, slowest_s, steady_load, unexpected
from tests.chaos.test_servers_die import ANSWER_WITHIN_S

OFFSETS_S = {"web-1": 60, "web-2": -60, "worker-1": 60, "worker-2": -60}


def worker_clock_is_off_by_s(worker: Process) -> float:
    """Compare the time in the last line of its log with the time at which that was written."""
    stamps = re.findall(r'^{"time":"([^"]+)"', worker.log.read_text(), re.MULTILINE)
    return datetime.fromisoformat(stamps[-1]).timestamp() - worker.log.stat().st_mtime


@pytest.mark.overlap(seconds=30)
def test_clocks_that_are_off_by_a_minute_change_nothing() -> None:
    environments = {
        name: {"PYTHONPATH": str(Path(__file__).parent / "clock"), "CHAOS_CLOCK_OFFSET_S": str(offset_s)}
        for name, offset_s in OFFSETS_S.items()
    }
    with run_cluster(webs=2, environments=environments) as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(400)
        off_by_s = {answer.web: answer.server_time - time.time() for answer in load.answers[-CLIENTS:]}
        assert off_by_s == {name: pytest.approx(OFFSETS_S[name], abs=15) for name in ("web-1", "web-2")}
        assert {worker.name: worker_clock_is_off_by_s(worker) for worker in cluster.workers} == {
            name: pytest.approx(OFFSETS_S[name], abs=15) for name in ("worker-1", "worker-2")
        }
        assert not unexpected(load, {201})
        assert slowest_s(load.answers) < 3
        # Nor do workers pay what they find past its deadline.
        for worker in cluster.workers:
            worker.stop()
        with steady_load(cluster) as late:
            late.wait_for_answers(CLIENTS, timeout_s=15)
            for worker in cluster.workers:
                worker.go_on()
        assert not unexpected(late, {201, 500})
        assert any(answer.status == 500 for answer in late.answers)
        assert slowest_s(late.answers) <= ANSWER_WITHIN_S
        assert_history_is_what_clients_were_told(cluster, load.answers + late.answers)
