"""Waiting for what a starting process needs besides the database: the broker, and Redis for locks and replies."""

import ssl

from amqp.exceptions import AccessRefused, NotAllowed
from celery import Celery
from redis.exceptions import AuthenticationError

from core.database.connection import Database
from core.database.revision import find_schema_problem
from core.settings.loader import Settings
from core.settings.variables import variable_name
from core.startup import ServerNotReadyError, address_of, wait_until_ready


def wait_for_servers(celery: Celery, settings: Settings, *, with_database: bool = True) -> None:
    """Wait until database, broker and Redis can be reached, and the database has all of our migrations.

    Raises:
        UserError: not within `startup_timeout_s`, or what no waiting changes: the broker does not let us in, say.

    """
    if not with_database:
        wait_until_ready(lambda: _find_broker_problem(celery, settings), settings.startup_timeout_s)
        return
    with Database.from_settings(settings, pool_size=1) as database:
        wait_until_ready(lambda: _find_problem(database, celery, settings), settings.startup_timeout_s)


def _find_problem(database: Database, celery: Celery, settings: Settings) -> str | None:
    # All are looked at each time, for those of them that end the waiting at once.
    problems = [find_schema_problem(database), _find_broker_problem(celery, settings)]
    if settings.redis_url != settings.broker_url:
        problems.append(_find_redis_problem(celery, settings))
    return next(filter(None, problems), None)


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
    except AuthenticationError:
        text = f"Redis refuses the user or the password; see {variable_name('redis_url')}"
        raise ServerNotReadyError(text) from None
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
