"""How fast the history is sealed and proven, and whether sealing keeps up with payments: `python -m tests.bench.chain`.

The history is written for the measurement, twenty rows for each user. Payments are groups of 500 of a process of their
own, at a rate; sealing and summing run beside them as the workers' tasks do, for 2 s of every 5 s and 15 s.
"""

import multiprocessing
import resource
import time
from multiprocessing.synchronize import Event
from uuid import UUID

import click
import sqlalchemy as sa

from core.chain.proof import prove
from core.chain.sealer import seal_all
from core.credentials import digest_of, payout_hash
from core.database.connection import Database, driver_of
from core.ids import new_id
from core.ledger import statements
from core.messages import Allocation
from tests.bench.progress import report_progress
from tests.servers import HASH_SECRET, Account, open_account, run_servers
from workers.app import SEAL_EVERY_S, SUM_DAYS_EVERY_S
from workers.tasks.chain import SEALING_TIMEOUT_S, HistorySealer
from workers.tasks.day_sums import DaySummer

_SECRET = HASH_SECRET.encode()
_ROWS_EACH = 20
_GROUP = 500
_FAR_FUTURE_US = 4_102_444_800_000_000
_COPY_USERS = "COPY payout_users (business_id, id, email, hash_digest, balance) FROM STDIN"
_WRITE_HISTORY = sa.text("""
    INSERT INTO payout_transactions (
        business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, sequence
    )
    SELECT :business_id, uuidv7(), 'allocation', id, 1, 0, :pass,
        row_number() OVER (ORDER BY id) + (SELECT last_sequence FROM businesses WHERE id = :business_id)
    FROM payout_users
    WHERE business_id = :business_id
""")
_DEBIT = sa.text("""
    UPDATE businesses SET payout_balance = payout_balance - :rows, last_sequence = last_sequence + :rows
    WHERE id = :business_id
""")
_LEFT = sa.text("""
    SELECT COALESCE(sum(businesses.last_sequence - COALESCE(sealed, 0)), 0),
        COALESCE(sum(businesses.last_sequence - COALESCE(summed.last_sequence, 0)), 0)
    FROM businesses
    LEFT JOIN payout_day_sums_progress AS summed ON summed.business_id = businesses.id
    LEFT JOIN LATERAL (
        SELECT max(last_sequence) AS sealed FROM history_seals WHERE history_seals.business_id = businesses.id
    ) AS seals ON true
""")


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, help="History rows that are sealed and proven.")
@click.option("--rate", default=10_000, show_default=True, help="Allocations a second while sealing runs beside them.")
@click.option("--load-s", default=60.0, show_default=True, help="For how long.")
def main(rows: int, rate: int, load_s: float) -> None:
    """Print what was measured."""
    with (
        run_servers(on_disk=True) as servers,
        servers.clone() as url,
        Database(url, transaction_timeout_s=None) as database,
    ):
        _measure_proof(database, rows)
        _measure_lag(url, database, rate, load_s)


def _measure_proof(database: Database, rows: int) -> None:
    account = open_account(database, funds_cents=10**12)
    _fill(database, account.business.id, rows)
    began, cpu = time.monotonic(), time.process_time()
    seal_all(database, _SECRET)
    took = time.monotonic() - began
    own = time.process_time() - cpu
    click.echo(f"sealed {rows:,} rows in {took:.0f} s: {rows / took:,.0f} a second, own processor time {own:.0f} s")
    began, cpu = time.monotonic(), time.process_time()
    with database.snapshot() as connection:
        proof = prove(connection, _SECRET)
    took = time.monotonic() - began
    own = time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    click.echo(
        f"proven {rows:,} rows in {took:.0f} s: {rows / took:,.0f} a second, own processor time {own:.0f} s, "
        f"at most {memory:.0f} MiB, found {proof.places}"
    )


def _fill(database: Database, business_id: UUID, rows: int) -> None:
    users = rows // _ROWS_EACH
    with (
        database.transaction() as connection,
        driver_of(connection).cursor() as cursor,
        cursor.copy(_COPY_USERS) as copy,
    ):
        for number in range(users):
            email = f"user{number}@example.com"
            digest = digest_of(payout_hash(_SECRET, business_id, email))
            copy.write_row((business_id, new_id(), email, digest, _ROWS_EACH))
    for number in range(_ROWS_EACH):
        with database.transaction() as connection:
            connection.execute(_WRITE_HISTORY, {"business_id": business_id, "pass": number + 1})
            connection.execute(_DEBIT, {"business_id": business_id, "rows": users})
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM (ANALYZE) payout_users, payout_transactions"))
    report_progress(f"{rows:,} history rows")


def _measure_lag(url: str, database: Database, rate: int, load_s: float) -> None:
    account = open_account(database, funds_cents=10**12)
    ended = multiprocessing.Event()
    keeper = multiprocessing.Process(target=_keep_up, args=(url, ended))
    keeper.start()
    began = time.monotonic()
    count = 0
    while (now := time.monotonic() - began) < load_s:
        if count > now * rate:
            time.sleep(0.005)
            continue
        with database.pipeline() as connection:
            statements.allocate(connection, _SECRET, _make_group(account, count))
        count += _GROUP
    took = time.monotonic() - began
    unsealed, unsummed = _read_left(database)
    click.echo(
        f"{count:,} allocations in {took:.0f} s ({count / took:,.0f} a second) with sealing and summing beside them: "
        f"at the end {unsealed:,} rows were not sealed and {unsummed:,} not summed"
    )
    while max(_read_left(database)) > 0 and time.monotonic() - began < load_s + 600:
        time.sleep(0.1)
    click.echo(f"nothing was left {time.monotonic() - began - took:.1f} s later")
    ended.set()
    keeper.join()


def _make_group(account: Account, first: int) -> list[Allocation]:
    return [
        Allocation(
            new_id(),
            account.business.id,
            account.api_key_id,
            f"user{(first + number) % 100_000}@example.com",
            1,
            _FAR_FUTURE_US,
        )
        for number in range(_GROUP)
    ]


def _read_left(database: Database) -> tuple[int, int]:
    with database.transaction() as connection:
        unsealed, unsummed = connection.execute(_LEFT).one()
    return int(unsealed), int(unsummed)


def _keep_up(url: str, ended: Event) -> None:
    """Seal and sum as a `batches` worker does."""
    with (
        Database(url, transaction_timeout_s=SEALING_TIMEOUT_S) as sealing,
        Database(url, transaction_timeout_s=2) as summing,
    ):
        sealer, summer = HistorySealer(sealing, _SECRET), DaySummer(summing)
        seal_at = sum_at = time.monotonic()
        while not ended.is_set():
            now = time.monotonic()
            if now >= seal_at:
                seal_at = now + SEAL_EVERY_S
                sealer.work()
            elif now >= sum_at:
                sum_at = now + SUM_DAYS_EVERY_S
                summer.work()
            else:
                ended.wait(0.05)


if __name__ == "__main__":
    main()
