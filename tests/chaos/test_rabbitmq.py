"""RabbitMQ as the broker: it is killed and comes back with its queues, or answers nobody for a while."""

import signal
import time

import pytest

from tests.chaos.cluster import run_cluster
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import slowest_s, steady_load, unexpected
from tests.chaos.test_servers_die import ANSWER_WITHIN_S, assert_recovered
from tests.rabbitmq import needs_rabbitmq, run_rabbitmq


@needs_rabbitmq
@pytest.mark.overlap(seconds=60)
def test_rabbitmq_that_is_killed_again_and_again_costs_no_money() -> None:
    with run_rabbitmq() as broker, run_cluster(broker_url=broker.url) as cluster:
        with steady_load(cluster) as load:
            for _ in range(3):
                load.wait_for_answers(200)
                broker.kill()
                broker.start()
            assert_recovered(load, time.monotonic())
        assert not unexpected(load, {201, 500})
        assert slowest_s(load.answers) <= ANSWER_WITHIN_S
        assert any(answer.status == 400 for answer in load.answers), "the poor business never ran out of money"
        assert all(worker.is_running() for worker in cluster.workers)
        assert "Traceback" not in cluster.logs()
        assert_history_is_what_clients_were_told(cluster, load.answers)


@needs_rabbitmq
@pytest.mark.overlap(seconds=45)
def test_rabbitmq_that_answers_nobody_for_ten_seconds_or_takes_no_messages_costs_no_money() -> None:
    with run_rabbitmq() as broker, run_cluster(broker_url=broker.url) as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            broker.signal(signal.SIGSTOP)
            time.sleep(10)
            broker.signal(signal.SIGCONT)
            assert_recovered(load, time.monotonic())
            broker.rabbitmqctl("set_vm_memory_high_watermark", "0.0000001")
            time.sleep(10)
            broker.rabbitmqctl("set_vm_memory_high_watermark", "0.8")
            assert_recovered(load, time.monotonic())
        assert not unexpected(load, {201, 500})
        assert any(answer.status == 500 for answer in load.answers), "the fault was not felt"
        assert slowest_s(load.answers) <= ANSWER_WITHIN_S
        assert "Traceback" not in cluster.logs()
        assert_history_is_what_clients_were_told(cluster, load.answers)
