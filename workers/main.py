"""What `celery --app workers.main worker` loads: the application with its tasks, wired from the environment."""

import logging
import sys
import warnings

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import after_setup_logger, worker_ready

from core.database import Database
from core.garbage import spare_what_stays
from core.messages import BatchCodec
from core.settings import Settings, SettingsError, load_settings
from workers.app import create_celery
from workers.batches import PayoutBatchWorker, register_batch_tasks
from workers.locks import BusinessLocks
from workers.results import ReplyBackend
from workers.schedule import PeriodicTasks
from workers.servers import open_redis
from workers.tasks import BatchProcessor, register_tasks


def create_worker(settings: Settings) -> Celery:
    """Wire a worker. Nothing connects before the first task."""
    celery = create_celery(settings)
    database = Database.from_settings(settings)
    locks = BusinessLocks(open_redis(settings, retries=1), ttl_s=settings.lock_ttl_s, wait_s=settings.lock_wait_s)
    processor = BatchProcessor(database, locks, settings.hash_secret_bytes)
    register_tasks(celery, BatchCodec(settings.hash_secret_bytes), processor)
    register_batch_tasks(celery, PayoutBatchWorker(celery, database, locks), settings.batch_stalled_after_s)
    return celery


@after_setup_logger.connect  # type: ignore[untyped-decorator]
def _quiet_celery(**_: object) -> None:
    """Leave out Celery's two lines for every task: the second one prints the whole result."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Where a connection breaks, it logs a stack trace beside the line that says so.
    logging.getLogger("celery.worker.loops").addFilter(_leave_stack_trace_out)


def _leave_stack_trace_out(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


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
