"""What was measured, and the medians over the rounds."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from tests.bench.load import Load


class Key(NamedTuple):
    """What the rounds of one measurement have in common."""

    system: str
    workload: str
    connections: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case in one round."""

    key: Key
    requests: int
    per_second: float
    p50_us: int
    p99_us: int
    generator_cores: float = 0.0
    cpu_us: dict[str, float] = field(default_factory=dict)
    """Processor time for each allocation, by part; empty where two loads ran at once."""
    others_cores: float | None = None
    """What the machine did besides: programs that are no part of the benchmark, and time taken by its host."""

    @classmethod
    def of_load(
        cls, key: Key, load: Load, cpu_s: dict[str, float] | None = None, others_cores: float | None = None
    ) -> Self:
        cpu_us = {part: seconds * 1e6 / max(load.allocated, 1) for part, seconds in (cpu_s or {}).items()}
        cores = load.generator_cpu_s / load.duration_s
        return cls(key, load.allocated, load.per_second, load.p50_us, load.p99_us, cores, cpu_us, others_cores)


@dataclass(frozen=True, slots=True)
class Summary:
    """The medians over all rounds; `rates` are each round's allocations a second."""

    key: Key
    rates: list[float]
    per_second: float
    p50_us: float
    p99_us: float
    generator_cores: float
    cpu_us: dict[str, float]
    others_cores: float | None


def summarise(measurements: Iterable[Measurement]) -> dict[Key, Summary]:
    by_key: dict[Key, list[Measurement]] = {}
    for measurement in measurements:
        by_key.setdefault(measurement.key, []).append(measurement)
    return {key: _summary(key, group) for key, group in by_key.items()}


def _summary(key: Key, group: list[Measurement]) -> Summary:
    rates = [each.per_second for each in group]
    parts = sorted({part for each in group for part in each.cpu_us})
    others = [each.others_cores for each in group if each.others_cores is not None]
    return Summary(
        key=key,
        rates=rates,
        per_second=statistics.median(rates),
        p50_us=statistics.median(each.p50_us for each in group),
        p99_us=statistics.median(each.p99_us for each in group),
        generator_cores=statistics.median(each.generator_cores for each in group),
        cpu_us={part: statistics.median(each.cpu_us.get(part, 0.0) for each in group) for part in parts},
        others_cores=statistics.median(others) if others else None,
    )
