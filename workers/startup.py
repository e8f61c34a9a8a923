"""Waiting for what a starting process needs besides the database: the broker, and Redis for locks and replies."""

import ssl

from amqp.exceptions import AccessRefused, NotAllowed
from celery import Celery
from redis.exceptions import AuthenticationError

from core.settings import Settings, variable_name
from core.startup import ServerNotReadyError, address_of, wait_until_ready


def wait_for_broker(celery: Celery, settings: Settings) -> None:
    """Wait until the broker can be reached.

    Raises:
        ServerNotReadyError: not within `startup_timeout_s`, or it does not let us in, which no waiting changes.

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
        if refusal := describe_refusal(error):
            raise ServerNotReadyError(refusal) from None
        return f"the broker at {address_of(settings.broker_url)} cannot be reached: {_describe(error)}"
    return None


def _find_redis_problem(celery: Celery, settings: Settings) -> str | None:
    try:
        celery.backend.client.ping()
    except Exception as error:  # noqa: BLE001 (redis-py's, and the sockets')
        return f"Redis at {address_of(settings.redis_url)} cannot be reached: {_describe(error)}"
    return None


def describe_refusal(error: BaseException | None) -> str | None:
    """Say how the broker refused us, or why it cannot be trusted; None where the error is another."""
    while error is not None:
        if isinstance(error, (AccessRefused, NotAllowed, AuthenticationError)):
            reason = "refuses the user, the password or the virtual host"
        elif isinstance(error, ssl.SSLCertVerificationError):
            reason = f"has a certificate that is not trusted ({error.verify_message})"
        else:
            error = error.__cause__ or error.__context__
            continue
        broker, redis = variable_name("broker_url"), variable_name("redis_url")
        return f"the broker {reason}; see {broker}, or {redis} if that is not set"
    return None


def _describe(error: Exception) -> str:
    """Name an error and, where it is the operating system's, say what it is; never the text of others."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    return cause.strerror or type(error).__name__ if isinstance(cause, OSError) else type(error).__name__
