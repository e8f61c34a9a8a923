"""A real Prometheus scrapes a running system: every expression of dashboard and alerts can be evaluated there."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from api.local.ports import find_free_port
from tests.monitoring.test_documented import DASHBOARD, MONITORING, rules
from tests.monitoring.test_running import find_metrics_base, worker_urls
from tests.polling import wait_until
from tests.servers import Servers, System, open_account, run_system, run_valkey

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian's package has that name)"
)


@contextmanager
def run_prometheus(directory: Path, targets: dict[str, str]) -> Iterator[str]:
    """Run it with our configuration, but for addresses and intervals."""
    configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(MONITORING / name) for name in configuration["rule_files"]]
    configuration["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": [targets[job["job_name"]]]}]}
        for job in configuration["scrape_configs"]
    ]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{find_free_port()}"
    options = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", *options, f"--web.listen-address={address}"], cwd=directory, stdout=log, stderr=log
        )
    try:
        wait_until(
            lambda: httpx.get(f"http://{address}/-/ready").status_code == 200,
            (directory / "log").read_text,
            60,
            passing=(httpx.TransportError,),
            pause_s=0.2,
        )
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def evaluate(prometheus: str, expression: str) -> list[Any]:
    asked = expression.replace("$__rate_interval", "1m")
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": asked}, timeout=20).json()
    assert answer["status"] == "success", (expression, answer)
    found: list[Any] = answer["data"]["result"]
    return found


def make_traffic(system: System) -> None:
    account = open_account(system.database)
    rows = [{"email": "user@example.com", "amount": 1}] * 3
    with system.client() as client:
        for _ in range(5):
            assert system.pay(client, account, "user@example.com", 1).status_code == 201
        assert system.pay(client, account, "user@example.com", 10**8).status_code == 400
        sent = client.post("/payout/batches", json={"allocations": rows}, headers=account.headers)
        assert sent.status_code == 202


@pytest.mark.timeout(300)
def test_every_panel_shows_something_and_no_alert_is_broken(servers: Servers, tmp_path: Path) -> None:
    with run_valkey() as valkey:
        own = Servers(servers.postgres_url, valkey.url)
        port = str(find_metrics_base())
        with run_system(own, metrics_port=port, verify_every_s="1", batch_stalled_after_s="1") as system:
            worker, batches = (url.removeprefix("http://") for url in worker_urls(system))
            api = system.base_url.removeprefix("http://")
            targets = {"payouts-api": api, "payouts-worker": worker, "payouts-batches": batches}
            with run_prometheus(tmp_path, targets) as prometheus:
                wait_until(
                    lambda: len(evaluate(prometheus, "up == 1")) == 3,
                    lambda: evaluate(prometheus, "up"),
                    60,
                    passing=(httpx.TransportError,),
                    pause_s=0.2,
                )
                make_traffic(system)
                expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
                wait_until(
                    lambda: all(evaluate(prometheus, expression) for expression in expressions),
                    lambda: [expression for expression in expressions if not evaluate(prometheus, expression)],
                    60,
                    passing=(httpx.TransportError,),
                    pause_s=0.2,
                )
                assert evaluate(prometheus, 'payouts_allocations_total{outcome="allocated"}')[0]["value"][1] == "5"
                assert evaluate(prometheus, "payouts_payout_batch_rows_paid_total > 0")[0]["value"][1] == "3"
                loaded = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
                states = {rule["name"]: rule for group in loaded for rule in group["rules"]}
                assert set(states) == {rule["alert"] for rule in rules()}
                broken = {name: rule.get("lastError") for name, rule in states.items() if rule["health"] != "ok"}
                assert broken == {}, json.dumps(loaded)
                firing = [name for name, rule in states.items() if rule["state"] == "firing"]
                assert firing == []
