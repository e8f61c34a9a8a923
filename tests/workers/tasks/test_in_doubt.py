"""The periodic task that finishes what is in doubt while no API process runs."""

import redis

from core.batches.payout_batch import BatchStatus
from core.database.connection import Database
from core.in_doubt.records import Doubt, InDoubt, RecordCodec
from core.settings.loader import load_settings
from tests.core.batch_builders import accept, accept_unreleased, make_rows, read_balances, read_progress
from tests.core.builders import HASH_SECRET, allocate, allocation_of, read_payout_balance
from tests.servers import Account, System, open_account
from workers.app import BATCHES_QUEUE, FINISH_IN_DOUBT_TASK, create_celery
from workers.in_doubt import InDoubtRecords
from workers.tasks.in_doubt import InDoubtWorker


def make_worker(database: Database, records: InDoubtRecords, abandoned_after_s: float = 0) -> InDoubtWorker:
    return InDoubtWorker(database, records, overdue_after_s=0, abandoned_after_s=abandoned_after_s)


def test_call_is_reversed(database: Database, records: InDoubtRecords) -> None:
    payer = open_account(database)
    call = allocation_of(payer)
    allocate(database, call)
    records.add([InDoubt(Doubt.CALL_FAILED, call.business_id, call.id, call.deadline_us)])
    assert make_worker(database, records).work() == "1 finished, 0 left, 0 batches cancelled"
    assert read_payout_balance(database, payer.business.id) == payer.business.payout_balance
    assert records.read() == []


def test_batch_of_a_process_that_died_before_it_answered_is_cancelled(
    database: Database, records: InDoubtRecords
) -> None:
    payer = open_account(database)
    before = read_balances(database, payer)
    batch = accept_unreleased(database, payer, make_rows(1, 2, 4))
    young = make_worker(database, records, abandoned_after_s=300)
    assert young.work() == "0 finished, 0 left, 0 batches cancelled"
    assert make_worker(database, records).work() == "0 finished, 0 left, 1 batches cancelled"
    assert read_progress(database, batch) == (BatchStatus.CANCELLED, 0, 0)
    assert read_balances(database, payer) == before


def test_released_batch_is_left_alone(database: Database, records: InDoubtRecords) -> None:
    payer = open_account(database)
    batch = accept(database, payer, make_rows(1, 2, 4))
    make_worker(database, records).work()
    assert read_progress(database, batch) == (BatchStatus.QUEUED, 0, 0)


def test_without_redis_no_batch_is_cancelled(database: Database, records: InDoubtRecords) -> None:
    payer = open_account(database)
    batch = accept_unreleased(database, payer, make_rows(1, 2, 4))
    gone = InDoubtRecords(redis.Redis(port=1), records.files, RecordCodec(HASH_SECRET))
    make_worker(database, gone).work()
    assert read_progress(database, batch) == (BatchStatus.QUEUED, 0, 0)


def test_database_that_is_out_of_reach_is_one_line(records: InDoubtRecords, account: Account) -> None:
    records.add([InDoubt(Doubt.CALL_FAILED, account.business.id, account.business.id, 1)])
    with Database("postgresql://127.0.0.1:1/none", transaction_timeout_s=1) as nowhere:
        assert "OperationalError" in make_worker(nowhere, records).work()
    assert len(records.read()) == 1


def test_beat_sends_the_task_to_the_batches_workers(system: System) -> None:
    celery = create_celery(load_settings(system.environment))
    [entry] = [each for each in celery.conf.beat_schedule.values() if each["task"] == FINISH_IN_DOUBT_TASK]
    assert entry["options"]["ignore_result"]
    assert celery.conf.task_routes[FINISH_IN_DOUBT_TASK] == {"queue": BATCHES_QUEUE}
