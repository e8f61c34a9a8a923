"""The tables for people, and the same as JSON."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa

from core.database.connection import Database
from tests.bench.dashboard import PAGE_MS_MAX, DashboardFindings
from tests.bench.goals import Row, compute_rows
from tests.bench.measurements import Key, Summary, summarise
from tests.bench.payout_batches import PayoutBatches
from tests.bench.scale import ALL_EMAILS, FEW_EMAILS, MEMORY_RATIO_MAX, SIZE_RATIO_MIN, ScaleFindings
from tests.bench.suite import Findings
from tests.servers import Servers

_PACKAGES = ("celery", "litestar", "msgspec", "psycopg", "sqlalchemy", "uvicorn", "uvloop")
_SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size", "server_version")
_PARTS = ("api", "worker", "postgres", "valkey")


def describe_machine(servers: Servers, generator: str) -> dict[str, str]:
    """Read what the numbers depend on, the servers' settings from the servers themselves."""
    with Database(servers.postgres_url, transaction_timeout_s=None) as database, database.snapshot() as connection:
        shown = {name: str(connection.execute(sa.text(f"SHOW {name}")).scalar_one()) for name in _SETTINGS}
    client = redis.Redis.from_url(servers.redis_url)
    valkey: Any = client.info("server")
    client.close()
    return {
        "cores": str(os.cpu_count()),
        "processor": _read_processor(),
        "memory_gib": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        "valkey": str(valkey.get("valkey_version", valkey.get("redis_version"))),
        **{f"postgresql_{name}": value for name, value in shown.items()},
        "load_generator": generator,
    }


def _read_processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def format_machine(machine: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in machine.items())


def format_goals(rows: Sequence[Row]) -> str:
    lines = ["| | ours | against | ratio | goal | reached |", "|---|---:|---:|---:|---:|---|"]
    for row in rows:
        plus, unit = ("+", row.unit) if row.is_difference else ("", "")
        limit = f"{'≤' if row.is_upper else '≥'} {plus}{row.limit:g}{unit}"
        lines.append(
            f"| {row.text} | {_number(row.ours)}{row.unit} | {_number(row.theirs)}{row.unit} ({row.best}) "
            f"| {plus}{row.compared:.2f}{unit} | {limit} | {'yes' if row.reached else 'no'} |"
        )
    return "\n".join(lines)


def format_measurements(summaries: Mapping[Key, Summary]) -> str:
    """Show each case; processor time is microseconds for each allocation."""
    heads = ["system", "workload", "connections", "requests/s", "by round", "p50 ms", "p99 ms", "API µs", "worker µs"]
    heads += ["PostgreSQL µs", "Valkey µs", "generator, cores", "others, cores"]
    lines = [f"| {' | '.join(heads)} |", f"|---|---|{'---:|' * (len(heads) - 2)}"]
    for key, each in summaries.items():
        cells = [
            key.system,
            key.workload,
            f"{key.connections:,}",
            f"{each.per_second:,.0f}",
            ", ".join(f"{rate:,.0f}" for rate in each.rates),
            _number(each.p50_us / 1000),
            _number(each.p99_us / 1000),
            *(f"{each.cpu_us[part]:,.0f}" if part in each.cpu_us else "" for part in _PARTS),
            f"{each.generator_cores:.2f}" if each.generator_cores else "",
            "" if each.others_cores is None else f"{each.others_cores:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_payout_batches(found: PayoutBatches) -> str:
    """Show each batch; times are from the beginning of the upload, processor time is microseconds for each row."""
    heads = ["payout batch", "rows", "MiB", "accepted s", "paid s", "rows/s", "API µs", "worker µs"]
    heads += ["PostgreSQL µs", "Valkey µs", "server-side, rows/s"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 2)}---|"]
    for name, each in found.batches.items():
        ways = found.server_side.get(name, {})
        cells = [
            name,
            f"{each.rows:,}",
            f"{each.body_mib:.1f}",
            f"{each.accept_s:.2f}",
            f"{each.paid_s:.2f}",
            f"{each.per_second:,.0f}",
            *(f"{each.cpu_us[part]:,.0f}" if part in each.cpu_us else "" for part in _PARTS),
            ", ".join(f"{way.rpartition(', ')[2]} {rate:,.0f}" for way, rate in ways.items()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


class Report:
    """The run of all systems."""

    def __init__(self, machine: Mapping[str, str], findings: Findings) -> None:
        self._machine = machine
        self._summaries = summarise(findings.measurements)
        self._payout_batches = findings.payout_batches
        self._rows = compute_rows(self._summaries, findings.ledger, findings.payout_batches)
        self.problems = findings.problems

    def as_text(self) -> str:
        tables = [format_machine(self._machine), format_goals(self._rows), format_measurements(self._summaries)]
        if self._payout_batches is not None:
            tables.append(format_payout_batches(self._payout_batches))
        return "\n\n".join(tables)

    def as_json(self) -> str:
        more: dict[str, Any] = {"goals": [_goal_document(row) for row in self._rows]}
        if self._payout_batches is not None:
            batches = self._payout_batches.batches.values()
            more["payout_batches"] = [asdict(batch) | {"per_second": batch.per_second} for batch in batches]
        return _as_json(self._machine, self._summaries, self.problems, more)


class ScaleReport:
    """The long run."""

    def __init__(self, machine: Mapping[str, str], findings: ScaleFindings) -> None:
        self._machine = machine
        self._findings = findings
        self._summaries = summarise(findings.measurements)
        self.problems = findings.problems

    def as_text(self) -> str:
        lines = ["| | ratio | goal | reached |", "|---|---:|---:|---|"]
        for text, ratio, limit, reached in self._rows():
            lines.append(f"| {text} | {ratio:.2f} | {limit} | {'yes' if reached else 'no'} |")
        tables = [format_machine(self._machine), "\n".join(lines), format_measurements(self._summaries)]
        return "\n\n".join(tables)

    def as_json(self) -> str:
        goals = [
            {"text": text, "ratio": ratio, "goal": limit, "reached": reached}
            for text, ratio, limit, reached in self._rows()
        ]
        memory = [{"seconds": seconds, "pss_mib": mib} for seconds, mib in self._findings.memory_mib]
        return _as_json(self._machine, self._summaries, self.problems, {"goals": goals, "memory": memory})

    def _rows(self) -> list[tuple[str, float, str, bool]]:
        rows = []
        for workload in (FEW_EMAILS, ALL_EMAILS):
            ratio = self._findings.size_ratio(workload)
            if ratio is not None:
                text = f"hot, 256 connections, {workload}, big database against empty"
                rows.append((text, ratio, f"≥ {SIZE_RATIO_MIN:g}", ratio >= SIZE_RATIO_MIN))
        for part in ("api", "worker"):
            ratio = self._findings.memory_ratio(part)
            if ratio is not None:
                text = f"memory of {part} at the end, against after a tenth of the time"
                rows.append((text, ratio, f"≤ {MEMORY_RATIO_MAX:g}", ratio <= MEMORY_RATIO_MAX))
        return rows


class DashboardReport:
    """The pages of the dashboard."""

    def __init__(self, machine: Mapping[str, str], findings: DashboardFindings) -> None:
        self._machine = machine
        self._findings = findings
        self.problems = findings.problems

    def as_text(self) -> str:
        found = self._findings
        size = f"{found.users:,} users, {found.history_rows:,} history rows, summed by day within {found.sum_s:.0f} s"
        heads = ["page", "p50 ms", "p99 ms", "processor ms", "others, cores", "KiB", "goal", "reached"]
        lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 2)}---|"]
        for page in found.pages:
            reached = "yes" if page.p99_ms <= PAGE_MS_MAX else "no"
            lines.append(
                f"| {page.name} | {page.p50_ms:.0f} | {page.p99_ms:.0f} | {page.cpu_ms:.0f} "
                f"| {page.others_cores:.1f} | {page.size_kib:.0f} | ≤ {PAGE_MS_MAX:g} | {reached} |"
            )
        return "\n\n".join([format_machine(self._machine), size, "\n".join(lines)])

    def as_json(self) -> str:
        document = {"machine": dict(self._machine), **asdict(self._findings)}
        return json.dumps(document, indent=2, ensure_ascii=False)


def _goal_document(row: Row) -> dict[str, Any]:
    name = "difference" if row.is_difference else "ratio"
    return asdict(row) | {name: row.compared, "reached": row.reached}


def _as_json(
    machine: Mapping[str, str], summaries: Mapping[Key, Summary], problems: Sequence[str], more: dict[str, Any]
) -> str:
    measurements = [asdict(each) | {"key": each.key._asdict()} for each in summaries.values()]
    document = {"machine": dict(machine), **more, "measurements": measurements, "problems": list(problems)}
    return json.dumps(document, indent=2, ensure_ascii=False)
