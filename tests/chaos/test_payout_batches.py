"""A payout batch while everything that works on it dies in turn: each row is paid once."""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from core.batches import reading
from core.batches.payout_batch import BatchStatus, PayoutBatch
from core.ids import IdKind, parse_id
from tests.chaos.cluster import Cluster, Process, run_cluster
from tests.chaos.faults import kill_valkey, rows_held
from tests.chaos.history import Entry, find_contradictions
from tests.chaos.load import Load, steady_load, unexpected
from tests.polling import wait_until
from tests.servers import Account, verify_books
from workers.tasks.batches import CHUNK_ROWS

ROWS = 20_000
KILLS = 3
STALLED_AFTER_S = "1"
_SETTLED_WITHIN_S = 10.0
PROGRESS_ROWS = 2 * CHUNK_ROWS
"""As many are paid from one fault to the next, at least."""

_ACCEPTED = sa.text("""
    SELECT id, email, amount FROM payout_batch_items
    WHERE business_id = :business_id AND batch_id = :batch_id
    ORDER BY position
""")
_PAID = sa.text("""
    SELECT history.id, email, amount
    FROM payout_transactions AS history
    JOIN payout_users ON payout_users.business_id = history.business_id AND payout_users.id = history.payout_user_id
    WHERE history.business_id = :business_id AND batch_id = :batch_id
""")
_SYNCHRONOUS = sa.text("""
    SELECT allocation.business_id, email, amount, payout_balance_after, EXISTS (
        SELECT FROM payout_transactions AS reversal
        WHERE reversal.business_id = allocation.business_id AND reversal.reversed_id = allocation.id
    ) AS is_reversed
    FROM payout_transactions AS allocation
    JOIN payout_users
        ON payout_users.business_id = allocation.business_id AND payout_users.id = allocation.payout_user_id
    WHERE type = 'allocation' AND batch_id IS NULL
""")
_WAITING = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = :name")
_RESERVED = sa.text("SELECT reserved_balance FROM businesses WHERE id = :id")

Row = tuple[str, int]
"""E-mail and cents."""


@dataclass(frozen=True)
class SentBatch:
    """A batch that was accepted, with the rows that were sent."""

    cluster: Cluster
    business_id: UUID
    id: UUID
    rows: Sequence[Row]

    def read(self) -> PayoutBatch:
        with self.cluster.database.transaction() as connection:
            found = reading.find_batch(connection, self.business_id, self.id)
        assert found is not None
        return found

    def wait_for_progress(self, rows: int = PROGRESS_ROWS) -> None:
        """Wait until further rows are paid; fail where they were the last, for then the next fault proves nothing."""
        goal = self.read().processed + rows
        wait_until(lambda: self.read().processed >= goal, f"row {goal} of the batch is paid", 20)
        assert self.read().finished_at is None, "the batch is too short for so many faults"

    def wait_until_completed(self) -> None:
        wait_until(lambda: self.read().status is BatchStatus.COMPLETED, "the batch is completed", 20)


def send_batch(cluster: Cluster, account: Account, rows: Sequence[Row]) -> SentBatch:
    response = httpx.post(
        f"http://127.0.0.1:{cluster.ports['web-1']}/payout/batches",
        json={"allocations": [{"email": email, "amount": amount} for email, amount in rows]},
        headers=account.headers,
        timeout=30,
        trust_env=False,
    )
    assert response.status_code == 202, response.text
    batch_id = parse_id(IdKind.BATCH, response.json()["id"])
    assert batch_id is not None
    return SentBatch(cluster, account.business.id, batch_id, rows)


def draw_rows(known_emails: Sequence[str] = ()) -> list[Row]:
    """Return rows for new users, for some more than once, and for the users of synchronous calls."""
    chance = random.Random(1)  # noqa: S311 (no secret)
    new = [f"batch.{number}@example.com" for number in range(ROWS // 2)]
    emails = [*new, *chance.choices([*new, *known_emails], k=ROWS - len(new))]
    chance.shuffle(emails)
    return [(email, chance.randint(1, 5_000)) for email in emails]


def kill_and_restart(worker: Process) -> None:
    worker.kill()
    worker.start()


def lose_valkey(cluster: Cluster) -> None:
    """Take all messages and locks away; what comes back is empty."""
    kill_valkey(cluster)
    cluster.valkey.start()


def shut_postgres_down_immediately(cluster: Cluster) -> None:
    """End PostgreSQL in the middle of whatever it does, and let it recover."""
    pid = int((cluster.postgres.data_dir / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGQUIT)
    cluster.postgres.stop()  # waits for its end
    cluster.database.close()
    cluster.server.close()
    cluster.postgres.start()


@pytest.mark.overlap(seconds=35)
def test_batch_pays_each_row_once_though_worker_valkey_and_postgres_die_during_it() -> None:
    with run_cluster(batches=1, beats=1, batch_stalled_after_s=STALLED_AFTER_S) as cluster:
        (worker,) = cluster.named("batches")
        faults: list[Callable[[], None]] = [
            *[lambda: kill_and_restart(worker)] * KILLS,
            lambda: shut_postgres_down_immediately(cluster),
            lambda: lose_valkey(cluster),
        ]
        with steady_load(cluster, has_poor_business=False) as load:
            load.wait_for_answers(100)
            account = load.accounts[0]
            known_emails = [answer.email for answer in load.answers if answer.business_id == account.business.id]
            batch = send_batch(cluster, account, draw_rows(known_emails))
            for fault in faults:
                batch.wait_for_progress()
                fault()
            batch.wait_until_completed()
            load.wait_for_answers(64)
        assert not unexpected(load, {201, 500})
        assert_calls_were_answered_right(cluster, load)
        cluster.stop()
        assert_each_row_is_paid_once(batch)


@pytest.mark.overlap(seconds=15)
def test_batches_worker_that_is_asked_to_end_finishes_its_task_and_hands_the_rest_on() -> None:
    # Nobody looks for stalled batches here: the message alone leads to the rest. A chunk may wait for the row for long.
    with run_cluster(
        workers=1,
        row_lock_timeout_s="8",
        transaction_timeout_s="9",
        lock_ttl_s="10",
        resolve_timeout_s="10",
        reply_timeout_s="20",
    ) as cluster:
        batch = send_batch(cluster, cluster.open_account(), draw_rows())
        with rows_held(cluster):
            worker = cluster.start("batches-1")
            wait_until(lambda: is_waiting_for_row(cluster, worker), "the worker is in a chunk", 20)
            worker.terminate()
            time.sleep(1.1)  # a task begins no chunk after its first second
            assert worker.is_running()
        assert worker.wait() == 0
        assert batch.read().processed == CHUNK_ROWS
        cluster.start("batches-2")
        batch.wait_until_completed()
        cluster.stop()
        assert_each_row_is_paid_once(batch)


def is_waiting_for_row(cluster: Cluster, process: Process) -> bool:
    with cluster.server.transaction() as connection:
        return bool(connection.execute(_WAITING, {"name": process.name}).scalar_one())


def assert_calls_were_answered_right(cluster: Cluster, load: Load) -> None:
    """Compare every synchronous call with the history, which has the batch's rows besides.

    What was answered 500 may be reversed a little later.
    """
    cluster.wait_until_queue_is_empty()

    def contradictions() -> list[str]:
        with cluster.database.snapshot() as connection:
            history = [Entry(*row) for row in connection.execute(_SYNCHRONOUS)]
        return find_contradictions(load.answers, history)

    try:
        wait_until(lambda: not contradictions(), "the history says what clients were told", _SETTLED_WITHIN_S)
    except AssertionError:
        raise AssertionError("\n".join(contradictions())) from None


def assert_each_row_is_paid_once(batch: SentBatch) -> None:
    names = {"business_id": batch.business_id, "batch_id": batch.id}
    with batch.cluster.database.snapshot() as connection:
        accepted = [tuple(row) for row in connection.execute(_ACCEPTED, names)]
        paid = [tuple(row) for row in connection.execute(_PAID, names)]
        reserved_balance = connection.execute(_RESERVED, {"id": batch.business_id}).scalar_one()
    assert [(email, amount) for _, email, amount in accepted] == list(batch.rows)
    assert sorted(paid) == sorted(accepted)
    found = batch.read()
    assert (found.status, found.processed, found.total) == (BatchStatus.COMPLETED, len(batch.rows), len(batch.rows))
    assert found.allocated_amount == found.amount == sum(amount for _, amount in batch.rows)
    assert reserved_balance == 0
    books = verify_books(batch.cluster.database)
    assert books.balanced, books.discrepancies
