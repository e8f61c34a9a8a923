"""The Celery application: what API and workers agree on. Nothing connects when it is made."""

import ssl
from uuid import UUID

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from core.ids import IdKind, format_id
from core.settings import Settings

ALLOCATE_TASK = "payouts.allocate"
QUEUE = "allocations"
PAY_CHUNK_TASK = "payouts.pay_batch_chunk"
FIND_STALLED_TASK = "payouts.find_stalled_batches"
SUM_DAYS_TASK = "payouts.sum_days"
BATCHES_QUEUE = "batches"
SUM_DAYS_EVERY_S = 15.0
RESULT_KEY_PREFIX = "celery-task-meta-"
"""Celery's own: a result is stored under this and the task id, and published on a channel of the same name."""
RESULT_EXPIRES_S = 60

# By name, because kombu decides by the name whether to use TLS.
TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), "workers.transport:Transport"))


def create_celery(settings: Settings) -> Celery:
    """Make the Celery application; every wait on the broker or the result store is bounded."""
    celery = Celery("payouts")
    celery.conf.update(
        broker_url=settings.broker_url,
        # Delivery is at most once: the API publishes a batch again when no reply comes, and acknowledgements
        # emulated on Redis can end a worker when the broker goes away.
        broker_transport_options=_transport_options(settings) | {"ack_emulation": False},
        broker_use_ssl=_tls_options(settings.broker_url),
        redis_backend_use_ssl=_tls_options(settings.redis_url),
        broker_connection_timeout=settings.redis_timeout_s,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_limit=settings.in_flight_max * 2,
        broker_pool_acquire_timeout=settings.redis_timeout_s,
        task_publish_retry=False,
        result_backend=f"workers.results:ReplyBackend+{settings.redis_url}",
        result_expires=RESULT_EXPIRES_S,
        result_backend_transport_options={
            "retry_policy": {
                "max_retries": 2,
                "interval_start": 0.1,
                "interval_step": 0.1,
                "interval_max": 0.2,
            }
        },
        redis_socket_timeout=settings.redis_timeout_s,
        redis_socket_connect_timeout=settings.redis_timeout_s,
        # Everything else on the queue is refused.
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_default_queue=QUEUE,
        task_routes={task: {"queue": BATCHES_QUEUE} for task in (PAY_CHUNK_TASK, FIND_STALLED_TASK, SUM_DAYS_TASK)},
        beat_schedule={
            "find stalled batches": {
                "task": FIND_STALLED_TASK,
                "schedule": settings.batch_stalled_after_s,
                # Without an end: it would be by the clock of whoever sends, and clocks may be off.
                "options": {"ignore_result": True},
            },
            "sum days": {
                "task": SUM_DAYS_TASK,
                "schedule": SUM_DAYS_EVERY_S,
                "options": {"ignore_result": True},
            },
        },
        # The schedule is fixed, so nothing needs to be remembered in a file.
        beat_scheduler="workers.schedule:PeriodicTasks",
        worker_consumer="workers.consumer:Consumer",
        worker_prefetch_multiplier=1,
        # Concerns late acknowledgement only, which we do not use; leaving it out makes Celery warn about it.
        worker_cancel_long_running_tasks_on_connection_loss=True,
    )
    return celery


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


def _tls_options(url: str) -> dict[str, object] | None:
    """Ask for a valid certificate, unless the URL itself says otherwise (`?ssl_cert_reqs=none`)."""
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED} if url.startswith("rediss://") and "ssl_cert_reqs" not in url else None


def _transport_options(settings: Settings) -> dict[str, object]:
    if settings.broker_url.startswith("amqp"):
        return {}
    return {
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
        "max_retries": 0,
        "interval_start": 0,
        "interval_step": 0,
        "interval_max": 0,
    }
