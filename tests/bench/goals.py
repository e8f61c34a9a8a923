"""The goals, and how each is computed from what was measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.http_turn import (
    HOT,
    QUIET,
    QUIET_CONNECTIONS,
    QUIET_FLOODED,
    SPREAD,
)
from tests.bench.ledger_alone import LedgerAlone
from tests.bench.measurements import Key, Summary
from tests.bench.payout_batches import ALONE, BESIDE, CONNECTIONS, EXISTING, LARGEST, NEW, PayoutBatches
from tests.bench.pgbench import CLIENTS, PGBENCH
from tests.bench.systems import DIRECT_1, DIRECT_2, OURS, TEXTBOOK

MANY = 256
Summaries = Mapping[Key, Summary]


@dataclass(frozen=True, slots=True)
class Goal:
    """A row of the goal table: the ratio of two measured values, `ours` over the best of `theirs`."""

    name: str
    text: str
    limit: float
    ours: Key
    theirs: Sequence[Key]
    value: Callable[[Summary], float]
    unit: str
    is_upper: bool = False
    """The ratio may not be greater than the limit; otherwise, not smaller."""


@dataclass(frozen=True, slots=True)
class Row:
    """A goal with what was measured."""

    name: str
    text: str
    ours: float
    theirs: float
    unit: str
    best: str
    limit: float
    is_upper: bool
    is_difference: bool = False
    """The limit is of the difference, not of the ratio."""

    @property
    def compared(self) -> float:
        return self.ours - self.theirs if self.is_difference else self.ours / self.theirs

    @property
    def reached(self) -> bool:
        return self.compared <= self.limit if self.is_upper else self.compared >= self.limit


def _per_second(summary: Summary) -> float:
    return summary.per_second


def _p50_ms(summary: Summary) -> float:
    return summary.p50_us / 1000


def _p99_ms(summary: Summary) -> float:
    return summary.p99_us / 1000


def _direct(workload: str, connections: int) -> list[Key]:
    return [Key(DIRECT_1, workload, connections), Key(DIRECT_2, workload, connections)]


def _pgbench(workload: str) -> list[Key]:
    return [Key(PGBENCH, workload, clients) for clients in CLIENTS]


_HOT = Key(OURS, HOT, MANY)
_SPREAD = Key(OURS, SPREAD, MANY)
GOALS = [
    Goal("hot-direct", "hot, 256 connections, against direct", 10, _HOT, _direct(HOT, MANY), _per_second, "/s"),
    Goal(
        "hot-textbook",
        "hot, 256 connections, against textbook Celery",
        25,
        _HOT,
        [Key(TEXTBOOK, HOT, MANY)],
        _per_second,
        "/s",
    ),
    Goal("hot-pgbench", "hot, 256 connections, against pgbench on the row", 4, _HOT, _pgbench(HOT), _per_second, "/s"),
    Goal(
        "spread-direct",
        "1,000 businesses, 256 connections, against direct",
        6,
        _SPREAD,
        _direct(SPREAD, MANY),
        _per_second,
        "/s",
    ),
    Goal(
        "spread-pgbench",
        "1,000 businesses, 256 connections, against pgbench spread",
        1,
        _SPREAD,
        _pgbench(SPREAD),
        _per_second,
        "/s",
    ),
    Goal(
        "latency", "p50 at concurrency 1, against direct", 2, Key(OURS, HOT, 1), _direct(HOT, 1), _p50_ms, " ms", True
    ),
    Goal(
        "quiet",
        "quiet businesses' p99 in a flood, against without",
        3,
        Key(OURS, QUIET_FLOODED, QUIET_CONNECTIONS),
        [Key(OURS, QUIET, QUIET_CONNECTIONS)],
        _p99_ms,
        " ms",
        True,
    ),
]
LEDGER = "ledger"
LEDGER_RATIO_MIN = 0.7
BATCHES = "batches"
BATCHES_RATIO_MIN = 0.6
BATCHES_P99_RATIO_MAX = 4
BATCHES_MEMORY_MB_MAX = 150
NAMES = [*(goal.name for goal in GOALS), LEDGER, BATCHES]


def compute_rows(summaries: Summaries, ledger: LedgerAlone | None, batches: PayoutBatches | None) -> list[Row]:
    """Return a row for each goal whose cases were all measured."""
    rows = [
        _row(goal, summaries)
        for goal in GOALS
        if goal.ours in summaries and all(key in summaries for key in goal.theirs)
    ]
    if ledger is not None:
        rows.append(
            Row(
                LEDGER,
                "ledger alone, batches of 500, against INSERT … SELECT",
                ledger.ledger_per_second,
                ledger.server_side_per_second,
                "/s",
                "server-side",
                LEDGER_RATIO_MIN,
                False,
            )
        )
    if batches is not None:
        rows += [_batch_speed(batches, NEW), _batch_speed(batches, EXISTING), _batch_p99(batches)]
        rows.append(_batch_memory(batches))
    return rows


def _batch_speed(batches: PayoutBatches, name: str) -> Row:
    batch = batches.batches[name]
    best, per_second = max(batches.server_side[name].items(), key=lambda each: each[1])
    text = f"payout batch, {batch.rows:,} {name}, upload to last payment, against INSERT … SELECT"
    return Row(f"{BATCHES}: {name}", text, batch.per_second, per_second, "/s", best, BATCHES_RATIO_MIN, False)


def _batch_p99(batches: PayoutBatches) -> Row:
    return Row(
        f"{BATCHES}: latency",
        f"p99 of synchronous calls on {CONNECTIONS} connections during payout batches, against without",
        batches.loads[BESIDE].p99_us / 1000,
        batches.loads[ALONE].p99_us / 1000,
        " ms",
        OURS,
        BATCHES_P99_RATIO_MAX,
        True,
    )


def _batch_memory(batches: PayoutBatches) -> Row:
    return Row(
        f"{BATCHES}: memory",
        f"memory of the API, a payout batch of {batches.batches[LARGEST].body_mib:.1f} MiB, against idle",
        batches.peak_mb,
        batches.idle_mb,
        " MB",
        "idle",
        BATCHES_MEMORY_MB_MAX,
        True,
        is_difference=True,
    )


def _row(goal: Goal, summaries: Summaries) -> Row:
    # The best is the fastest, or the one with the lowest latency.
    choose = min if goal.is_upper else max
    best = choose(goal.theirs, key=lambda key: goal.value(summaries[key]))
    return Row(
        name=goal.name,
        text=goal.text,
        ours=goal.value(summaries[goal.ours]),
        theirs=goal.value(summaries[best]),
        unit=goal.unit,
        best=f"{best.system}, {best.connections} clients" if best.system == PGBENCH else best.system,
        limit=goal.limit,
        is_upper=goal.is_upper,
    )
