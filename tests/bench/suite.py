"""The schedule: who takes a turn when, with which cases."""

from collections.abc import Collection
from dataclasses import dataclass, field

from tests.bench.accounts import Accounts
from tests.bench.goals import BATCHES, GOALS, LEDGER, MANY
from tests.bench.http_turn import (
    HOT,
    PACED,
    PACED_FLOODED,
    QUIET,
    QUIET_CONNECTIONS,
    QUIET_FLOODED,
    SPREAD,
    Case,
    HttpTurn,
    Result,
)
from tests.bench.ledger_alone import LedgerAlone, measure_ledger
from tests.bench.load import LoadGenerator
from tests.bench.measurements import Key, Measurement
from tests.bench.payout_batches import PayoutBatches, Sizes, measure_payout_batches
from tests.bench.pgbench import CLIENTS, PGBENCH, run_pgbench
from tests.bench.progress import report_progress
from tests.bench.systems import DIRECT_1, DIRECT_2, OURS, TEXTBOOK, run_service
from tests.servers import Servers


@dataclass(frozen=True, slots=True)
class Durations:
    """How long and how often."""

    rounds: int
    main_s: int
    """Cases that a goal is computed from."""
    other_s: int
    pgbench_s: int
    warm_up_s: int
    ledger_batches: int
    payout_batches: Sizes
    all_informative: bool
    """Also what no goal needs, of the competitors."""


FULL = Durations(
    rounds=2,
    main_s=4,
    other_s=2,
    pgbench_s=2,
    warm_up_s=2,
    ledger_batches=200,
    payout_batches=Sizes(rows=100_000, load_s=8, warm_up_s=2),
    all_informative=True,
)
SHORT = Durations(
    rounds=1,
    main_s=2,
    other_s=1,
    pgbench_s=1,
    warm_up_s=1,
    ledger_batches=30,
    payout_batches=Sizes(rows=5_000, load_s=2, warm_up_s=1),
    all_informative=False,
)


@dataclass
class Findings:
    """Everything that a run found out."""

    measurements: list[Measurement] = field(default_factory=list)
    ledger: LedgerAlone | None = None
    payout_batches: PayoutBatches | None = None
    problems: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.measurements += result.measurements
        self.problems += result.problems


def plan_turns(durations: Durations, round_number: int) -> dict[str, list[Case]]:
    """Return the cases of each system in one round; the first ones are alike, on tables of the same size."""
    main_s, other_s = durations.main_s, durations.other_s
    common = [Case(HOT, MANY, main_s), Case(SPREAD, MANY, main_s), Case(HOT, 1, other_s)]
    ours = [
        *common,
        Case(QUIET, QUIET_CONNECTIONS, main_s),
        Case(QUIET_FLOODED, QUIET_CONNECTIONS, main_s),
    ]
    direct = list(common)
    textbook = [Case(HOT, MANY, main_s)]
    if round_number == 0:  # for information
        ours += [
            Case(HOT, 32, other_s),
            Case(HOT, 1_000, other_s),
            Case(PACED, QUIET_CONNECTIONS, other_s),
            Case(PACED_FLOODED, QUIET_CONNECTIONS, other_s),
        ]
        if durations.all_informative:
            direct += [Case(HOT, 32, other_s)]
            textbook += [Case(SPREAD, MANY, other_s), Case(HOT, 1, other_s)]
    pgbench = [Case(workload, clients, durations.pgbench_s) for workload in (HOT, SPREAD) for clients in CLIENTS]
    return {OURS: ours, DIRECT_1: direct, TEXTBOOK: textbook, DIRECT_2: direct, PGBENCH: pgbench}


def run_suite(
    servers: Servers, accounts: Accounts, generator: LoadGenerator, durations: Durations, only: Collection[str]
) -> Findings:
    """Run all turns, round after round; with `only`, just what those goals need."""
    findings = Findings()
    wanted = {key for goal in GOALS if goal.name in only for key in (goal.ours, *goal.theirs)}
    for round_number in range(durations.rounds):
        for system, cases in plan_turns(durations, round_number).items():
            chosen = [case for case in cases if not only or Key(system, case.workload, case.connections) in wanted]
            if chosen:
                report_progress(f"round {round_number + 1} of {durations.rounds}: {system}")
                findings.add(_take_turn(servers, accounts, generator, system, chosen, durations.warm_up_s))
    if not only or LEDGER in only:
        report_progress("the ledger alone")
        findings.ledger = measure_ledger(servers, accounts, durations.ledger_batches)
        findings.problems += findings.ledger.problems
    if not only or BATCHES in only:
        report_progress("payout batches")
        found = measure_payout_batches(servers, accounts, generator, durations.payout_batches)
        findings.payout_batches = found
        findings.measurements += found.measurements
        findings.problems += found.problems
    return findings


def _take_turn(
    servers: Servers, accounts: Accounts, generator: LoadGenerator, system: str, cases: list[Case], warm_up_s: int
) -> Result:
    if system == PGBENCH:
        with run_pgbench(servers) as pgbench:
            pgbench.warm_up(1)
            for case in cases:
                pgbench.run(case)
            return pgbench.finish()
    with run_service(servers, system) as service:
        turn = HttpTurn(service, accounts, generator)
        turn.warm_up(warm_up_s)
        for case in cases:
            turn.run(case)
        return turn.finish()
