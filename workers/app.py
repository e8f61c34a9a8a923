"""The Celery application: what API and workers agree on. Nothing connects when it is made."""

from uuid import UUID

from celery import Celery

from core.ids import IdKind, format_id
from core.settings.loader import Settings
from workers.servers import broker_configuration

ALLOCATE_TASK = "payouts.allocate"
QUEUE = "allocations"
NAMES_HEADER = "names"
"""Of a task's message: the ids of its allocations and requests, for logs. They are not sealed, and decide nothing."""
PAY_CHUNK_TASK = "payouts.pay_batch_chunk"
FIND_STALLED_TASK = "payouts.find_stalled_batches"
SUM_DAYS_TASK = "payouts.sum_days"
SEAL_TASK = "payouts.seal"
VERIFY_TASK = "payouts.verify_books"
FINISH_IN_DOUBT_TASK = "payouts.finish_in_doubt"
BATCHES_QUEUE = "batches"
SUM_DAYS_EVERY_S = 15.0
SEAL_EVERY_S = 5.0
PERIODIC_RUN_KEY = "payouts:periodic-task-ran"
"""In Redis while the periodic task runs as often as it should."""
RESULT_KEY_PREFIX = "celery-task-meta-"
"""Celery's own: a result is stored under this and the task id, and published on a channel of the same name."""
RESULT_EXPIRES_S = 60
VERDICT_KEY = "payouts:sealed-verdict"
"""Where in Redis the last verification of the books is, for whoever shows it."""
_VERIFY_CHECK_EVERY_S = 60.0


def create_celery(settings: Settings) -> Celery:
    """Make the Celery application; every wait on the broker or the result store is bounded."""
    celery = Celery("payouts")
    celery.conf.update(
        **broker_configuration(settings),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_limit=settings.in_flight_max * 2,
        broker_pool_acquire_timeout=settings.redis_timeout_s,
        task_publish_retry=False,
        result_backend="workers.broker.results:ReplyBackend",
        payouts_settings=settings,
        result_expires=RESULT_EXPIRES_S,
        result_backend_transport_options={
            "retry_policy": {
                "max_retries": 2,
                "interval_start": 0.1,
                "interval_step": 0.1,
                "interval_max": 0.2,
            }
        },
        # Everything else on the queue is refused.
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_default_queue=QUEUE,
        task_routes={
            task: {"queue": BATCHES_QUEUE}
            for task in (PAY_CHUNK_TASK, FIND_STALLED_TASK, SUM_DAYS_TASK, SEAL_TASK, VERIFY_TASK, FINISH_IN_DOUBT_TASK)
        },
        beat_schedule=_periodic_tasks(settings),
        # The schedule is fixed, so nothing needs to be remembered in a file.
        beat_scheduler="workers.schedule:PeriodicTasks",
        worker_consumer="workers.broker.consumer:Consumer",
        worker_prefetch_multiplier=1,
        # Concerns late acknowledgement only, which we do not use; leaving it out makes Celery warn about it.
        worker_cancel_long_running_tasks_on_connection_loss=True,
    )
    return celery


def _periodic_tasks(settings: Settings) -> dict[str, dict[str, object]]:
    # `expires` would be by the clock of whoever sends, and clocks may be off; this is by the broker's own, where
    # it is RabbitMQ.
    options = {"ignore_result": True, "expiration": settings.batch_stalled_after_s}
    tasks = {
        "find stalled batches": {
            "task": FIND_STALLED_TASK,
            "schedule": settings.batch_stalled_after_s,
            "options": options,
        },
        "finish what is in doubt": {
            "task": FINISH_IN_DOUBT_TASK,
            "schedule": settings.batch_stalled_after_s,
            "options": options,
        },
        "sum days": {"task": SUM_DAYS_TASK, "schedule": SUM_DAYS_EVERY_S, "options": options},
        "seal": {"task": SEAL_TASK, "schedule": SEAL_EVERY_S, "options": options},
    }
    if settings.verify_every_s:
        # More often than it is done: whoever gets the task knows when that was last, and beat forgets it at each start.
        check_every_s = min(max(settings.verify_every_s, 1.0), _VERIFY_CHECK_EVERY_S)
        tasks["verify the books"] = {"task": VERIFY_TASK, "schedule": check_every_s, "options": options}
    return tasks


def periodic_run_noted_s(every_s: float) -> float:
    """Return for how long a run of the periodic task is noted."""
    return every_s * 3 + 5


def check_broker(celery: Celery) -> None:
    """Open a connection to the broker and close it; raises what the transport raises, in bounded time."""
    with celery.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        connection.default_channel  # noqa: B018 (with Redis, only a channel connects)


def send_chunk(celery: Celery, business_id: UUID, batch_id: UUID, first: int) -> None:
    """Send the task that pays a batch's rows from row `first` on."""
    celery.send_task(
        PAY_CHUNK_TASK,
        args=[format_id(IdKind.BUSINESS, business_id), format_id(IdKind.BATCH, batch_id), first],
        queue=BATCHES_QUEUE,
        ignore_result=True,
        argsrepr=f"payout batch {format_id(IdKind.BATCH, batch_id)} from row {first}",
        kwargsrepr="{}",
    )
