"""One service's turn: warm it up, run its cases, and count after each."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.accounts import Accounts
from tests.bench.cpu import CpuWatch
from tests.bench.history import find_imbalances, find_miscounts, read_resolved_history
from tests.bench.load import Demand, Load, LoadGenerator
from tests.bench.measurements import Key, Measurement
from tests.bench.systems import Service

HOT = "hot"
SPREAD = "1,000 businesses"
QUIET = "quiet 10 %, alone"
QUIET_FLOODED = "quiet 10 %, flood"
FLOOD = "flood 90 %"
PACED = "quiet, paced, alone"
PACED_FLOODED = "quiet, paced, flood"

FLOOD_CONNECTIONS = 230
QUIET_CONNECTIONS = 26
PACED_PER_SECOND = 200
_WARM_UP_CONNECTIONS = 32
_WARM_UP_BUSINESSES = 100


@dataclass(frozen=True, slots=True)
class Case:
    """A workload for a time; `seconds` is of the load alone."""

    workload: str
    connections: int
    seconds: int


@dataclass
class Result:
    """What a turn measured, and what did not add up."""

    measurements: list[Measurement]
    problems: list[str]


class HttpTurn:
    """Runs cases on a service. Each takes a fresh hot business, and counts its allocations."""

    def __init__(self, service: Service, accounts: Accounts, generator: LoadGenerator) -> None:
        self._service = service
        self._spread = accounts.spread
        self._hot = accounts.fresh_hot()
        self._generator = generator
        self._history = read_resolved_history(service.database)
        self.result = Result([], [])

    def warm_up(self, seconds: int) -> None:
        """Bring connections, caches and compilers to work, with a count that is exact to the cent."""
        accounts = [next(self._hot), *self._spread[:_WARM_UP_BUSINESSES]]
        demand = Demand(accounts, _WARM_UP_CONNECTIONS, seconds)
        load = self._generator.start_exact(self._service.base_url, demand).wait()
        self._count("warm-up", [load], 0)

    def run(self, case: Case) -> None:
        if case.workload in {QUIET_FLOODED, PACED_FLOODED}:
            self._run_flooded(case)
            return
        accounts = [next(self._hot)] if case.workload == HOT else self._spread
        per_second = PACED_PER_SECOND if case.workload == PACED else 0
        demand = Demand(accounts, case.connections, case.seconds, per_second=per_second)
        watch = CpuWatch()
        (load,) = self._load(demand)
        self._count(case.workload, [load], case.connections)
        # After counting, so that the work for the last calls is in it.
        self._note(case.workload, case.connections, load, *watch.read(load.generator_cpu_s))

    def _run_flooded(self, case: Case) -> None:
        per_second = PACED_PER_SECOND if case.workload == PACED_FLOODED else 0
        flood = Demand([next(self._hot)], FLOOD_CONNECTIONS, case.seconds)
        quiet = Demand(self._spread, case.connections, case.seconds, per_second=per_second)
        flood_load, quiet_load = self._load(flood, quiet)
        self._count(case.workload, [flood_load, quiet_load], FLOOD_CONNECTIONS + case.connections)
        self._note(case.workload, case.connections, quiet_load)
        if case.workload == QUIET_FLOODED:
            self._note(FLOOD, FLOOD_CONNECTIONS, flood_load)

    def finish(self) -> Result:
        """Prove that the books balance."""
        problems = [*find_imbalances(self._service.database), *self._service.find_complaints()]
        self.result.problems += [f"{self._service.name}: {problem}" for problem in problems]
        return self.result

    def _load(self, *demands: Demand) -> list[Load]:
        running = [self._generator.start(self._service.base_url, demand) for demand in demands]
        try:
            return [each.wait() for each in running]
        finally:
            for each in running:
                each.stop()

    def _count(self, workload: str, loads: Sequence[Load], in_flight_max: int) -> None:
        before, self._history = self._history, read_resolved_history(self._service.database)
        problems = find_miscounts(before, self._history, loads, in_flight_max)
        self.result.problems += [f"{self._service.name}, {workload}: {problem}" for problem in problems]

    def _note(
        self,
        workload: str,
        connections: int,
        load: Load,
        cpu_s: dict[str, float] | None = None,
        others_cores: float | None = None,
    ) -> None:
        key = Key(self._service.name, workload, connections)
        self.result.measurements.append(Measurement.of_load(key, load, cpu_s, others_cores))
