"""The task that keeps the sums by day: every business gets its turn, and a broken step is tried again."""

from datetime import date

import pytest
import sqlalchemy as sa
from celery import Celery

from core.database.connection import Database
from core.settings.loader import load_settings
from tests.core.builders import allocate, allocation_of
from tests.core.ledger.test_day_sums import count_kept, read_plain_sums, read_sums
from tests.polling import wait_until
from tests.servers import Account, System, open_account, verify_books
from workers.app import BATCHES_QUEUE, SUM_DAYS_TASK, create_celery
from workers.tasks.day_sums import DaySummer


def make_summer(database: Database, **options: float) -> DaySummer:
    return DaySummer(database, **options)


@pytest.fixture
def payer(database: Database) -> Account:
    return open_account(database)


@pytest.fixture
def celery(system: System) -> Celery:
    return create_celery(load_settings(system.environment))


def test_the_queue_keeps_the_sums_of_every_business(system: System, celery: Celery) -> None:
    accounts = [open_account(system.database) for _ in range(3)]
    for number, account in enumerate(accounts):
        allocate(system.database, *[allocation_of(account, f"{each}@example.com") for each in range(number + 1)])
    celery.send_task(SUM_DAYS_TASK, queue=BATCHES_QUEUE, ignore_result=True)
    expected = [2 + number for number in range(3)]
    wait_until(
        lambda: [count_kept(system.database, account.business.id) for account in accounts] == expected,
        timeout_s=60,
        pause_s=0.1,
    )
    assert verify_books(system.database).balanced


def test_beat_sends_the_task_to_the_queue_of_the_batches(celery: Celery) -> None:
    entry = celery.conf.beat_schedule["sum days"]
    assert entry["task"] == SUM_DAYS_TASK
    assert 0 < entry["schedule"] <= 60
    assert celery.conf.task_routes[SUM_DAYS_TASK] == {"queue": BATCHES_QUEUE}


def test_each_task_goes_on_with_the_next_businesses(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = [open_account(database) for _ in range(3)]
    monkeypatch.setattr("core.ledger.day_sums.BUSINESSES_AT_ONCE", 2)
    make_summer(database, task_s=0).work()
    assert all(count_kept(database, account.business.id) == 0 for account in accounts)
    summer = make_summer(database)
    for _ in range(2):
        summer.work()
        for account in accounts:
            assert count_kept(database, account.business.id) == 1
            assert count_kept(database, account.business.twin_id) == 1


def test_an_outage_is_one_line_and_caught_up_later(
    database: Database, payer: Account, caplog: pytest.LogCaptureFixture
) -> None:
    with Database("postgresql://user:hidden-word@127.0.0.1:1/none", transaction_timeout_s=1) as unreachable:
        make_summer(unreachable).work()
    (record,) = caplog.records
    assert "the sums by day are not kept for now" in record.getMessage()
    assert "hidden-word" not in caplog.text
    make_summer(database).work()
    assert count_kept(database, payer.business.id) == 1
    assert read_sums(database, payer.business.id, date(2020, 1, 1)) == read_plain_sums(database, payer.business.id)


def test_a_business_that_another_worker_sums_is_left_to_it(database: Database, payer: Account) -> None:
    make_summer(database).work()
    allocate(database, allocation_of(payer))
    with database.transaction() as connection:
        connection.execute(
            sa.text("SELECT FROM payout_day_sums_progress WHERE business_id = :id FOR UPDATE"),
            {"id": payer.business.id},
        )
        make_summer(database).work()
        assert count_kept(database, payer.business.id) == 1
    make_summer(database).work()
    assert count_kept(database, payer.business.id) == 2
