"""The network between two parts is cut: nothing gets through, or connections are refused."""

import time

import pytest

from tests.chaos.cluster import run_cluster
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import slowest_s, steady_load, unexpected
from tests.chaos.test_servers_die import ANSWER_WITHIN_S, assert_recovered

CUT_S = 10.0


@pytest.mark.overlap(seconds=35)
@pytest.mark.parametrize("link", ["api_postgres", "worker_postgres", "api_valkey", "worker_valkey"])
@pytest.mark.parametrize("how", ["cut", "refuse"])
def test_network_cut_for_ten_seconds_costs_errors_but_no_money(link: str, how: str) -> None:
    with run_cluster(proxied=True) as cluster:
        proxy = getattr(cluster.links, link)
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            getattr(proxy, how)()
            time.sleep(CUT_S)
            proxy.restore()
            assert_recovered(load, time.monotonic())
        assert not unexpected(load, {201, 500})
        assert slowest_s(load.answers) <= ANSWER_WITHIN_S
        assert_history_is_what_clients_were_told(cluster, load.answers)
