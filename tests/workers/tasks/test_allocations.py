"""Carrying groups out: on a real PostgreSQL with the locks of a fake Redis, and on the real queue."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import fakeredis
import httpx
import pytest
import redis
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Connection

from api.local.ports import find_free_port
from api.local.valkey import EmbeddedValkey
from core.database.connection import Database
from core.ids import new_id
from core.ledger import statements
from core.messages import Allocation, GroupCodec, Outcome
from core.parties import businesses
from core.settings.loader import load_settings
from tests.servers import HASH_SECRET, Account, Servers, System, open_account, run_system, verify_books
from workers.app import ALLOCATE_TASK, QUEUE, create_celery
from workers.locks import BusinessLocks, lock_key
from workers.patience import Patience
from workers.tasks.allocations import GroupProcessor

SECRET = HASH_SECRET.encode()
HOUR_US = 3_600_000_000


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    with fakeredis.FakeRedis() as opened:
        yield opened


@pytest.fixture
def processor(database: Database, client: redis.Redis) -> GroupProcessor:
    return make_processor(database, client)


def make_processor(
    database: Database, client: redis.Redis, *, lock_wait_s: float = 60, held_row_wait_s: float = 10
) -> GroupProcessor:
    locks = BusinessLocks(client, ttl_s=60, wait_s=lock_wait_s)
    return GroupProcessor(database, locks, SECRET, Patience(held_row_wait_s))


def ask(
    account: Account,
    amount: int = 1,
    *,
    email: str = "user@example.com",
    idempotency_key: str | None = None,
    deadline_in_us: int = HOUR_US,
) -> Allocation:
    return Allocation(
        id=new_id(),
        business_id=account.business.id,
        api_key_id=account.api_key_id,
        email=email,
        amount_cents=amount,
        deadline_us=time.time_ns() // 1000 + deadline_in_us,
        idempotency_key=idempotency_key,
    )


def balance_of(database: Database, business_id: UUID) -> int:
    with database.transaction() as connection:
        return businesses.get_business(connection, business_id).payout_balance


def count_allocations(database: Database) -> int:
    with database.transaction() as connection:
        query = sa.text("SELECT count(*) FROM payout_transactions WHERE type = 'allocation'")
        return int(connection.execute(query).scalar_one())


def set_user_balance(database: Database, account: Account, balance: int) -> None:
    with database.transaction() as connection:
        statement = sa.text("UPDATE payout_users SET balance = :balance WHERE business_id = :id")
        assert connection.execute(statement, {"balance": balance, "id": account.business.id}).rowcount == 1


def test_outcomes_are_in_the_group_s_order(database: Database, processor: GroupProcessor) -> None:
    rich, poor = open_account(database), open_account(database, funds_cents=5)
    disabled = open_account(database, payouts_enabled=False)
    group = [
        ask(poor, 3),
        ask(rich, 10),
        ask(disabled),
        ask(poor, 3),
        ask(rich, 10, idempotency_key="once"),
        ask(rich, 10, idempotency_key="once"),
        ask(rich, 11, idempotency_key="once"),
        ask(poor, 2),
        ask(rich, deadline_in_us=-1),
    ]
    assert processor.process(group).outcomes == [
        Outcome.ALLOCATED,
        Outcome.ALLOCATED,
        Outcome.PAYOUTS_DISABLED,
        Outcome.INSUFFICIENT_BALANCE,
        Outcome.ALLOCATED,
        Outcome.REPLAYED,
        Outcome.IDEMPOTENCY_KEY_REUSED,
        Outcome.ALLOCATED,
        Outcome.EXPIRED,
    ]
    assert balance_of(database, poor.business.id) == 0
    assert balance_of(database, rich.business.id) == 1_000_000 - 20
    assert verify_books(database).balanced


def test_empty_group_has_no_outcomes(processor: GroupProcessor) -> None:
    assert processor.process([]).outcomes == []


def test_same_message_delivered_twice_pays_once(database: Database, processor: GroupProcessor) -> None:
    account = open_account(database)
    group = [ask(account, 7), ask(account, 8, email="other@example.com")]
    for _ in range(3):
        assert processor.process(group).outcomes == [Outcome.ALLOCATED] * 2
    assert balance_of(database, account.business.id) == 1_000_000 - 15
    assert count_allocations(database) == 2
    assert verify_books(database).balanced


def test_same_message_delivered_to_many_workers_at_once_pays_once(database: Database) -> None:
    accounts = [open_account(database) for _ in range(3)]
    group = [ask(account, 1, email=f"u{number}@example.com") for number in range(10) for account in accounts]
    # Not one lock works, so that the transaction alone decides.
    with redis.Redis(port=find_free_port(), retry=Retry(NoBackoff(), 0)) as closed:
        processor = make_processor(database, closed, lock_wait_s=1)
        with ThreadPoolExecutor(4) as threads:
            outcomes = [reply.outcomes for reply in threads.map(processor.process, [group] * 12)]
    assert outcomes == [[Outcome.ALLOCATED] * 30] * 12
    assert count_allocations(database) == 30
    assert verify_books(database).balanced


def test_same_allocation_twice_in_one_group_pays_once(database: Database, processor: GroupProcessor) -> None:
    allocation = ask(open_account(database), 7)
    assert processor.process([allocation, allocation]).outcomes == [Outcome.ALLOCATED] * 2
    assert balance_of(database, allocation.business_id) == 1_000_000 - 7
    assert verify_books(database).balanced


def test_message_that_is_an_hour_late_pays_nothing(database: Database, processor: GroupProcessor) -> None:
    account = open_account(database)
    assert processor.process([ask(account, deadline_in_us=-HOUR_US)] * 2).outcomes == [Outcome.EXPIRED] * 2
    assert balance_of(database, account.business.id) == 1_000_000
    assert verify_books(database).payout_users == 0


def test_late_copy_of_a_paid_message_is_still_allocated(database: Database, processor: GroupProcessor) -> None:
    account = open_account(database)
    allocation = ask(account, 7, deadline_in_us=400_000)
    assert processor.process([allocation]).outcomes == [Outcome.ALLOCATED]
    time.sleep(0.5)
    assert processor.process([allocation]).outcomes == [Outcome.ALLOCATED]
    assert balance_of(database, account.business.id) == 1_000_000 - 7


def test_business_that_does_not_exist_is_unauthorized(database: Database, processor: GroupProcessor) -> None:
    account = open_account(database)
    nobody = Allocation(new_id(), uuid4(), account.api_key_id, "user@example.com", 1, time.time_ns())
    assert processor.process([nobody, ask(account)]).outcomes == [Outcome.UNAUTHORIZED, Outcome.ALLOCATED]
    assert verify_books(database).balanced


def test_key_of_another_business_is_unauthorized(database: Database, processor: GroupProcessor) -> None:
    victim, thief = open_account(database), open_account(database)
    stolen = Allocation(new_id(), victim.business.id, thief.api_key_id, "user@example.com", 1, time.time_ns())
    assert processor.process([stolen, ask(thief)]).outcomes == [Outcome.UNAUTHORIZED, Outcome.ALLOCATED]
    assert balance_of(database, victim.business.id) == 1_000_000


def test_business_whose_transaction_fails_does_not_fail_the_others(
    database: Database, processor: GroupProcessor, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad, other = (open_account(database) for _ in range(3))
    assert processor.process([ask(bad)]).outcomes == [Outcome.ALLOCATED]
    set_user_balance(database, bad, 2**63 - 1)
    group = [ask(good, 2), ask(bad, 3), ask(other, 4), ask(bad, 5, email="new@example.com"), ask(good, 6)]
    assert processor.process(group).outcomes == [
        Outcome.ALLOCATED,
        Outcome.FAILED,
        Outcome.ALLOCATED,
        Outcome.FAILED,
        Outcome.ALLOCATED,
    ]
    assert balance_of(database, good.business.id) == 1_000_000 - 8
    assert balance_of(database, bad.business.id) == 1_000_000 - 1
    assert balance_of(database, other.business.id) == 1_000_000 - 4
    assert "example.com" not in caplog.text
    assert client.keys() == []

    set_user_balance(database, bad, 1)
    assert processor.process(group).outcomes == [Outcome.ALLOCATED] * 5
    assert count_allocations(database) == 6
    assert verify_books(database).balanced


def test_connections_that_were_cut_are_replaced(
    database: Database, database_url: str, processor: GroupProcessor
) -> None:
    account = open_account(database)
    with database.transaction() as first, database.transaction() as second:
        for connection in (first, second):
            connection.execute(sa.text("SELECT 1"))
    cut = sa.text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with Database(database_url, transaction_timeout_s=5) as other, other.transaction() as connection:
        assert connection.execute(cut).scalar_one() == 2
    assert processor.process([ask(account), ask(account)]).outcomes == [Outcome.ALLOCATED] * 2
    assert verify_books(database).balanced


def test_database_out_of_reach_fails_the_group(client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    url = f"postgresql://nobody:password@127.0.0.1:{find_free_port()}/none"
    with Database(url, transaction_timeout_s=1) as nowhere:
        processor = make_processor(nowhere, client)
        allocation = Allocation(uuid4(), uuid4(), uuid4(), "user@example.com", 1, time.time_ns())
        assert processor.process([allocation] * 2).outcomes == [Outcome.FAILED] * 2
    assert client.keys() == []
    assert "password" not in caplog.text


def test_business_locked_by_another_worker_comes_later(
    database: Database, processor: GroupProcessor, client: redis.Redis
) -> None:
    free, held = open_account(database), open_account(database)
    client.set(lock_key(held.business.id), "another's", px=300)
    group = [ask(held), ask(free), ask(held)]
    assert processor.process(group).outcomes == [Outcome.ALLOCATED] * 3
    with database.transaction() as connection:
        order = sa.text("SELECT business_id FROM payout_transactions WHERE type = 'allocation' ORDER BY created_at")
        assert connection.execute(order).scalars().first() == free.business.id
    assert [key for key in client.scan_iter() if "wanted" not in str(key)] == []


def test_concurrent_groups_over_the_same_businesses_never_overdraw(database: Database, client: redis.Redis) -> None:
    accounts = [open_account(database, funds_cents=10) for _ in range(4)]
    processor = make_processor(database, client, lock_wait_s=0.01)
    groups = [[ask(account, 1, email=f"u{number}@example.com") for account in accounts] for number in range(20)]
    with ThreadPoolExecutor(4) as threads:
        outcomes = [outcome for reply in threads.map(processor.process, groups) for outcome in reply.outcomes]
    assert outcomes.count(Outcome.ALLOCATED) == 40
    assert outcomes.count(Outcome.INSUFFICIENT_BALANCE) == 40
    assert verify_books(database).balanced


@pytest.mark.parametrize(
    "args",
    [
        ["garbage"],
        ["1:garbage"],
        ["2:" + "A" * 100],
        [""],
        [None],
        [5],
        [["a", "list"]],
        [{"a": "dict"}],
        [],
        ["one", "too many"],
        ["ünïcode\u0000"],
        [GroupCodec(b"another secret, which is long enough").seal([], "not this task")],
        [GroupCodec(SECRET).seal([], "not this task")],
    ],
)
def test_foreign_message_is_dropped_and_the_worker_goes_on(
    system: System, client_of_system: httpx.Client, account: Account, args: list[object]
) -> None:
    celery = create_celery(load_settings(system.environment))
    for _ in range(5):  # more than the worker has threads
        celery.send_task(ALLOCATE_TASK, args=args, ignore_result=True)
    celery.close()
    assert system.pay(client_of_system, account, "user@example.com", 1).status_code == 201
    assert verify_books(system.database).balanced


def test_message_that_celery_cannot_unpack_does_not_end_the_worker(servers: Servers, valkey: EmbeddedValkey) -> None:
    patience = {
        "resend_after_s": "0.3",
        "lock_wait_s": "0.3",
        "transaction_timeout_s": "0.5",
        "row_lock_timeout_s": "0.4",
        "resolve_timeout_s": "0.6",
    }
    with run_system(Servers(servers.postgres_url, valkey.url), reply_timeout_s="2", **patience) as own:
        celery = create_celery(load_settings(own.environment))
        with celery.producer_pool.acquire() as producer:
            headers = {"task": ALLOCATE_TASK, "id": "not-ours", "lang": "py"}
            producer.publish("not a list of three", routing_key=QUEUE, headers=headers, serializer="json")
        celery.close()
        with own.client() as client:
            assert own.pay(client, open_account(own.database), "user@example.com", 1).status_code == 201


def test_stale_group_on_the_real_queue_pays_nothing(
    system: System, client_of_system: httpx.Client, account: Account
) -> None:
    celery = create_celery(load_settings(system.environment))
    stale = ask(account, 5, deadline_in_us=-HOUR_US)
    sealed = GroupCodec(SECRET).seal([stale], "stale")
    celery.send_task(ALLOCATE_TASK, args=[sealed], task_id="stale", ignore_result=True)
    celery.close()
    assert system.pay(client_of_system, account, "user@example.com", 1).status_code == 201
    assert balance_of(system.database, account.business.id) == 1_000_000 - 1


@pytest.fixture
def client_of_system(system: System) -> Iterator[httpx.Client]:
    with system.client() as opened:
        yield opened


# A business whose row is out of reach.


def test_a_row_that_somebody_holds_fails_its_own_business_alone(
    database: Database, database_url: str, client: redis.Redis
) -> None:
    held, free = open_account(database), open_account(database)
    processor = make_processor(database, client, held_row_wait_s=0.2)
    with database.transaction() as connection:
        businesses.lock_business(connection, held.business.id)
        reply = processor.process([ask(held), ask(free), ask(held)])
        assert reply.outcomes == [Outcome.FAILED, Outcome.ALLOCATED, Outcome.FAILED]
        assert reply.untouched == [0, 2]
    assert processor.process([ask(held)]).outcomes == [Outcome.ALLOCATED]
    assert verify_books(database).balanced


def hold(connection: Connection, statement: str, account: Account) -> None:
    connection.execute(sa.text(statement), {"id": account.business.id})


BUSINESS_ROW = "SELECT FROM businesses WHERE id = :id FOR UPDATE"
USER_ROW = "SELECT FROM payout_users WHERE business_id = :id FOR UPDATE"


@pytest.mark.parametrize("row", [BUSINESS_ROW, USER_ROW])
def test_waits_for_rows_that_somebody_holds_are_short_and_few(
    database: Database, database_url: str, client: redis.Redis, row: str
) -> None:
    """However many copies of a message arrive."""
    held, free = open_account(database), open_account(database)
    with Database(database_url, transaction_timeout_s=2, row_lock_timeout_s=0.25) as impatient:
        processor = make_processor(impatient, client, held_row_wait_s=0.25)
        assert processor.process([ask(held), ask(free)]).outcomes == [Outcome.ALLOCATED] * 2
        with database.transaction() as connection:
            hold(connection, row, held)
            began_at = time.monotonic()
            for _ in range(10):
                reply = processor.process([ask(held), ask(free)])
                assert (reply.outcomes, reply.untouched) == ([Outcome.FAILED, Outcome.ALLOCATED], [0])
            assert time.monotonic() - began_at < 2.5  # of 10 times 0.25 s
            for _ in range(10):
                reply = processor.process([ask(held)])
                assert (reply.outcomes, reply.untouched) == ([Outcome.FAILED], [0])
            assert time.monotonic() - began_at < 3.5
        assert processor.process([ask(held)]).outcomes == [Outcome.ALLOCATED]
    assert verify_books(database).balanced


def test_second_in_the_queue_for_a_row_waits_no_longer(database: Database, client: redis.Redis) -> None:
    """PostgreSQL's `lock_timeout` counts each wait by itself."""
    held = open_account(database)
    processor = make_processor(database, client, held_row_wait_s=0.4)
    with database.transaction() as connection:
        hold(connection, BUSINESS_ROW, held)
        with ThreadPoolExecutor(1) as threads, database.transaction() as first_in_the_queue:
            waiting = threads.submit(hold, first_in_the_queue, BUSINESS_ROW, held)
            time.sleep(0.2)
            began_at = time.monotonic()
            assert processor.process([ask(held)]).untouched == [0]
            assert 0.3 < time.monotonic() - began_at < 0.7
            connection.rollback()
            waiting.result()
    assert processor.process([ask(held)]).outcomes == [Outcome.ALLOCATED]


def test_many_businesses_whose_rows_are_held_are_waited_for_together(database: Database, client: redis.Redis) -> None:
    accounts = [open_account(database) for _ in range(8)]
    free = open_account(database)
    processor = make_processor(database, client, held_row_wait_s=0.4)
    with database.transaction() as connection:
        for account in accounts:
            hold(connection, BUSINESS_ROW, account)
        began_at = time.monotonic()
        reply = processor.process([ask(account) for account in [*accounts, free]])
        assert time.monotonic() - began_at < 1.0
    assert reply.outcomes == [*[Outcome.FAILED] * 8, Outcome.ALLOCATED]
    assert reply.untouched == list(range(8))


def test_row_that_comes_free_in_time_is_waited_for(database: Database, client: redis.Redis) -> None:
    account = open_account(database)
    processor = make_processor(database, client, held_row_wait_s=5)
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            hold(connection, BUSINESS_ROW, account)
            processing = threads.submit(processor.process, [ask(account)])
            time.sleep(0.3)
        assert processing.result().outcomes == [Outcome.ALLOCATED]


def test_time_limits_of_a_wait_end_with_the_wait(database: Database, client: redis.Redis) -> None:
    """The statement that writes may take longer than the row was waited for."""
    account = open_account(database)
    with database.transaction() as connection:
        connection.execute(sa.text("SET LOCAL statement_timeout = '7s'"))
        allocation = ask(account)
        assert statements.allocate(connection, SECRET, [allocation], wait_s=0.2) == [Outcome.ALLOCATED]
        assert connection.execute(sa.text("SHOW statement_timeout")).scalar_one() == "7s"


def test_business_whose_transaction_is_refused_is_known_to_be_untouched(
    database: Database, processor: GroupProcessor
) -> None:
    good, bad = open_account(database), open_account(database)
    assert processor.process([ask(bad)]).outcomes == [Outcome.ALLOCATED]
    set_user_balance(database, bad, 2**63 - 1)
    for group in ([ask(bad), ask(good)], [ask(bad)]):
        assert processor.process(group).untouched == [0]


def test_broken_connection_leaves_nobody_untouched(client: redis.Redis) -> None:
    """The commit may have gone through."""
    url = f"postgresql://nobody:password@127.0.0.1:{find_free_port()}/none"
    with Database(url, transaction_timeout_s=1) as nowhere:
        allocation = Allocation(uuid4(), uuid4(), uuid4(), "user@example.com", 1, time.time_ns())
        assert make_processor(nowhere, client).process([allocation]).untouched == []
