"""PgBouncer stands before PostgreSQL: it dies, what is behind it dies, and whoever is lent a connection stalls."""

import time

import pytest
import sqlalchemy as sa

from tests.chaos.cluster import Cluster, run_cluster
from tests.chaos.faults import kill_postgres, stop_worker_that_holds_a_row
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import slowest_s, steady_load, unexpected
from tests.chaos.test_servers_die import ANSWER_WITHIN_S, assert_recovered

KILLS = 3
_IDLE_FOR_LONG = sa.text("""
    SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^(web|worker)-' AND state = 'idle in transaction'
        AND xact_start < now() - interval '3 seconds'
""")


@pytest.mark.overlap(seconds=25)
def test_killed_pgbouncer_that_returns_after_a_second_is_not_noticed() -> None:
    with run_cluster(database_pooler="transaction") as cluster:
        assert cluster.pooler is not None
        with steady_load(cluster) as load:
            for _ in range(KILLS):
                load.wait_for_answers(100)
                cluster.pooler.kill()
                time.sleep(1)
                cluster.pooler.start()
            assert_recovered(load, time.monotonic())
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, load.answers)


@pytest.mark.overlap(seconds=45)
def test_pgbouncer_that_is_gone_for_twenty_seconds_costs_errors_but_no_money() -> None:
    with run_cluster(database_pooler="transaction") as cluster:
        assert cluster.pooler is not None
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            cluster.pooler.kill()
            time.sleep(20)
            cluster.pooler.start()
            assert_recovered(load, time.monotonic())
        assert not unexpected(load, {201, 500})
        assert any(answer.status == 500 for answer in load.answers)
        assert slowest_s(load.answers) <= ANSWER_WITHIN_S
        assert_history_is_what_clients_were_told(cluster, load.answers)


@pytest.mark.overlap(seconds=20)
def test_killed_postgres_behind_pgbouncer_that_recovers_within_two_seconds_is_not_noticed() -> None:
    with run_cluster(database_pooler="transaction") as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            kill_postgres(cluster)
            time.sleep(1)
            cluster.postgres.start()
            assert_recovered(load, time.monotonic())
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, load.answers)


@pytest.mark.overlap(seconds=20)
def test_worker_stopped_with_the_row_and_a_lent_connection_costs_no_error() -> None:
    with run_cluster(database_pooler="transaction") as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            stopped = stop_worker_that_holds_a_row(cluster)
            moment = time.monotonic()
            load.wait_for_answers(100, since=moment)
            time.sleep(max(0.0, moment + cluster.settings.transaction_timeout_s + 1 - time.monotonic()))
            assert not transactions_idle_for_long(cluster), "the stopped worker's transaction is still open"
            stopped.go_on()
            load.wait_for_answers(100)
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, load.answers)


def transactions_idle_for_long(cluster: Cluster) -> bool:
    with cluster.server.transaction() as connection:
        return bool(connection.execute(_IDLE_FOR_LONG).scalar_one())
