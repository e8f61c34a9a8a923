"""What references cost: files of which half is already paid, and calls with a reference, a key, or neither.

Run it alone: `.venv/bin/python -m tests.bench.references`. Both sides take turns; the server's own writes
include the row and the index of each reference.
"""

import json
import time
from statistics import median
from typing import Any

import httpx
import sqlalchemy as sa

from core.database.connection import Database
from core.ids import new_id
from core.ledger import statements
from core.messages import Allocation, Outcome
from tests.servers import HASH_SECRET, Account, Servers, System, open_account, run_servers, run_system

ROWS = 100_000
TURNS = 3
CHUNK = 500
GROUP = 100
GROUPS = 60
FUNDS_CENTS = 10**12
FAR_FUTURE_US = 4_102_444_800_000_000

_SERVER_SIDE = sa.text("""
    WITH drawn AS MATERIALIZED (
        SELECT number, uuidv7() AS id, 'user' || number || '@example.com' AS email, 1::bigint AS amount,
            :turn || '-' || number AS reference
        FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS number
    ), named AS (
        INSERT INTO payment_references (business_id, reference, attempt, payment_id, email, amount, batch_id)
        SELECT :business_id, reference, 0, id, email, amount, NULL FROM drawn
    ), debited AS (
        UPDATE businesses
        SET payout_balance = payout_balance - (SELECT sum(amount) FROM drawn),
            last_sequence = last_sequence + (SELECT count(*) FROM drawn)
        WHERE id = :business_id
        RETURNING payout_balance, last_sequence
    ), credited AS (
        INSERT INTO payout_users AS existing (business_id, id, email, hash_digest, balance)
        SELECT :business_id, uuidv7(), email, sha256(convert_to(email, 'UTF8')), amount
        FROM drawn
        ON CONFLICT (business_id, email) DO UPDATE
            SET balance = existing.balance + excluded.balance, updated_at = now()
        RETURNING id, email, balance
    )
    INSERT INTO payout_transactions (
        business_id, id, type, payout_user_id, amount, payout_balance_after, user_balance_after, sequence, reference
    )
    SELECT :business_id, drawn.id, 'allocation', credited.id, amount, debited.payout_balance, credited.balance,
        debited.last_sequence + 1 - row_number() OVER (ORDER BY number DESC), reference
    FROM drawn JOIN credited USING (email) CROSS JOIN debited
""")


def main() -> None:
    """Measure and print."""
    with run_servers() as servers:
        measure_files(servers)
        measure_calls(servers)


def measure_files(servers: Servers) -> None:
    """Send files: all rows new; then the same size, new and already paid by turns."""
    with (
        run_system(servers) as system,
        servers.clone() as url,
        Database(url, transaction_timeout_s=None, pool_size=1) as database,
    ):
        account = open_account(system.database, funds_cents=FUNDS_CENTS)
        theirs = open_account(database, funds_cents=FUNDS_CENTS)
        send(system, account, [row("warm", number) for number in range(1, 10_001)])
        write(database, theirs, "warm", 10_000)
        for turn in range(TURNS):
            new = [row(f"a{turn}", number) for number in range(1, ROWS + 1)]
            report(f"turn {turn}, all new", *send(system, account, new), write(database, theirs, f"a{turn}", ROWS))
            # Every second row is one of those.
            mixed = [
                row(f"b{turn}", number) if number % 2 else row(f"a{turn}", number) for number in range(1, ROWS + 1)
            ]
            half = write(database, theirs, f"b{turn}", ROWS // 2)
            report(f"turn {turn}, half already paid", *send(system, account, mixed), half)


def row(name: str, number: int) -> dict[str, Any]:
    """Return a row with a reference of its own."""
    return {"email": f"user{number}@example.com", "amount": 1, "reference": f"{name}-{number}"}


def send(system: System, account: Account, rows: list[dict[str, Any]]) -> tuple[float, float, int]:
    """Return the seconds until the batch was accepted and until it was paid, and how many rows it paid."""
    body = json.dumps({"allocations": rows}, separators=(",", ":")).encode()
    headers = account.headers | {"Content-Type": "application/json"}
    started = time.monotonic()
    answer = httpx.post(f"{system.base_url}/payout/batches", content=body, headers=headers, timeout=90)
    accepted_s = time.monotonic() - started
    answer.raise_for_status()
    path = f"{system.base_url}/payout/batches/{answer.json()['id']}"
    while httpx.get(path, headers=headers).json()["finished_at"] is None:
        time.sleep(0.02)
    return accepted_s, time.monotonic() - started, answer.json()["total"] - answer.json()["already_paid"]


def write(database: Database, account: Account, turn: str, rows: int) -> float:
    """Make the same writes inside the server, a transaction for each chunk; return the seconds."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("CHECKPOINT"))
    started = time.monotonic()
    for first in range(1, rows + 1, CHUNK):
        parameters = {"business_id": account.business.id, "turn": turn, "first": first, "last": first + CHUNK - 1}
        with database.transaction() as connection:
            connection.execute(_SERVER_SIDE, parameters)
    return time.monotonic() - started


def report(name: str, accepted_s: float, paid_s: float, rows: int, server_side_s: float) -> None:
    """Print one file."""
    print(
        f"{name}: {rows} rows paid, accepted in {accepted_s:.2f} s, paid in {paid_s:.2f} s; the server's own writes "
        f"{server_side_s:.2f} s; ratio {server_side_s / paid_s:.2f}"
    )


def measure_calls(servers: Servers) -> None:
    """Carry groups out with neither key nor reference, with keys, and with references, by turns."""
    with servers.clone() as url, Database(url, transaction_timeout_s=None, pool_size=1) as database:
        account = open_account(database, funds_cents=FUNDS_CENTS)
        seconds: dict[str, list[float]] = {"neither": [], "key": [], "reference": []}
        for number in range(-5, GROUPS):
            for kind, durations in seconds.items():
                allocations = [draw(account, kind, f"{kind}-{number}-{each}") for each in range(GROUP)]
                started = time.perf_counter()
                with database.pipeline() as connection:
                    outcomes = statements.allocate(connection, HASH_SECRET.encode(), allocations)
                if number >= 0:
                    durations.append(time.perf_counter() - started)
                assert set(outcomes) == {Outcome.ALLOCATED}
        for kind, durations in seconds.items():
            print(
                f"calls with {kind}: {GROUP / median(durations):,.0f} a second (median of {GROUPS} groups of {GROUP})"
            )
        print(f"reference over key: {median(seconds['key']) / median(seconds['reference']):.3f}")


def draw(account: Account, kind: str, name: str) -> Allocation:
    """Draw an allocation with a name of this kind."""
    named = {"key": {"idempotency_key": name}, "reference": {"reference": name}}.get(kind, {})
    email = f"user{hash(name) % 10_000}@example.com"
    return Allocation(new_id(), account.business.id, account.api_key_id, email, 1, FAR_FUTURE_US, **named)


if __name__ == "__main__":
    main()
