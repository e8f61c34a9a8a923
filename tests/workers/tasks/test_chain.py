"""The task that seals the history: on the queue of the batches, often, and an outage is one line."""

import pytest
import sqlalchemy as sa
from celery import Celery

from core.database.connection import Database
from core.settings.loader import load_settings
from tests.core.builders import HASH_SECRET, allocate, allocation_of
from tests.polling import wait_until
from tests.servers import System, open_account
from workers.app import BATCHES_QUEUE, SEAL_TASK, create_celery
from workers.tasks.chain import HistorySealer

_SEALED = sa.text("SELECT COALESCE(max(last_sequence), 0) FROM history_seals WHERE business_id = :id")


@pytest.fixture
def celery(system: System) -> Celery:
    return create_celery(load_settings(system.environment))


def test_the_queue_seals_the_history(system: System, celery: Celery) -> None:
    account = open_account(system.database)
    allocate(system.database, *[allocation_of(account, f"{each}@example.com", 1) for each in range(20)])
    celery.send_task(SEAL_TASK, queue=BATCHES_QUEUE, ignore_result=True)

    def is_sealed() -> bool:
        with system.database.transaction() as connection:
            return int(connection.execute(_SEALED, {"id": account.business.id}).scalar_one()) == 21

    wait_until(is_sealed, timeout_s=60, pause_s=0.1)


def test_beat_sends_the_task_to_the_queue_of_the_batches(celery: Celery) -> None:
    entry = celery.conf.beat_schedule["seal"]
    assert entry["task"] == SEAL_TASK
    assert 0 < entry["schedule"] <= 30
    assert celery.conf.task_routes[SEAL_TASK] == {"queue": BATCHES_QUEUE}


def test_an_outage_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with Database("postgresql://user:hidden-word@127.0.0.1:1/none", transaction_timeout_s=1) as unreachable:
        HistorySealer(unreachable, HASH_SECRET).work()
    (record,) = caplog.records
    assert "the history is not sealed for now" in record.getMessage()
    assert "hidden-word" not in caplog.text
