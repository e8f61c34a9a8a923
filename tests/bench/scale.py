"""The long run: a big database against an empty one, and memory after minutes of load."""

import statistics
import time
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from core.database.connection import Database
from tests.bench.accounts import EMAILS, SPREAD_BUSINESSES, Account, Accounts
from tests.bench.cpu import read_memory_bytes
from tests.bench.history import find_imbalances, find_miscounts, read_resolved_history
from tests.bench.load import Demand, Load, LoadGenerator
from tests.bench.measurements import Key, Measurement
from tests.bench.progress import report_progress
from tests.bench.systems import OURS, Service, run_service
from tests.servers import Servers

_CHUNK = 500_000
_CONNECTIONS = 256
_SAMPLE_EVERY_S = 10.0
_WARM_UP_S = 3
SIZE_RATIO_MIN = 0.8
MEMORY_RATIO_MAX = 1.1

# Ids in order of time, e-mails in order of numbers; a case draws them from all over the table.
_WRITE_USERS = sa.text("""
    INSERT INTO payout_users (business_id, id, email, hash_digest, balance)
    SELECT :business_id, uuidv7(), 'user' || number || '@example.com',
        sha256(convert_to('user' || number || '@example.com', 'UTF8')), :rows_each
    FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS number
""")

# As many rows of one cent for each user, one user after another in each pass.
_WRITE_HISTORY = sa.text("""
    INSERT INTO payout_transactions (
        business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, sequence
    )
    SELECT business_id, uuidv7(), 'allocation', id, 1,
        :payout_balance - row_number() OVER (ORDER BY id), :pass,
        row_number() OVER (ORDER BY id) + (SELECT last_sequence FROM businesses WHERE id = :business_id)
    FROM payout_users
    WHERE business_id = :business_id AND balance > 0
    ORDER BY id
""")

_DEBIT = sa.text("""
    UPDATE businesses SET payout_balance = payout_balance - :amount, last_sequence = last_sequence + :amount
    WHERE id = :business_id
""")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How big, and how long."""

    users: int
    rows_each: int
    """History rows for each user."""
    seconds: int
    """Of each case on the big and the empty database."""
    rounds: int
    minutes: float
    """Of load, while memory is watched."""


@dataclass
class ScaleFindings:
    """What the long run found out."""

    measurements: list[Measurement] = field(default_factory=list)
    memory_mib: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    """(seconds of load, proportional set size by part)."""
    problems: list[str] = field(default_factory=list)

    def memory_ratio(self, part: str) -> float | None:
        """Return memory at the end against after the first minute, or a tenth of the time where that is shorter."""
        if len(self.memory_mib) < 2:
            return None
        early_s = min(60.0, self.memory_mib[-1][0] / 10)
        early = next(memory for seconds, memory in self.memory_mib if seconds >= early_s)
        return self.memory_mib[-1][1][part] / early[part]

    def size_ratio(self, workload: str) -> float | None:
        """Return requests a second on the big database against the empty one: medians over the rounds."""
        rates = [
            [each.per_second for each in self.measurements if each.key.workload == f"{workload}, {size}"]
            for size in (BIG, EMPTY)
        ]
        return statistics.median(rates[0]) / statistics.median(rates[1]) if all(rates) else None


BIG = "big"
EMPTY = "empty"
FEW_EMAILS = f"{EMAILS:,} e-mails"
ALL_EMAILS = "all e-mails"


def run_scale(servers: Servers, accounts: Accounts, generator: LoadGenerator, sizes: Sizes) -> ScaleFindings:
    """Fill a database, compare, then load another for minutes."""
    findings = ScaleFindings()
    if sizes.users:
        _compare_sizes(servers, accounts, generator, sizes, findings)
    if sizes.minutes:
        with run_service(servers, OURS) as service:
            _watch_memory(service, accounts, generator, sizes, findings)
            findings.problems += find_imbalances(service.database) + service.find_complaints()
    return findings


def _compare_sizes(
    servers: Servers, accounts: Accounts, generator: LoadGenerator, sizes: Sizes, findings: ScaleFindings
) -> None:
    """Big and empty take turns, each system on its own database; only the one whose turn it is gets any load."""
    hot = accounts.hot[0]
    # The queue has one name, so the second system has a database number of its own.
    second = replace(servers, redis_url=servers.redis_url.removesuffix("/0") + "/1")
    # What proves once a day that the books balance would find a database that is just being filled.
    unproven = {"verify_every_s": "0"}
    with run_service(servers, OURS, **unproven) as big, run_service(second, OURS, **unproven) as empty:
        _fill(big.database, hot, sizes)
        services = {BIG: big, EMPTY: empty}
        for size, service in services.items():
            _load(service, generator, Demand([accounts.hot[1]], _CONNECTIONS, _WARM_UP_S), f"warm-up, {size}", findings)
        for number in range(sizes.rounds):
            # A round's empty business is a fresh one, so that its users are few at each beginning.
            fresh = accounts.hot[2 + 2 * number : 4 + 2 * number]
            for size, service in services.items():
                for workload, emails, fresh_account in (
                    (FEW_EMAILS, min(EMAILS, sizes.users), fresh[0]),
                    (ALL_EMAILS, sizes.users, fresh[1]),
                ):
                    account = hot if size == BIG else fresh_account
                    demand = Demand([account], _CONNECTIONS, sizes.seconds, emails, sizes.users // emails)
                    load = _load(service, generator, demand, f"{workload}, {size}", findings)
                    key = Key(OURS, f"{workload}, {size}", _CONNECTIONS)
                    findings.measurements.append(Measurement.of_load(key, load))
        for service in services.values():
            findings.problems += find_imbalances(service.database) + service.find_complaints()


def _load(service: Service, generator: LoadGenerator, demand: Demand, name: str, findings: ScaleFindings) -> Load:
    before = read_resolved_history(service.database)
    load = generator.start(service.base_url, demand).wait()
    report_progress(f"{name}: {load.per_second:,.0f}/s, p50 {load.p50_us / 1000:.1f} ms")
    problems = find_miscounts(before, read_resolved_history(service.database), [load], demand.connections)
    findings.problems += [f"{name}: {problem}" for problem in problems]
    return load


def _fill(database: Database, account: Account, sizes: Sizes) -> None:
    business = {"business_id": account.business_id}
    for first in range(0, sizes.users, _CHUNK):
        last = min(first + _CHUNK, sizes.users) - 1
        with database.transaction() as connection:
            numbers = {"first": first, "last": last, "rows_each": sizes.rows_each}
            connection.execute(_WRITE_USERS, business | numbers)
        report_progress(f"{last + 1:,} of {sizes.users:,} users")
    with database.transaction() as connection:
        query = sa.text("SELECT payout_balance FROM businesses WHERE id = :business_id")
        funds = connection.execute(query, business).scalar_one()
        for number in range(sizes.rows_each):
            parameters = {"payout_balance": funds - number * sizes.users, "pass": number + 1}
            connection.execute(_WRITE_HISTORY, business | parameters)
            connection.execute(_DEBIT, business | {"amount": sizes.users})
            report_progress(f"{(number + 1) * sizes.users:,} of {sizes.rows_each * sizes.users:,} history rows")
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM (ANALYZE) payout_users, payout_transactions"))
        connection.execute(sa.text("CHECKPOINT"))
    report_progress("filled")


def _watch_memory(
    service: Service, accounts: Accounts, generator: LoadGenerator, sizes: Sizes, findings: ScaleFindings
) -> None:
    """Load one business with nine tenths of the connections and the thousand with the others."""
    seconds = round(sizes.minutes * 60)
    before = read_resolved_history(service.database)
    started = time.monotonic()
    loads = [
        generator.start(service.base_url, Demand([accounts.hot[0]], _CONNECTIONS * 9 // 10, seconds)),
        generator.start(service.base_url, Demand(accounts.spread[:SPREAD_BUSINESSES], _CONNECTIONS // 10, seconds)),
    ]
    try:
        every_s = min(_SAMPLE_EVERY_S, seconds / 20)
        while (elapsed_s := time.monotonic() - started) < seconds - every_s:
            time.sleep(every_s)
            memory = {part: size / 2**20 for part, size in read_memory_bytes().items()}
            findings.memory_mib.append((round(elapsed_s + every_s, 1), memory))
            shown = ", ".join(f"{part} {mib:.1f} MiB" for part, mib in memory.items())
            report_progress(f"{elapsed_s + every_s:.0f} s of load: {shown}")
        seen = [each.wait() for each in loads]
    finally:
        for each in loads:
            each.stop()
    findings.problems += find_miscounts(before, read_resolved_history(service.database), seen, _CONNECTIONS)
