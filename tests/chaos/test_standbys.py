"""A synchronous standby is gone: commits wait, and the doctor says for which one."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from api.cli.doctor.standbys import parse_names
from tests.chaos.cluster import Cluster, run_cluster
from tests.polling import wait_until

PAYOUTS = str(Path(sys.executable).with_name("payouts"))


@contextmanager
def commits_waiting_for(cluster: Cluster, names: str) -> Iterator[None]:
    """Have commits wait for standbys that are not there."""
    set_standbys(cluster, names)
    try:
        yield
    finally:
        set_standbys(cluster, "")


def set_standbys(cluster: Cluster, names: str) -> None:
    with cluster.server.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'"))
        connection.execute(sa.text("SELECT pg_reload_conf()"))
        shown = sa.text("SHOW synchronous_standby_names")
        wait_until(lambda: connection.execute(shown).scalar_one() == names, "the setting is there")


def examine(cluster: Cluster) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [PAYOUTS, "doctor", "--json"], env=cluster.environment, capture_output=True, text=True, timeout=100, check=False
    )
    return {check["check"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.mark.overlap(seconds=40)
def test_doctor_names_the_standby_that_commits_wait_for() -> None:
    with run_cluster(workers=1, batches=1, beats=1) as cluster:
        account = cluster.open_account()
        assert examine(cluster)["durability"]["status"] == "ok"

        def pay() -> None:
            url = f"http://127.0.0.1:{cluster.ports['web-1']}/payout/create"
            body = {"email": "user@example.com", "amount": 1}
            httpx.post(url, json=body, headers=account.headers, timeout=30, trust_env=False)

        with commits_waiting_for(cluster, 'FIRST 1 ("stand by", other)'):
            paying = threading.Thread(target=pay)
            paying.start()
            with cluster.server.transaction() as connection:
                waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
                wait_until(lambda: connection.execute(waiting).scalar_one() > 0, "a commit waits")
            found = examine(cluster)
            assert found["durability"]["status"] == "problem"
            assert found["durability"]["text"].startswith(
                "commits wait for a standby: 1 needed by synchronous_standby_names, 0 attached; "
                "not attached: stand by, other; "
            )
            assert "(SyncRep)" in found["durability"]["text"]
            assert "restart neither workers" in found["durability"]["fix"]
            assert found["worker"]["status"] == "skipped"
            assert "start the" not in str(found["worker"])
        paying.join()
        assert examine(cluster)["durability"]["status"] == "ok"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", (0, [])),
        ("  ", (0, [])),
        ("a", (1, ["a"])),
        ("a, b", (1, ["a", "b"])),
        ("*", (1, [])),
        ("2 (a, b, c)", (2, ["a", "b", "c"])),
        ("FIRST 2 (a,b)", (2, ["a", "b"])),
        ("any 1 (\n a , b )", (1, ["a", "b"])),
        ("ANY 2 (*)", (2, [])),
        ('"stand by", "a""b", c', (1, ["stand by", 'a"b', "c"])),
        ("first", (1, ["first"])),
    ],
)
def test_every_form_of_the_setting_is_understood(setting: str, expected: tuple[int, list[str]]) -> None:
    assert parse_names(setting) == expected
