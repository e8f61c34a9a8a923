"""How Redis and the broker are reached, from the URLs in the settings. Every wait is bounded; nothing connects yet."""

import ssl
from typing import Any
from urllib.parse import quote

import redis.asyncio
from kombu.transport import TRANSPORT_ALIASES
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.settings.loader import Settings
from core.settings.server_urls import (
    SentinelUrl,
    parse_sentinel_url,
    split_urls,
    tls_options,
    uses_tls,
    without_query,
)

# By name, because kombu decides by the name whether to use TLS.
TRANSPORT_ALIASES.update(
    dict.fromkeys(("redis", "rediss"), "workers.broker.transport:Transport")
    | {"sentinel": "workers.broker.transport:SentinelTransport"}
    | dict.fromkeys(("amqp", "amqps", "pyamqp"), "workers.broker.rabbitmq:Transport")
)
_HEARTBEAT_S = 10.0
"""Longer than a task, in which a worker sends none; a connection that says nothing for twice as long is given up."""
_VERIFICATION = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


def open_redis(settings: Settings, *, retries: int) -> redis.Redis:
    """Make a client of the Redis for locks and replies."""
    options = _timeouts(settings) | {"retry": Retry(NoBackoff(), retries)}
    sentinels = parse_sentinel_url(settings.redis_url)
    if sentinels is None:
        return redis.Redis.from_url(settings.redis_url, **options)
    sentinel_options = _sentinel_options(settings, settings.redis_url, sentinels) | {"retry": Retry(NoBackoff(), 0)}
    options |= _server_options(settings.redis_url, sentinels)
    sentinel = redis.Sentinel(  # type: ignore[no-untyped-call]
        sentinels.hosts, sentinel_kwargs=sentinel_options, **options
    )
    client: redis.Redis = sentinel.master_for(sentinels.service)  # type: ignore[no-untyped-call]
    return client


def open_async_redis(
    settings: Settings, *, retries: int | None = None, timeout_s: float | None = None
) -> redis.asyncio.Redis:
    """Make a client of the same for the event loop.

    It tries again as often as is redis-py's habit, if not said; `timeout_s` is for what takes longer.
    """
    options = _timeouts(settings)
    if timeout_s is not None:
        options["socket_timeout"] = timeout_s
    if retries is not None:
        options["retry"] = AsyncRetry(NoBackoff(), retries)
    sentinels = parse_sentinel_url(settings.redis_url)
    if sentinels is None:
        return redis.asyncio.Redis.from_url(settings.redis_url, **options)
    sentinel_options = _sentinel_options(settings, settings.redis_url, sentinels) | {
        "retry": AsyncRetry(NoBackoff(), 0)
    }
    options |= _server_options(settings.redis_url, sentinels)
    sentinel = redis.asyncio.Sentinel(  # type: ignore[no-untyped-call]
        sentinels.hosts, sentinel_kwargs=sentinel_options, **options
    )
    client: redis.asyncio.Redis = sentinel.master_for(sentinels.service)
    return client


def broker_configuration(settings: Settings) -> dict[str, Any]:
    """Return what Celery needs to know of the broker."""
    url = settings.broker_url
    if url.startswith("amqp"):
        return _rabbitmq_configuration(settings)
    options = _timeouts(settings) | _one_attempt()
    # Delivery is at most once: the API publishes a batch again when no reply comes, and acknowledgements
    # emulated on Redis can end a worker when the broker goes away.
    options["ack_emulation"] = False
    if uses_tls(url):
        url = without_query(url)
    sentinels = parse_sentinel_url(settings.broker_url)
    if sentinels is not None:
        url = _kombu_url(sentinels)
        options["master_name"] = sentinels.service
        options["sentinel_kwargs"] = _sentinel_options(settings, settings.broker_url, sentinels) | {
            "retry": Retry(NoBackoff(), 0)
        }
    return {
        "broker_url": url,
        "broker_transport_options": options,
        "broker_use_ssl": _redis_tls(settings.broker_url) if uses_tls(settings.broker_url) else None,
        "broker_connection_timeout": settings.redis_timeout_s,
    }


def _rabbitmq_configuration(settings: Settings) -> dict[str, Any]:
    """Queues that survive a node; a batch not confirmed when it would be sent again is not waited for."""
    urls = split_urls(settings.broker_url)
    given = tls_options(urls[0])
    files = {
        name.removeprefix("ssl_"): given[name]
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
        if name in given
    }
    checks_name = given.get("ssl_check_hostname", "true") == "true" and given.get("ssl_cert_reqs") != "none"
    tls = files | {
        "cert_reqs": _VERIFICATION[given.get("ssl_cert_reqs", "required")],
        "checks_hostname": checks_name,
    }
    return {
        "broker_url": ";".join(map(without_query, urls)),
        "broker_transport_options": _one_attempt()
        | {
            "max_retries": len(urls) - 1,  # one attempt at each node
            "confirm_publish": True,
            "write_timeout": settings.resend_after_s,
        },
        "broker_use_ssl": tls if uses_tls(urls[0]) else None,
        "broker_connection_timeout": settings.resend_after_s,
        "broker_heartbeat": _HEARTBEAT_S,
        "task_default_queue_type": "quorum",
        "task_create_missing_queue_type": "quorum",
    }


def _timeouts(settings: Settings) -> dict[str, Any]:
    return {"socket_timeout": settings.redis_timeout_s, "socket_connect_timeout": settings.redis_timeout_s}


def _one_attempt() -> dict[str, Any]:
    return {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def _redis_tls(url: str) -> dict[str, Any]:
    """Ask for a valid certificate, unless the URL itself says otherwise (`?ssl_cert_reqs=none`)."""
    given: dict[str, Any] = tls_options(url)
    verification = given.get("ssl_cert_reqs", "required")
    checks_name = given.get("ssl_check_hostname", "true") == "true" and verification != "none"
    return given | {"ssl_cert_reqs": _VERIFICATION[verification], "ssl_check_hostname": checks_name}


def _server_options(url: str, sentinels: SentinelUrl) -> dict[str, Any]:
    options = {"username": sentinels.username, "password": sentinels.password, "db": sentinels.database}
    return options | ({"ssl": True} | _redis_tls(url) if uses_tls(url) else {})


def _sentinel_options(settings: Settings, url: str, sentinels: SentinelUrl) -> dict[str, Any]:
    credentials = {"username": sentinels.sentinel_username, "password": sentinels.sentinel_password}
    return _timeouts(settings) | credentials | ({"ssl": True} | _redis_tls(url) if uses_tls(url) else {})


def _kombu_url(sentinels: SentinelUrl) -> str:
    """Write Sentinels as kombu reads them."""
    credentials = ""
    if sentinels.password is not None:
        credentials = f"{quote(sentinels.username or '', safe='')}:{quote(sentinels.password, safe='')}@"
    hosts = (f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name, port in sentinels.hosts)
    return ";".join(f"sentinel://{credentials}{host}/{sentinels.database}" for host in hosts)
