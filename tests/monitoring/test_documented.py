"""The alerts, the dashboard and the code name the same metrics."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from core import metrics
from core.messages import Outcome
from tests.docs.reference_pages import DEFINED, describe_metric
from tests.servers import ROOT

MONITORING = ROOT / "monitoring"
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/payouts.json").read_text())
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
OTHERS = {"up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus has it)"
)


@pytest.mark.parametrize("metric", DEFINED, ids=lambda metric: describe_metric(metric)[0])
def test_metrics_have_a_unit_a_help_text_and_few_labels(metric: Any) -> None:
    name, _, labels, documentation = describe_metric(metric)
    assert re.fullmatch(r"payouts_[a-z_]+", name)
    assert documentation
    assert not re.search(r"\b(those|theirs?|ours|it)\b", documentation)
    assert "ms" not in name.split("_")
    assert set(labels) <= {
        "method",
        "route",
        "status",
        "outcome",
        "reason",
        "result",
        "pool",
        "server",
        "queue",
        "task",
    } | {"work"}


def test_every_outcome_has_a_series_from_the_start() -> None:
    """An increase from nothing to one is none to Prometheus."""
    text = metrics.render_api("")[0].decode()
    assert all(f'payouts_allocations_total{{outcome="{outcome.value}"}}' in text for outcome in Outcome)
    assert all(
        f'payouts_resolutions_total{{result="{result}"}}' in text for result in ("committed", "never", "unknown")
    )


def test_renamed_metrics_are_given_out_under_both_names() -> None:
    metrics.GROUP_ALLOCATIONS.observe(7)
    metrics.RESOLUTIONS.labels("never").inc()
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        text = metrics.render_api(accept)[0].decode()
        for name, old_name in metrics.OLD_NAMES.items():
            assert re.search(rf"^# HELP {old_name}(_total)? the old name of {name}, until 0\.3$", text, re.MULTILINE)
            new, old = (
                re.findall(rf"^{each}(?:_(?:total|bucket|sum|count))?(?:{{.*)? .*$", text, re.MULTILINE)
                for each in (name, old_name)
            )
            assert new
            assert [line.removeprefix(name) for line in new] == [line.removeprefix(old_name) for line in old]


def exposed_series() -> set[str]:
    return {
        family.name + suffix for metric in DEFINED for family in metric.describe() for suffix in SUFFIXES[family.type]
    }


def names_in(expression: str) -> set[str]:
    """The metrics that an expression asks for: words that are no function, label, keyword or text."""
    bare = re.sub(r'"[^"]*"|\{[^{}]*\}|\[[^]]*\]|\b(by|without|on|ignoring)\s*\([^)]*\)', " ", expression)
    return set(re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", bare)) - {"or", "and", "unless", "by", "e"}


def expressions() -> Iterator[str]:
    for group in ALERTS["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))


@pytest.mark.parametrize("expression", list(expressions()))
def test_alerts_and_dashboard_ask_for_metrics_that_there_are(expression: str) -> None:
    assert names_in(expression)
    assert names_in(expression) <= exposed_series() | OTHERS


def test_every_metric_is_in_the_dashboard_or_an_alert() -> None:
    asked_for = set().union(*(names_in(expression) for expression in expressions()))
    shown_by_name = {name for name in exposed_series() if name in asked_for}
    for metric in DEFINED:
        (family,) = metric.describe()
        assert {family.name + suffix for suffix in SUFFIXES[family.type]} & shown_by_name, family.name


def test_dashboard_has_a_row_for_each_matter_and_asks_the_provisioned_source() -> None:
    titles = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert titles == [
        "Traffic", "Latency", "Queues", "Resends, resolves, reversals", "Locks and connections", "Payout batches",
        "Books",
    ]  # fmt: skip
    sources = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    (uid,) = [source["uid"] for source in sources["datasources"]]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if panel["type"] != "row"} == {uid}
    providers = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/payouts.yml").read_text())
    assert providers["providers"][0]["options"]["path"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    assert len(rule["annotations"]["runbook"].split()) > 15


@pytest.mark.parametrize("name", [rule["alert"] for rule in rules()])
def test_every_alert_is_shown_to_fire_and_not_to_fire(name: str) -> None:
    checks = [
        check["exp_samples"]
        for case in yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
        for check in case["promql_expr_test"]
        if f'alertname="{name}"' in check["expr"]
    ]
    assert any(checks)
    assert not all(checks)


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "monitoring/prometheus.yml"],
        ["check", "rules", "monitoring/alerts.yml"],
        ["test", "rules", "monitoring/alerts_test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(arguments: list[str]) -> None:
    result = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_scrapes_what_compose_serves() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    jobs = {
        job["job_name"]: job for job in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    }
    assert jobs["payouts-api"]["static_configs"] == [
        {"targets": [f"web:{compose['services']['web']['environment']['PORT']}"]}
    ]
    for service in ("worker", "batches"):
        (found,) = jobs[f"payouts-{service}"]["dns_sd_configs"]
        environment = compose["services"][service]["environment"]
        assert (found["names"], str(found["port"])) == ([service], environment["PAYOUTS_METRICS_PORT"])
        assert environment["PAYOUTS_METRICS_HOST"] == "0.0.0.0"  # noqa: S104 (in the containers' own network)
