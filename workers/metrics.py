"""What a worker process counts about its tasks, and the port on which it tells Prometheus."""

import logging
import time
from typing import Any

from celery.signals import task_postrun, task_prerun, worker_ready
from prometheus_client import start_http_server

from core import metrics
from core.database.connection import Database
from core.settings.loader import Settings

logger = logging.getLogger(__name__)

PORTS = 20
_POOLS_IN_THIS_PROCESS = ("celery.concurrency.solo", "celery.concurrency.thread")


def watch(settings: Settings, *databases: Database) -> None:
    """Count tasks and connections (of the fullest pool), and serve all that is counted once the worker is ready."""
    metrics.WORKER_POOL_IN_USE.set_function(lambda: max(each.count_connections()[0] for each in databases))
    metrics.WORKER_POOL_SIZE.set_function(lambda: max(each.count_connections()[1] for each in databases))
    started_at: dict[str, float] = {}

    def begin(task_id: str, **_: Any) -> None:
        started_at[task_id] = time.monotonic()

    def end(task_id: str, task: Any, **_: Any) -> None:
        if (began_at := started_at.pop(task_id, None)) is not None:
            metrics.TASK_SECONDS.labels(task.name).observe(time.monotonic() - began_at)
        metrics.LAST_TASK.set_to_current_time()

    def serve(sender: Any, **_: Any) -> None:
        if not settings.metrics_port:
            return
        if type(sender.pool).__module__ not in _POOLS_IN_THIS_PROCESS:
            logger.error("no metrics are served: tasks run in other processes; use --pool solo, or threads")
            return
        serve_metrics(settings.metrics_host, settings.metrics_port)

    task_prerun.connect(begin, weak=False)
    task_postrun.connect(end, weak=False)
    worker_ready.connect(serve, weak=False)


def serve_metrics(host: str, first_port: int) -> int | None:
    """Serve metrics from a thread, on the first port of a few that is free; return which."""
    reason = "they are all taken"
    for port in range(first_port, first_port + PORTS):
        try:
            start_http_server(port, host, metrics.WORKER)
        except (OSError, UnicodeError) as error:  # the address may be none
            reason = getattr(error, "strerror", None) or type(error).__name__
            continue
        logger.info("metrics are at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, port)
        return port
    logger.error("no metrics are served on the ports %d to %d: %s", first_port, first_port + PORTS - 1, reason)
    return None
