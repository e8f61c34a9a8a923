"""Waiting for what a starting process needs besides the database: the broker, and Redis for locks and replies."""

from celery import Celery

from core.settings import Settings
from core.startup import address_of, wait_until_ready


def wait_for_broker(celery: Celery, settings: Settings) -> None:
    """Wait until the broker can be reached.

    Raises:
        ServerNotReadyError: not within `startup_timeout_s`.

    """
    wait_until_ready(lambda: _find_broker_problem(celery, settings), settings.startup_timeout_s)


def wait_for_redis(celery: Celery, settings: Settings) -> None:
    """Wait until the Redis of locks and replies can be reached, where it is not the broker as well.

    Raises:
        ServerNotReadyError: not within `startup_timeout_s`.

    """
    if settings.redis_url != settings.broker_url:
        wait_until_ready(lambda: _find_redis_problem(celery, settings), settings.startup_timeout_s)


def _find_broker_problem(celery: Celery, settings: Settings) -> str | None:
    try:
        with celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, interval_max=0)
    except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
        return f"the broker at {address_of(settings.broker_url)} cannot be reached: {_describe(error)}"
    return None


def _find_redis_problem(celery: Celery, settings: Settings) -> str | None:
    try:
        celery.backend.client.ping()
    except Exception as error:  # noqa: BLE001 (redis-py's, and the sockets')
        return f"Redis at {address_of(settings.redis_url)} cannot be reached: {_describe(error)}"
    return None


def _describe(error: Exception) -> str:
    """Name an error and, where it is the operating system's, say what it is; never the text of others."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    return cause.strerror or type(error).__name__ if isinstance(cause, OSError) else type(error).__name__
