"""The database cannot write: it is read-only, or its disk is full."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.chaos.cluster import Cluster, run_cluster
from tests.chaos.faults import read_only_database
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import CLIENTS, slowest_s, steady_load, unexpected
from tests.chaos.test_servers_die import ANSWER_WITHIN_S, assert_recovered

DISK_BYTES = 200_000_000
FULL_S = 12.0


@pytest.mark.overlap(seconds=35)
def test_read_only_database_costs_errors_but_no_money() -> None:
    with run_cluster() as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            with read_only_database(cluster):
                refused = load.wait_for_answers(CLIENTS, timeout_s=20)
            assert_recovered(load, time.monotonic())
        assert {answer.status for answer in refused} == {500}
        assert not unexpected(load, {201, 500})
        assert slowest_s(load.answers) <= ANSWER_WITHIN_S
        assert_history_is_what_clients_were_told(cluster, load.answers)


@contextmanager
def small_disk() -> Iterator[Path]:
    """Mount a file system of a fixed size, which takes root."""
    with tempfile.TemporaryDirectory(prefix="payouts-chaos-disk-") as directory:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "tmpfs", directory]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("only root may mount a file system that can be full")
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


@contextmanager
def full_disk(cluster: Cluster, disk: Path) -> Iterator[None]:
    """Leave the database no byte. Its write-ahead log has room in the file that it has just begun."""
    with cluster.server.transaction() as connection:
        connection.execute(sa.text("SELECT pg_switch_wal()"))
    time.sleep(0.5)  # the load goes on, so the new file is made
    filler = disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            chunk = bytes(1_000_000)
            while chunk:
                try:
                    file.write(chunk)
                except OSError:
                    chunk = chunk[: len(chunk) // 2]
        yield
    finally:
        filler.unlink()


@pytest.mark.overlap(seconds=40)
def test_full_disk_costs_errors_but_no_money() -> None:
    with small_disk() as disk, run_cluster(directory=disk) as cluster:
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
            with full_disk(cluster, disk):
                time.sleep(FULL_S)
            assert_recovered(load, time.monotonic())
        assert not unexpected(load, {201, 500})
        assert any(answer.status == 500 for answer in load.answers), "the fault was not felt"
        assert slowest_s(load.answers) <= ANSWER_WITHIN_S
        assert_history_is_what_clients_were_told(cluster, load.answers)
