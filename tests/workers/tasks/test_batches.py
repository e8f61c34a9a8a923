"""Working payout batches off: with a real queue, PostgreSQL and Valkey, and with one of them gone."""

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.local.ports import find_free_port
from api.local.valkey import EmbeddedValkey
from core.batches.payout_batch import BatchStatus, PayoutBatch
from core.database.connection import Database
from core.ids import IdKind, format_id
from core.parties import businesses
from core.settings.loader import load_settings
from tests.core.batch_builders import (
    accept,
    assert_books_balance,
    cancel,
    make_rows,
    pay_chunk,
    read_balances,
    read_batch,
    read_progress,
    switch_payouts,
)
from tests.polling import wait_until
from tests.servers import HASH_SECRET, ROOT, Account, Servers, System, open_account
from workers.app import (
    BATCHES_QUEUE,
    FIND_STALLED_TASK,
    PAY_CHUNK_TASK,
    SUM_DAYS_TASK,
    VERIFY_TASK,
    create_celery,
    send_chunk,
)
from workers.locks import BusinessLocks, lock_key
from workers.patience import Patience
from workers.tasks.batches import CHUNK_ROWS, PayoutBatchWorker

FUNDS_CENTS = 1_000_000
WAIT_S = 60


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedValkey]:
    """A Valkey where nobody consumes, so that what is sent stays to be looked at."""
    server = EmbeddedValkey()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(broker: EmbeddedValkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker.url) as opened:
        opened.flushall()
        yield opened


@pytest.fixture(scope="module")
def module_url(servers: Servers) -> Iterator[str]:
    with servers.clone() as url:
        yield url


@pytest.fixture(scope="module")
def database(module_url: str) -> Iterator[Database]:
    """One for all tests, each with a business of its own."""
    with Database(module_url, transaction_timeout_s=10, connect_timeout_s=30, pool_size=10) as opened:
        yield opened


@pytest.fixture(scope="module")
def celery(broker: EmbeddedValkey, module_url: str) -> Iterator[Celery]:
    with open_celery(broker.url, module_url) as app:
        yield app


@pytest.fixture
def locks(client: redis.Redis) -> BusinessLocks:
    return BusinessLocks(client, ttl_s=60, wait_s=60)


@pytest.fixture
def worker(celery: Celery, database: Database, locks: BusinessLocks) -> PayoutBatchWorker:
    return PayoutBatchWorker(celery, database, locks, Patience(1.0))


@pytest.fixture
def payer(database: Database) -> Iterator[Account]:
    """A business with 1,000,000 cents; behind the test the books must balance."""
    yield open_account(database)
    assert_books_balance(database)


def environment_of(redis_url: str, database_url: str, **settings: str) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PAYOUTS_DATABASE_URL": database_url,
        "PAYOUTS_REDIS_URL": redis_url,
        "PAYOUTS_HASH_SECRET": HASH_SECRET,
        **{f"PAYOUTS_{name.upper()}": value for name, value in settings.items()},
    }


@contextmanager
def open_celery(redis_url: str, database_url: str) -> Iterator[Celery]:
    app = create_celery(load_settings(environment_of(redis_url, database_url)))
    try:
        yield app
    finally:
        app.close()


@contextmanager
def closed_redis() -> Iterator[redis.Redis]:
    with redis.Redis(port=find_free_port(), retry=Retry(NoBackoff(), 0)) as closed:
        yield closed


def read_messages(client: redis.Redis) -> list[tuple[str, list[Any]]]:
    """Return the tasks on the queue and their arguments, oldest first."""
    messages: Any = client.lrange(BATCHES_QUEUE, 0, -1)
    decoded = [json.loads(message) for message in reversed(messages)]
    return [(each["headers"]["task"], json.loads(base64.b64decode(each["body"]))[0]) for each in decoded]


def chunk_message(batch: PayoutBatch, first: int) -> tuple[str, list[Any]]:
    names = [format_id(IdKind.BUSINESS, batch.business_id), format_id(IdKind.BATCH, batch.id)]
    return PAY_CHUNK_TASK, [*names, first]


def locks_left(client: redis.Redis) -> list[bytes]:
    keys: Any = client.keys("payouts:lock:*")
    return [key for key in keys if not key.endswith(b":wanted")]


@contextmanager
def slow_chunks(database: Database, seconds: float) -> Iterator[None]:
    """Make the commit of each chunk take its time."""
    body = f"$$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$"
    statements = [
        f"CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS {body}",
        "CREATE TRIGGER be_slow BEFORE UPDATE ON payout_batches FOR EACH ROW EXECUTE FUNCTION be_slow()",
    ]
    with database.transaction() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    try:
        yield
    finally:
        with database.transaction() as connection:
            connection.execute(sa.text("DROP FUNCTION be_slow CASCADE"))


def wait_until_finished(database: Database, batch: PayoutBatch) -> PayoutBatch:
    wait_until(lambda: read_batch(database, batch).finished_at, lambda: read_batch(database, batch), WAIT_S)
    return read_batch(database, batch)


# One task


def test_a_task_pays_chunk_after_chunk(
    worker: PayoutBatchWorker, database: Database, client: redis.Redis, payer: Account
) -> None:
    batch = accept(database, payer, make_rows(*[1] * (2 * CHUNK_ROWS + 1)))
    worker.work(payer.business.id, batch.id, 0)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 2 * CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 1)
    assert client.keys() == []


def test_after_a_while_a_task_hands_on_to_the_next(
    worker: PayoutBatchWorker, database: Database, client: redis.Redis, payer: Account
) -> None:
    batch = accept(database, payer, make_rows(*[1] * (CHUNK_ROWS + 1)))
    with slow_chunks(database, 1.05):
        worker.work(payer.business.id, batch.id, 0)
    assert read_progress(database, batch) == (BatchStatus.PROCESSING, CHUNK_ROWS, CHUNK_ROWS)
    assert read_messages(client) == [chunk_message(batch, CHUNK_ROWS)]
    assert locks_left(client) == []
    worker.work(payer.business.id, batch.id, CHUNK_ROWS)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, CHUNK_ROWS + 1, CHUNK_ROWS + 1)
    assert len(read_messages(client)) == 1


def test_a_stale_message_dies(
    worker: PayoutBatchWorker, database: Database, client: redis.Redis, payer: Account
) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4))
    pay_chunk(database, batch, 0, 2)
    before = read_batch(database, batch)
    for first in (0, 1, 3, 500):
        worker.work(payer.business.id, batch.id, first)
    worker.work(payer.business.id, uuid4(), 0)
    worker.work(uuid4(), batch.id, 2)
    assert read_batch(database, batch) == before
    assert read_messages(client) == []
    worker.work(payer.business.id, batch.id, 2)
    cancelled = accept(database, payer, make_rows(8))
    cancel(database, cancelled)
    worker.work(payer.business.id, cancelled.id, 0)
    assert read_balances(database, payer) == (FUNDS_CENTS - 7, 0)


@pytest.mark.parametrize("has_locks", [True, False])
def test_copies_of_a_message_at_once_pay_once(
    celery: Celery, database: Database, client: redis.Redis, payer: Account, has_locks: bool
) -> None:
    batch = accept(database, payer, make_rows(*[1] * (3 * CHUNK_ROWS)))
    with closed_redis() as closed:
        locks = BusinessLocks(client if has_locks else closed, ttl_s=60, wait_s=60)
        worker = PayoutBatchWorker(celery, database, locks, Patience(1.0))
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda _: worker.work(payer.business.id, batch.id, 0), range(6)))
    worker.work(payer.business.id, batch.id, read_batch(database, batch).processed)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 3 * CHUNK_ROWS, 3 * CHUNK_ROWS)
    assert locks_left(client) == []


def test_disabling_midway_lets_the_rest_wait_until_it_is_found_again(
    worker: PayoutBatchWorker, database: Database, client: redis.Redis, payer: Account
) -> None:
    batch = accept(database, payer, make_rows(1, 2, 4))
    pay_chunk(database, batch, 0, 1)
    switch_payouts(database, payer, enabled=False)
    worker.work(payer.business.id, batch.id, 1)
    worker.find_stalled(0)
    assert chunk_message(batch, 1) not in read_messages(client)
    assert read_progress(database, batch) == (BatchStatus.PROCESSING, 1, 1)
    switch_payouts(database, payer, enabled=True)
    worker.find_stalled(0)
    assert read_messages(client).count(chunk_message(batch, 1)) == 1
    worker.work(payer.business.id, batch.id, 1)


# What is gone


def test_without_redis_locks_a_batch_goes_on(celery: Celery, database: Database, payer: Account) -> None:
    batch = accept(database, payer, make_rows(*[1] * (CHUNK_ROWS + 1)))
    with closed_redis() as closed:
        PayoutBatchWorker(celery, database, BusinessLocks(closed, ttl_s=60, wait_s=60), Patience(1.0)).work(
            payer.business.id, batch.id, 0
        )
    assert read_progress(database, batch)[0] is BatchStatus.COMPLETED


def test_a_lock_that_is_never_given_back_does_not_stop_a_batch(
    celery: Celery, database: Database, client: redis.Redis, payer: Account
) -> None:
    batch = accept(database, payer, make_rows(1))
    client.set(lock_key(payer.business.id), "a dead worker's")
    PayoutBatchWorker(celery, database, BusinessLocks(client, ttl_s=60, wait_s=0.05), Patience(1.0)).work(
        payer.business.id, batch.id, 0
    )
    assert read_progress(database, batch)[0] is BatchStatus.COMPLETED
    assert client.get(lock_key(payer.business.id)) == b"a dead worker's"


def test_without_a_broker_nothing_is_lost_but_the_next_message(
    database: Database, module_url: str, client: redis.Redis, locks: BusinessLocks, payer: Account
) -> None:
    batch = accept(database, payer, make_rows(*[1] * (CHUNK_ROWS + 1)))
    with open_celery(f"redis://127.0.0.1:{find_free_port()}", module_url) as unreachable:
        worker = PayoutBatchWorker(unreachable, database, locks, Patience(1.0))
        with slow_chunks(database, 1.05), pytest.raises(OperationalError):
            worker.work(payer.business.id, batch.id, 0)
        assert read_progress(database, batch) == (BatchStatus.PROCESSING, CHUNK_ROWS, CHUNK_ROWS)
        assert locks_left(client) == []
        worker.work(payer.business.id, batch.id, CHUNK_ROWS)
    assert read_progress(database, batch)[0] is BatchStatus.COMPLETED


def test_a_database_out_of_reach_stops_the_task_and_says_no_secret(
    celery: Celery, locks: BusinessLocks, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with Database(
        f"postgresql://nobody:password@127.0.0.1:{find_free_port()}/none", transaction_timeout_s=1
    ) as nowhere:
        PayoutBatchWorker(celery, nowhere, locks, Patience(1.0)).work(uuid4(), uuid4(), 0)
    assert "stops at row 0: OperationalError" in caplog.text
    assert "password" not in caplog.text
    assert client.keys() == []


def test_a_row_that_somebody_holds_stops_the_task_and_the_batch_is_found_again(
    celery: Celery,
    database: Database,
    module_url: str,
    locks: BusinessLocks,
    client: redis.Redis,
    payer: Account,
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch = accept(database, payer, make_rows(1, 2))
    with Database(module_url, transaction_timeout_s=2) as impatient:
        worker = PayoutBatchWorker(celery, impatient, locks, Patience(0.1))
        with database.transaction() as connection:
            businesses.lock_business(connection, payer.business.id)
            worker.work(payer.business.id, batch.id, 0)
        assert f"{format_id(IdKind.BATCH, batch.id)} stops at row 0: " in caplog.text
        assert "example.com" not in caplog.text
        worker.find_stalled(0)
        assert read_messages(client).count(chunk_message(batch, 0)) == 1
        worker.work(payer.business.id, batch.id, 0)
    assert read_progress(database, batch) == (BatchStatus.COMPLETED, 2, 3)


def test_batches_of_a_business_whose_row_somebody_holds_keep_no_other_batch_waiting(
    celery: Celery, database: Database, locks: BusinessLocks, payer: Account
) -> None:
    batches = [accept(database, payer, make_rows(1)) for _ in range(10)]
    free = open_account(database)
    of_free = accept(database, free, make_rows(1, 2))
    worker = PayoutBatchWorker(celery, database, locks, Patience(0.5))
    with database.transaction() as connection:
        businesses.lock_business(connection, payer.business.id)
        began_at = time.monotonic()
        for batch in batches:
            worker.work(payer.business.id, batch.id, 0)
        worker.work(free.business.id, of_free.id, 0)
        assert time.monotonic() - began_at < 2.0  # of 10 times 0.5 s
    assert read_progress(database, of_free) == (BatchStatus.COMPLETED, 2, 3)
    for batch in batches:
        worker.work(payer.business.id, batch.id, 0)
        assert read_progress(database, batch) == (BatchStatus.COMPLETED, 1, 1)


# Finding what stands still


def test_a_lost_message_is_sent_again_from_the_row_that_is_next(
    worker: PayoutBatchWorker, database: Database, client: redis.Redis, payer: Account
) -> None:
    begun, queued, paid, cancelled = (accept(database, payer, make_rows(1, 2, 4)) for _ in range(4))
    pay_chunk(database, begun, 0, 2)
    pay_chunk(database, paid, 0)
    cancel(database, cancelled)
    worker.find_stalled(60)
    assert read_messages(client) == []
    worker.find_stalled(0)
    own = [message for message in read_messages(client) if message[1][0] == chunk_message(begun, 0)[1][0]]
    assert sorted(own) == sorted([chunk_message(begun, 2), chunk_message(queued, 0)])
    for batch in (begun, queued):
        worker.work(payer.business.id, batch.id, read_batch(database, batch).processed)
    assert read_balances(database, payer) == (FUNDS_CENTS - 7 * 3, 0)


def test_messages_name_ids_and_a_row_and_nothing_of_the_payees(
    celery: Celery, database: Database, client: redis.Redis, payer: Account
) -> None:
    batch = accept(database, payer, make_rows(1))
    send_chunk(celery, payer.business.id, batch.id, 0)
    messages: Any = client.lrange(BATCHES_QUEUE, 0, -1)
    (raw,) = messages
    assert read_messages(client) == [chunk_message(batch, 0)]
    assert b"example.com" not in raw + base64.b64decode(json.loads(raw)["body"])
    cancel(database, batch)


@contextmanager
def run_worker(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker of payout batches; what it says goes nowhere."""
    command = [
        *("celery", "--quiet", "--app", "workers.main", "worker", "--queues", BATCHES_QUEUE),
        *("--pool", "solo", "--concurrency", "1", "--without-gossip", "--without-mingle"),
    ]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_where_a_killed_worker_stopped_the_next_one_goes_on(
    worker: PayoutBatchWorker,
    celery: Celery,
    broker: EmbeddedValkey,
    module_url: str,
    database: Database,
    payer: Account,
) -> None:
    patience = {"lock_wait_s": "0.2", "lock_ttl_s": "2.1"}
    environment = environment_of(broker.url, module_url, **patience)
    batch = accept(database, payer, make_rows(*[1] * (8 * CHUNK_ROWS), emails=50))
    with slow_chunks(database, 0.1), run_worker(environment) as victim:
        send_chunk(celery, payer.business.id, batch.id, 0)
        wait_until(lambda: read_batch(database, batch).processed, timeout_s=WAIT_S, pause_s=0.005)
        victim.kill()
        victim.wait()
    stopped = read_batch(database, batch)
    assert stopped.status is BatchStatus.PROCESSING
    assert stopped.processed % CHUNK_ROWS == 0
    assert_books_balance(database)
    with run_worker(environment):
        # The lost message, as the periodic task finds it; a copy of it; and the first one again.
        worker.find_stalled(0)
        worker.find_stalled(0)
        send_chunk(celery, payer.business.id, batch.id, 0)
        finished = wait_until_finished(database, batch)
    assert (finished.processed, finished.allocated_amount) == (8 * CHUNK_ROWS, 8 * CHUNK_ROWS)
    assert read_balances(database, payer) == (FUNDS_CENTS - 8 * CHUNK_ROWS, 0)


# Messages that others write


def test_malformed_messages_are_dropped_and_the_worker_goes_on(system: System) -> None:
    account = open_account(system.database)
    batch = accept(system.database, account, make_rows(1, 2, 4))
    business, batch_id = chunk_message(batch, 0)[1][:2]
    wrong: list[tuple[str, list[object]]] = [
        (PAY_CHUNK_TASK, []),
        (PAY_CHUNK_TASK, [business, batch_id]),
        (PAY_CHUNK_TASK, [business, batch_id, 0, 0]),
        (PAY_CHUNK_TASK, [business, batch_id, -1]),
        (PAY_CHUNK_TASK, [business, batch_id, 2**70]),
        (PAY_CHUNK_TASK, [business, batch_id, "0"]),
        (PAY_CHUNK_TASK, [business, batch_id, None]),
        (PAY_CHUNK_TASK, [business, batch_id, [0]]),
        (PAY_CHUNK_TASK, [business, batch_id, 2**31]),
        (PAY_CHUNK_TASK, [business, batch_id, 3]),  # not the row that is next
        (PAY_CHUNK_TASK, [batch_id, business, 0]),
        (PAY_CHUNK_TASK, [business, "bat_x", 0]),
        (PAY_CHUNK_TASK, [None, 5, 0]),
        (PAY_CHUNK_TASK, [{}, [], 0]),
        (FIND_STALLED_TASK, ["unexpected"]),
        (SUM_DAYS_TASK, ["unexpected"]),
        (VERIFY_TASK, ["unexpected"]),
        ("payouts.unknown", []),
    ]
    before = len(system.logs())
    celery = create_celery(load_settings(system.environment))
    try:
        for task, args in wrong:
            celery.send_task(task, args=args, queue=BATCHES_QUEUE, ignore_result=True)
        with celery.producer_pool.acquire() as producer:
            headers = {"task": PAY_CHUNK_TASK, "id": "not-ours", "lang": "py"}
            producer.publish("no list of three", routing_key=BATCHES_QUEUE, headers=headers, serializer="json")
        with redis.Redis.from_url(system.environment["PAYOUTS_REDIS_URL"]) as opened:
            opened.lpush(BATCHES_QUEUE, "no JSON", "[]", '{"body": 5}')
        send_chunk(celery, account.business.id, batch.id, 0)
    finally:
        celery.close()
    finished = wait_until_finished(system.database, batch)
    assert (finished.status, finished.allocated_amount) == (BatchStatus.COMPLETED, 7)
    assert_books_balance(system.database)
    assert "Traceback" not in system.logs()[before:]


# Letting others go first


def test_one_who_waits_gets_its_turn_between_two_chunks(client: redis.Redis) -> None:
    id_ = uuid4()
    locks = BusinessLocks(client, ttl_s=60, wait_s=60)
    is_waiting, had_turn = threading.Event(), threading.Event()

    def call_synchronously() -> None:
        is_waiting.set()
        for group in BusinessLocks(client, ttl_s=60, wait_s=60).hold_in_turn([id_]):
            assert group == {id_}
            had_turn.set()

    with ThreadPoolExecutor(1) as threads:
        with locks.hold_politely(id_):
            waiting = threads.submit(call_synchronously)
            is_waiting.wait()
            while not client.exists(f"{lock_key(id_)}:wanted"):
                time.sleep(0.001)
            assert not had_turn.is_set()
        for _ in range(1_000):
            if had_turn.is_set():
                break
            with locks.hold_politely(id_):
                time.sleep(0.001)
        assert had_turn.is_set()
        waiting.result()


def test_a_polite_lock_is_held_once_and_leaves_nothing(client: redis.Redis) -> None:
    id_ = uuid4()
    locks = BusinessLocks(client, ttl_s=60, wait_s=60)
    with locks.hold_politely(id_):
        assert client.exists(lock_key(id_))
    assert client.keys() == []

    def fail() -> None:
        with locks.hold_politely(id_):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert client.keys() == []


def test_what_was_left_for_the_polite_ends_by_itself(client: redis.Redis) -> None:
    id_ = uuid4()
    client.set(lock_key(id_), "another's")
    assert list(BusinessLocks(client, ttl_s=60, wait_s=0.01).hold_in_turn([id_])) == [{id_}]
    assert 0 < int(client.pttl(f"{lock_key(id_)}:wanted")) <= 60_000


def test_a_business_without_redis_is_held_politely_all_the_same() -> None:
    entered: list[UUID] = []
    with closed_redis() as closed:
        locks = BusinessLocks(closed, ttl_s=60, wait_s=60)
        for _ in range(2):
            id_ = uuid4()
            with locks.hold_politely(id_):
                entered.append(id_)
    assert len(entered) == 2
