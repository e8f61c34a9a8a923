"""What `celery --app workers.main worker` loads: the application with its tasks, wired from the environment."""

import logging
import re
import sys
import warnings
from typing import NoReturn

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import beat_init, celeryd_after_setup, setup_logging, worker_ready

from core.database.connection import Database
from core.errors import UserError
from core.garbage_collection import freeze_startup_objects
from core.logging.setup import Logs
from core.messages import GroupCodec
from core.settings.loader import Settings, load_settings, warn_of_doubtful_variables
from core.tracing import is_wanted, start_tracing, warn_where_missing
from workers import metrics
from workers.app import create_celery
from workers.broker.results import ReplyBackend
from workers.in_doubt import open_records
from workers.locks import BusinessLocks
from workers.patience import Patience
from workers.schedule import PeriodicTasks
from workers.servers import open_redis
from workers.startup import wait_for_servers
from workers.tasks.allocations import GroupProcessor, register_tasks
from workers.tasks.batches import PayoutBatchWorker, register_batch_tasks
from workers.tasks.chain import SEALING_TIMEOUT_S, HistorySealer, register_seal_task
from workers.tasks.day_sums import DaySummer, register_day_sum_tasks
from workers.tasks.in_doubt import InDoubtWorker, register_in_doubt_task
from workers.tasks.verification import BooksVerifier, register_verification_task
from workers.tracing import trace_tasks


def create_worker(settings: Settings) -> Celery:
    """Wire a worker. Nothing connects before the first task."""
    celery = create_celery(settings)
    if is_wanted():
        start_tracing(_name_process(sys.argv))
        trace_tasks(celery)
    client = open_redis(settings, retries=1)
    database = Database.from_settings(settings)
    locks = BusinessLocks(client, ttl_s=settings.lock_ttl_s, wait_s=settings.lock_wait_s)
    # A pool of its own: its transactions wait less for rows that others hold.
    calls_database = Database.from_settings(settings, row_lock_timeout_s=settings.held_row_wait_s)
    patience = Patience(settings.held_row_wait_s)
    processor = GroupProcessor(calls_database, locks, settings.hash_secret_bytes, patience)
    register_tasks(celery, GroupCodec(settings.hash_secret_bytes), processor)
    batch_worker = PayoutBatchWorker(celery, database, locks, Patience(settings.row_lock_timeout_s))
    register_batch_tasks(celery, batch_worker, settings.batch_stalled_after_s, client)
    register_verification_task(celery, BooksVerifier(settings, client))
    metrics.watch(settings, database, calls_database)
    register_day_sum_tasks(celery, DaySummer(database))
    in_doubt = InDoubtWorker(database, open_records(settings), overdue_after_s=settings.reply_timeout_s)
    register_in_doubt_task(celery, in_doubt)
    # Looking for what is new may take longer than a payment may; it locks no row that a payment needs.
    sealing = Database.from_settings(settings, transaction_timeout_s=SEALING_TIMEOUT_S, pool_size=1)
    register_seal_task(celery, HistorySealer(sealing, settings.hash_secret_bytes))
    return celery


@setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(**_: object) -> None:
    """Log in place of Celery, and without its two lines for every task: the second one prints the whole result."""
    Logs.configure(_name_process(sys.argv), log_format=settings.log_format, log_level=settings.log_level)
    for name in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warn_where_missing()


def _name_process(arguments: list[str]) -> str:
    """Return which of the Procfile's processes this is: `worker`, `batches`, `beat` or another of Celery's."""
    if "--hostname" in arguments[:-1]:
        return re.split(r"[-@]", arguments[arguments.index("--hostname") + 1])[0]
    return next((each for each in ("worker", "beat") if each in arguments), "celery")


@worker_ready.connect  # type: ignore[untyped-decorator]
def _freeze_startup_objects(**_: object) -> None:
    freeze_startup_objects()


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _wait_as_worker(**_: object) -> None:
    """Wait for all servers before Celery tries to connect, which it would do for ever."""
    try:
        wait_for_servers(app, settings)
    except UserError as error:
        _give_up(error)


@beat_init.connect  # type: ignore[untyped-decorator]
def _wait_as_beat(**_: object) -> None:
    try:
        wait_for_servers(app, settings, with_database=False)
    except UserError as error:
        _give_up(error)


def _give_up(error: UserError) -> NoReturn:
    (sys.__stderr__ or sys.stderr).write(f"{error}\n")  # Celery has turned the other into a log
    sys.exit(error.exit_code)


# Celery finds these by name. They are imported at once, because a signal that arrives in the middle of a later import
# would need them half done.
IMPORTED_BY_NAME = (ReplyBackend, PeriodicTasks)

# Celery warns root of pickle, which `accept_content` refuses.
warnings.filterwarnings("ignore", category=SecurityWarning)

try:
    warn_of_doubtful_variables()
    settings = load_settings()
    app = create_worker(settings)
except UserError as error:
    _give_up(error)
