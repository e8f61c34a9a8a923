"""The ledger without HTTP and Celery, against the same writes made inside the server; batches taking turns."""

import random
import time
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa

from core.database.connection import Database
from core.ledger import statements
from core.messages import Outcome
from tests.bench.accounts import AMOUNT_MAX_CENTS, EMAILS, Account, Accounts
from tests.bench.history import find_imbalances, read_history
from tests.servers import HASH_SECRET, Servers

BATCH = 500
_WARM_UP_BATCHES = 8

# Everything that the ledger writes, from rows that the server draws itself.
_SERVER_SIDE = sa.text("""
    WITH drawn AS MATERIALIZED (
        SELECT number, 'user' || floor(random() * :emails) || '@example.com' AS email,
            CAST(1 + floor(random() * :amount_max) AS bigint) AS amount
        FROM generate_series(1, :batch) AS number
    ), debited AS (
        UPDATE businesses
        SET payout_balance = payout_balance - (SELECT sum(amount) FROM drawn), last_sequence = last_sequence + :batch
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
    SELECT :business_id, uuidv7(), 'allocation', credited.id, amount,
        debited.payout_balance + sum(amount) OVER () - sum(amount) OVER (ORDER BY number),
        credited.balance - sum(amount) OVER (PARTITION BY email)
            + sum(amount) OVER (PARTITION BY email ORDER BY number),
        debited.last_sequence - :batch + number
    FROM drawn JOIN credited USING (email) CROSS JOIN debited
""")


@dataclass(frozen=True, slots=True)
class LedgerAlone:
    """Rows a second of both, and what did not add up."""

    ledger_per_second: float
    server_side_per_second: float
    batches: int
    problems: list[str]

    @property
    def ratio(self) -> float:
        return self.ledger_per_second / self.server_side_per_second


def measure_ledger(servers: Servers, accounts: Accounts, batches: int) -> LedgerAlone:
    """Run as many batches of both, each on a copy of the database of its own, so that both tables grow alike."""
    account = accounts.hot[0]
    random_ = random.Random(1)  # noqa: S311 (not a secret)
    with (
        servers.clone() as ours_url,
        servers.clone() as theirs_url,
        Database(ours_url, transaction_timeout_s=None, pool_size=1) as ours,
        Database(theirs_url, transaction_timeout_s=None, pool_size=1) as theirs,
    ):
        ours_s = theirs_s = 0.0
        for number in range(-_WARM_UP_BATCHES, batches):
            ours_batch_s = _time_ledger(ours, account, random_)
            theirs_batch_s = _time_server_side(theirs, account.business_id)
            if number >= 0:
                ours_s += ours_batch_s
                theirs_s += theirs_batch_s
        expected = (_WARM_UP_BATCHES + batches) * BATCH
        problems = []
        for name, database in (("ledger alone", ours), ("server-side INSERT … SELECT", theirs)):
            rows = read_history(database).rows
            if rows != expected:
                problems.append(f"{name}: {expected} allocations, but {rows} history rows")
            problems += [f"{name}: {problem}" for problem in find_imbalances(database)]
    return LedgerAlone(batches * BATCH / ours_s, batches * BATCH / theirs_s, batches, problems)


def _time_ledger(database: Database, account: Account, random_: random.Random) -> float:
    allocations = [
        account.allocation(f"user{random_.randrange(EMAILS)}@example.com", random_.randint(1, AMOUNT_MAX_CENTS))
        for _ in range(BATCH)
    ]
    started = time.perf_counter()
    with database.transaction() as connection:
        outcomes = statements.allocate(connection, HASH_SECRET.encode(), allocations)
    duration_s = time.perf_counter() - started
    assert set(outcomes) == {Outcome.ALLOCATED}
    return duration_s


def _time_server_side(database: Database, business_id: UUID) -> float:
    parameters = {"emails": EMAILS, "amount_max": AMOUNT_MAX_CENTS, "batch": BATCH, "business_id": business_id}
    started = time.perf_counter()
    with database.transaction() as connection:
        connection.execute(_SERVER_SIDE, parameters)
    return time.perf_counter() - started
