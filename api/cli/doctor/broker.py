"""Is the broker there, and are its queues short?"""

from contextlib import closing

from celery import Celery

from api.cli.doctor.findings import Finding, Status, host_of
from core.settings.loader import Settings
from core.settings.variables import variable_name
from workers.app import (
    check_broker,
)
from workers.broker.queues import QueueWatch
from workers.startup import describe_refusal

_QUEUE_DEPTH_MAX = 1_000


def examine_broker(celery: Celery, settings: Settings) -> Finding:
    """Connect to the broker, and count what waits in its queues."""
    place = host_of(settings.broker_url, 5672 if settings.broker_url.startswith("amqp") else 6379)
    try:
        check_broker(celery)
        with closing(QueueWatch(celery)) as watch:
            states = watch.look()
    except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
        if refusal := describe_refusal(error):
            fix = f"correct {variable_name('broker_url')}, or {variable_name('redis_url')} if that is not set"
            return Finding("broker", Status.PROBLEM, refusal, fix)
        fix = f"start it, or correct {variable_name('broker_url')}"
        return Finding("broker", Status.PROBLEM, f"it cannot be reached at {place} ({type(error).__name__})", fix)
    text = f"reached at {place}; " + ", ".join(f"{state.messages} messages in {state.queue}" for state in states)
    if any(state.messages > _QUEUE_DEPTH_MAX for state in states):
        return Finding("broker", Status.WARNING, text, "start more workers of that queue")
    return Finding("broker", Status.OK, text)
