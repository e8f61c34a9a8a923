"""Payout batches: their speed, what synchronous calls notice of them, and the memory that accepting them takes."""

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import httpx
import psutil
import sqlalchemy as sa

from api.batches.endpoint import PATH
from core.database.connection import Database
from core.ids import IdKind, parse_id
from tests.bench.accounts import AMOUNT_MAX_CENTS, Account, Accounts
from tests.bench.cpu import CpuWatch, find_servers
from tests.bench.history import History, find_imbalances, find_miscounts, read_history, read_resolved_history
from tests.bench.load import Demand, Load, LoadGenerator
from tests.bench.measurements import Key, Measurement
from tests.bench.progress import report_progress
from tests.bench.systems import OURS, Service, run_service
from tests.servers import Servers

NEW = "new users"
EXISTING = "existing users"
LARGEST = "largest file"
ALONE = "no batch"
BESIDE = "beside batches"
CONNECTIONS = 8
PER_SECOND = 100
"""Synchronous calls of all connections together."""
SERVER_SIDE_CHUNKS = 500

_SAMPLE_EVERY_S = 0.05
_POLL_S = 0.01
_ANSWER_WITHIN_S = 90.0
_PAID_WITHIN_S = 120.0
_REFERENCE_CHARACTERS = 255
_DOMAIN = "example.com"
_LONG_DOMAIN = "forthelargestfile.example.com"

# Everything that a batch writes when it is paid, from rows that the server draws itself.
_SERVER_SIDE = sa.text("""
    WITH drawn AS MATERIALIZED (
        SELECT number, 'user' || number || '@' || :domain AS email,
            CAST(1 + floor(random() * :amount_max) AS bigint) AS amount
        FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS number
    ), debited AS (
        UPDATE businesses
        SET payout_balance = payout_balance - (SELECT sum(amount) FROM drawn),
            last_sequence = last_sequence + (SELECT count(*) FROM drawn)
        WHERE id = :business_id
        RETURNING payout_balance, last_sequence
    ), credited AS (
        INSERT INTO payout_users AS existing (business_id, id, email, hash_digest, balance)
        SELECT :business_id, uuidv7(), email, sha256(convert_to(email, 'UTF8')), sum(amount)
        FROM drawn
        GROUP BY email
        ON CONFLICT (business_id, email) DO UPDATE
            SET balance = existing.balance + excluded.balance, updated_at = now()
        RETURNING id, email, balance
    )
    INSERT INTO payout_transactions (
        business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, sequence
    )
    SELECT :business_id, uuidv7(), 'allocation', credited.id, amount, debited.payout_balance,
        credited.balance - sum(amount) OVER (PARTITION BY email ORDER BY number DESC) + amount,
        debited.last_sequence + 1 - row_number() OVER (ORDER BY number DESC)
    FROM drawn JOIN credited USING (email) CROSS JOIN debited
""")

_PROGRESS = sa.text("SELECT processed = total FROM payout_batches WHERE business_id = :business_id AND id = :batch_id")
_PAID = sa.text("""
    SELECT count(*), COALESCE(sum(amount), 0) FROM payout_transactions
    WHERE business_id = :business_id AND batch_id = :batch_id AND type = 'allocation'
""")
_RESERVED = sa.text("SELECT sum(reserved_balance) FROM businesses")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much."""

    rows: int
    load_s: int
    """Of synchronous calls, without batches and again beside them."""
    warm_up_s: int


@dataclass(frozen=True, slots=True)
class Upload:
    """A file with its rows and cents."""

    body: bytes
    rows: int
    cents: int

    @classmethod
    def draw(cls, random_: random.Random, rows: int, domain: str = _DOMAIN, reference_characters: int = 0) -> "Upload":
        """Draw a row for each of as many e-mails."""
        allocations: list[dict[str, str | int]] = [
            {"email": f"user{number}@{domain}", "amount": random_.randint(1, AMOUNT_MAX_CENTS)}
            for number in range(1, rows + 1)
        ]
        if reference_characters:
            for number, allocation in enumerate(allocations):
                allocation["reference"] = f"{number:0{reference_characters}}"
        cents = sum(int(allocation["amount"]) for allocation in allocations)
        body = json.dumps({"allocations": allocations}, separators=(",", ":")).encode()
        return cls(body, rows, cents)


@dataclass(frozen=True, slots=True)
class SentBatch:
    """A batch that was sent and, by its own account, paid; times are from the beginning of the upload."""

    business_id: UUID
    id: UUID
    upload: Upload
    accept_s: float
    paid_s: float


@dataclass(frozen=True, slots=True)
class PaidBatch:
    """A batch that was measured; times are from the beginning of the upload."""

    name: str
    rows: int
    body_mib: float
    accept_s: float
    paid_s: float
    cpu_us: dict[str, float]
    """Processor time for each row, by part."""

    @property
    def per_second(self) -> float:
        return self.rows / self.paid_s


@dataclass
class PayoutBatches:
    """Everything that was found out about payout batches."""

    batches: dict[str, PaidBatch] = field(default_factory=dict)
    server_side: dict[str, dict[str, float]] = field(default_factory=dict)
    """Rows a second of each way to write them inside the server."""
    idle_mb: float = 0.0
    peak_mb: float = 0.0
    loads: dict[str, Load] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def measurements(self) -> list[Measurement]:
        return [Measurement.of_load(Key(OURS, name, CONNECTIONS), load) for name, load in self.loads.items()]


def measure_payout_batches(
    servers: Servers, accounts: Accounts, generator: LoadGenerator, sizes: Sizes
) -> PayoutBatches:
    """Run everything once; ours and the server's own writes take turns, each on a copy of the database of its own."""
    with (
        run_service(servers, OURS) as service,
        servers.clone() as url,
        Database(url, transaction_timeout_s=None, pool_size=1) as database,
    ):
        server_side = _ServerSide(database, accounts, sizes.rows)
        turn = _Turn(service, accounts, generator, sizes)
        turn.warm_up()
        turn.measure_memory()  # first, while the process has never had so much
        server_side.warm_up()
        for name in (NEW, EXISTING):
            report_progress(f"payout batches: {name}")
            turn.pay(name)
            turn.found.server_side[name] = server_side.measure()
        report_progress("payout batches: synchronous calls")
        turn.measure_loads()
        turn.found.problems += [*turn.find_problems(), *server_side.find_problems()]
        return turn.found


class _Turn:
    """The product's turn: whatever it pays is counted after each step."""

    def __init__(self, service: Service, accounts: Accounts, generator: LoadGenerator, sizes: Sizes) -> None:
        self._service = service
        self._generator = generator
        self._sizes = sizes
        self._random = random.Random(1)  # noqa: S311 (not a secret)
        self._history = read_resolved_history(service.database)
        self._for_warm_up, self._for_largest, self._for_races, self._for_loads = accounts.hot[:4]
        self.found = PayoutBatches()

    def warm_up(self) -> None:
        self._load("warm-up", self._for_warm_up, self._sizes.warm_up_s)

    def measure_memory(self) -> None:
        """Send as many bytes as are allowed with as many rows; with fewer rows, fewer."""
        upload = Upload.draw(self._random, self._sizes.rows, _LONG_DOMAIN, _REFERENCE_CHARACTERS)
        with _watch_api_memory() as sizes_mb:
            self._pay(LARGEST, self._for_largest, upload)
        self.found.idle_mb, self.found.peak_mb = sizes_mb[0], max(sizes_mb)

    def pay(self, name: str) -> None:
        self._pay(name, self._for_races, Upload.draw(self._random, self._sizes.rows))

    def measure_loads(self) -> None:
        """Call synchronously: without batches, then while the same business sends one batch after another."""
        self.found.loads[ALONE] = self._load(ALONE, self._for_loads, self._sizes.load_s)
        self.found.loads[BESIDE] = self._load(BESIDE, self._for_loads, self._sizes.load_s, with_batches=True)

    def find_problems(self) -> list[str]:
        """Prove that the books balance, and that nothing is left in reserve."""
        database = self._service.database
        problems = [*find_imbalances(database), *self._service.find_complaints()]
        with database.snapshot() as connection:
            reserved = connection.execute(_RESERVED).scalar_one()
        if reserved:
            problems.append(f"{reserved} cents are still reserved")
        return [f"{OURS}, payout batches: {problem}" for problem in problems]

    def _pay(self, name: str, account: Account, upload: Upload) -> None:
        _checkpoint(self._service.database)
        watch = CpuWatch()
        sent = self._send(account, upload)
        cpu_s, _ = watch.read(0)
        cpu_us = {part: seconds * 1e6 / upload.rows for part, seconds in cpu_s.items()}
        body_mib = len(upload.body) / 2**20
        self.found.batches[name] = PaidBatch(name, upload.rows, body_mib, sent.accept_s, sent.paid_s, cpu_us)
        self._count(name, [], [sent], read_history(self._service.database))

    def _send(self, account: Account, upload: Upload) -> SentBatch:
        """Send a batch and wait until it is paid."""
        headers = {"Authorization": f"Bearer {account.secret_key}", "Content-Type": "application/json"}
        started = time.monotonic()
        response = httpx.post(
            f"{self._service.base_url}{PATH}", content=upload.body, headers=headers, timeout=_ANSWER_WITHIN_S
        )
        accept_s = time.monotonic() - started
        batch_id = parse_id(IdKind.BATCH, response.json()["id"]) if response.status_code == 202 else None
        if batch_id is None:
            text = f"a payout batch was answered {response.status_code}: {response.text[:200]}"
            raise RuntimeError(text)
        self._wait_until_paid(account.business_id, batch_id)
        return SentBatch(account.business_id, batch_id, upload, accept_s, time.monotonic() - started)

    def _wait_until_paid(self, business_id: UUID, batch_id: UUID) -> None:
        names = {"business_id": business_id, "batch_id": batch_id}
        give_up_at = time.monotonic() + _PAID_WITHIN_S
        while time.monotonic() < give_up_at:
            with self._service.database.transaction() as connection:
                if connection.execute(_PROGRESS, names).scalar_one():
                    return
            time.sleep(_POLL_S)
        text = f"a payout batch is not paid: {self._service.read_logs()[-2000:]}"
        raise TimeoutError(text)

    def _load(self, name: str, account: Account, seconds: int, *, with_batches: bool = False) -> Load:
        demand = Demand([account], CONNECTIONS, seconds, per_second=PER_SECOND)
        running = self._generator.start_exact(self._service.base_url, demand)
        try:
            sent = list(self._send_until(account, time.monotonic() + seconds)) if with_batches else []
            load = running.wait()
        finally:
            running.stop()
        self._count(name, [load], sent, read_resolved_history(self._service.database))
        return load

    def _send_until(self, account: Account, stop_at: float) -> Iterator[SentBatch]:
        """Send batches one after another; the last one outlasts the time."""
        while time.monotonic() < stop_at:
            yield self._send(account, Upload.draw(self._random, self._sizes.rows))

    def _count(self, name: str, loads: Sequence[Load], sent: Sequence[SentBatch], after: History) -> None:
        """Compare answers and files with the history, exactly: whoever sent them waited for every answer."""
        rows = sum(each.upload.rows for each in sent)
        cents = sum(each.upload.cents for each in sent)
        before = History(self._history.rows + rows, self._history.cents + cents)
        self._history = after
        problems = [*find_miscounts(before, after, loads, 0), *filter(None, map(self._find_miscount, sent))]
        self.found.problems += [f"{OURS}, payout batches, {name}: {problem}" for problem in problems]

    def _find_miscount(self, sent: SentBatch) -> str | None:
        with self._service.database.snapshot() as connection:
            found = connection.execute(_PAID, {"business_id": sent.business_id, "batch_id": sent.id}).one()
        if tuple(found) == (sent.upload.rows, sent.upload.cents):
            return None
        return f"{sent.upload.rows} rows of {sent.upload.cents} cents were sent; history's rows and cents: {found}"


class _ServerSide:
    """The same writes, made inside the server of rows that it draws itself."""

    def __init__(self, database: Database, accounts: Accounts, rows: int) -> None:
        self._database = database
        self._rows = rows
        self._for_warm_up, *self._for_races = accounts.hot[:3]
        self._expected_rows = 0

    def warm_up(self) -> None:
        """Fill the tables as the product's are by now."""
        self._write(self._for_warm_up, SERVER_SIDE_CHUNKS)

    def measure(self) -> dict[str, float]:
        """Return rows a second in one statement, and in many; each way has a business of its own."""
        ways = {"one statement": self._rows, f"chunks of {SERVER_SIDE_CHUNKS}": SERVER_SIDE_CHUNKS}
        return {
            f"server-side, {name}": self._rows / self._write(account, chunk)
            for account, (name, chunk) in zip(self._for_races, ways.items(), strict=True)
        }

    def find_problems(self) -> list[str]:
        problems = find_imbalances(self._database)
        rows = read_history(self._database).rows
        if rows != self._expected_rows:
            problems.append(f"{self._expected_rows} allocations, but {rows} history rows")
        return [f"server-side payout batches: {problem}" for problem in problems]

    def _write(self, account: Account, chunk: int) -> float:
        """Write all rows, a transaction for each chunk; return the seconds."""
        _checkpoint(self._database)
        business = {"business_id": account.business_id, "domain": _DOMAIN, "amount_max": AMOUNT_MAX_CENTS}
        started = time.monotonic()
        for first in range(1, self._rows + 1, chunk):
            numbers = {"first": first, "last": min(first + chunk - 1, self._rows)}
            with self._database.transaction() as connection:
                connection.execute(_SERVER_SIDE, business | numbers)
        self._expected_rows += self._rows
        return time.monotonic() - started


@contextmanager
def _watch_api_memory() -> Iterator[list[float]]:
    """Give the API's proportional set size in MB: before, then every 50 ms, on a thread of its own."""
    processes = [each for top in find_servers()["api"] for each in (top, *top.children(recursive=True))]
    sizes_mb = [_memory_mb(processes)]
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(_SAMPLE_EVERY_S):
            sizes_mb.append(_memory_mb(processes))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes_mb
    finally:
        stopping.set()
        thread.join()


def _memory_mb(processes: Sequence[psutil.Process]) -> float:
    """Return the proportional set size; off Linux, what is theirs alone."""
    infos = [process.memory_full_info() for process in processes]
    return sum(float(getattr(info, "pss", info.uss)) for info in infos) / 1e6


def _checkpoint(database: Database) -> None:
    """Let everything that is timed begin at the same distance from a checkpoint."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("CHECKPOINT"))
