"""What `celery --app workers.main worker` loads: the application with its tasks, wired from the environment."""

import logging
import sys
import warnings

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import after_setup_logger, worker_ready
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.database import Database
from core.garbage import spare_what_stays
from core.messages import BatchCodec
from core.settings import Settings, SettingsError, load_settings
from workers.app import create_celery
from workers.batches import PayoutBatchWorker, register_batch_tasks
from workers.day_sums import DaySummer, register_day_sum_tasks
from workers.locks import BusinessLocks
from workers.results import ReplyBackend
from workers.schedule import PeriodicTasks
from workers.tasks import BatchProcessor, register_tasks


def create_worker(settings: Settings) -> Celery:
    """Wire a worker. Nothing connects before the first task."""
    celery = create_celery(settings)
    client = Redis.from_url(
        settings.redis_url,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 1),
    )
    database = Database.from_settings(settings)
    locks = BusinessLocks(client, ttl_s=settings.lock_ttl_s, wait_s=settings.lock_wait_s)
    processor = BatchProcessor(database, locks, settings.hash_secret_bytes)
    register_tasks(celery, BatchCodec(settings.hash_secret_bytes), processor)
    register_batch_tasks(celery, PayoutBatchWorker(celery, database, locks), settings.batch_stalled_after_s)
    register_day_sum_tasks(celery, DaySummer(database, transaction_timeout_s=settings.transaction_timeout_s))
    return celery


@after_setup_logger.connect  # type: ignore[untyped-decorator]
def _quiet_celery(**_: object) -> None:
    """Leave out Celery's two lines for every task: the second one prints the whole result."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


@worker_ready.connect  # type: ignore[untyped-decorator]
def _spare_what_stays(**_: object) -> None:
    spare_what_stays()


# Celery finds these by name. They are imported at once, because a signal that arrives in the middle of a later import
# would need them half done.
IMPORTED_BY_NAME = (ReplyBackend, PeriodicTasks)

# Celery warns root of pickle, which `accept_content` refuses.
warnings.filterwarnings("ignore", category=SecurityWarning)

try:
    app = create_worker(load_settings())
except SettingsError as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(2)
