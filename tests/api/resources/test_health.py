"""GET /health/live and /health/ready: what is checked, with what is broken for each."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from redis import Redis

from api.local.valkey import EmbeddedValkey
from tests.polling import wait_until
from tests.servers import Parts, Servers, System, run_system, run_valkey

NAMES = ["database", "schema", "broker", "subscription", "worker"]


def problems_of(response: httpx.Response) -> dict[str, str | None]:
    return {check["name"]: check["problem"] for check in response.json()["checks"]}


def wait_for_problems(client: httpx.Client, are_expected: Callable[[dict[str, str | None]], bool]) -> httpx.Response:
    def find() -> httpx.Response | None:
        response = client.get("/health/ready")
        return response if are_expected(problems_of(response)) else None

    found = wait_until(find, lambda: client.get("/health/ready").text, 30, pause_s=0.1)
    assert found is not None
    return found


@pytest.fixture
def breakable(servers: Servers, valkey: EmbeddedValkey) -> Iterator[System]:
    with run_system(servers, Parts(without=["batches", "beat"]), redis_url=valkey.url) as system:
        yield system


def test_what_is_well_is_listed(client: httpx.Client) -> None:
    response = client.get("/health/ready")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    checks = [{"name": name, "ok": True, "problem": None} for name in NAMES]
    assert response.json() == {"status": "ready", "checks": checks}
    assert client.get("/health/live").json() == {"status": "alive"}


def test_an_older_schema_is_not_ready(breakable: System) -> None:
    set_revision = sa.text("UPDATE alembic_version SET version_num = '0001'")
    with breakable.database.transaction() as connection:
        connection.execute(set_revision)
    with breakable.client() as client:
        response = wait_for_problems(client, lambda problems: problems["schema"] is not None)
    assert response.status_code == 503
    assert "the database is at revision 0001" in response.json()["error"]
    assert [name for name, problem in problems_of(response).items() if problem] == ["schema"]


def test_redis_away_is_named_and_live_goes_on(servers: Servers) -> None:
    with (
        run_valkey() as valkey,
        run_system(servers, Parts(without=["batches", "beat"]), redis_url=valkey.url) as system,
        system.client() as client,
    ):
        valkey.stop()
        response = wait_for_problems(client, lambda problems: bool(problems["broker"] and problems["subscription"]))
        assert response.status_code == 503
        expected = "Not ready: the broker cannot be reached; replies are not subscribed to"
        assert response.json()["error"] == expected
        assert problems_of(response)["database"] is None
        assert client.get("/health/live").status_code == 200
        time.sleep(0.5)  # the log's thread collects lines for a moment
        assert "not ready any more" in system.logs()


def test_no_database_is_named(servers: Servers) -> None:
    with run_system(servers, Parts(without=["batches", "beat"])) as system, system.client() as client:
        name = system.database.engine.url.database
        servers.administer(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        servers.administer(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        response = wait_for_problems(client, lambda problems: problems["database"] is not None)
        servers.administer(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert response.status_code == 503
        assert response.json()["error"] == "Not ready: the database cannot be reached"
        assert wait_for_problems(client, lambda problems: not any(problems.values())).status_code == 200


def test_no_worker_is_named_though_all_servers_are_there(servers: Servers, valkey: EmbeddedValkey) -> None:
    parts = Parts(without=["worker", "batches", "beat"], is_waited_for=False)
    with run_system(servers, parts, redis_url=valkey.url) as system, system.client() as client:
        wait_until_alive(client)
        response = wait_for_problems(client, lambda problems: problems["subscription"] is None)
        assert response.status_code == 503
        assert response.json()["error"] == "Not ready: no worker carried out an empty group within 2 s"


def test_many_probes_at_once_share_one_round_trip(breakable: System, valkey: EmbeddedValkey) -> None:
    with Redis.from_url(valkey.url) as redis, breakable.client() as client, ThreadPoolExecutor(16) as threads:
        before = count_calls(redis, "publish")
        answers = list(threads.map(lambda _: client.get("/health/ready").status_code, range(200)))
        assert set(answers) == {200}
        assert count_calls(redis, "publish") - before < 60


def count_calls(redis: Any, command: str) -> int:
    return int(redis.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def wait_until_alive(client: httpx.Client) -> None:
    wait_until(
        lambda: client.get("/health/live") is not None, timeout_s=30, passing=(httpx.TransportError,), pause_s=0.1
    )
