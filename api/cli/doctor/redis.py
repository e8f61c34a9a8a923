"""Is Redis or Valkey there, fast enough, and does it keep what is queued?"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import redis

from api.cli.doctor.findings import Finding, Status, host_of
from core.settings.loader import Settings
from core.settings.variables import variable_name
from workers.servers import open_redis

_REDIS_VERSION_MIN = (6, 2)
_REDIS_LATENCY_MAX_S = 0.05


def check_redis(settings: Settings) -> list[Finding]:
    """Connect to Redis, and look at its version, role, latency and eviction."""
    place = host_of(settings.redis_url, 6379)
    try:
        with open_redis(settings, retries=0) as client:
            client.ping()
            latency_s = min(_time(client.ping) for _ in range(5))
            return _examine_redis(client.info(), place, latency_s)
    except redis.AuthenticationError:
        text, fix = f"Redis at {place} refuses the user or the password", "correct them in {}"
    except (redis.RedisError, OSError, ValueError) as error:
        text = f"Redis at {place} cannot be reached ({type(error).__name__})"
        fix = "start Redis or Valkey, or correct {}"
    skipped = Finding("redis memory", Status.SKIPPED, "not known without Redis")
    return [Finding("redis", Status.PROBLEM, text, fix.format(variable_name("redis_url"))), skipped]


def _examine_redis(info: Mapping[str, object], place: str, latency_s: float) -> list[Finding]:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version") or "")
    kept = "with an append-only file" if info.get("aof_enabled") else "without an append-only file (none is needed)"
    text = f"{name} {version} at {place}, answers in {latency_s * 1000:.1f} ms, {kept}"
    status, fix = Status.OK, None
    if _read_version(version) < _REDIS_VERSION_MIN:
        status, fix = Status.PROBLEM, "upgrade it: 6.2 is the oldest that fits"
    elif info.get("role") in {"slave", "replica"}:
        status, fix = Status.PROBLEM, f"it is a replica: name the primary server in {variable_name('redis_url')}"
    elif latency_s > _REDIS_LATENCY_MAX_S:
        status, fix = Status.WARNING, "every payout waits for it several times: bring it nearer"
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        memory = Finding("redis memory", Status.OK, "nothing is evicted")
    else:
        fix_policy = "set maxmemory-policy noeviction"
        text_policy = f"maxmemory-policy is {policy}: queued payouts can vanish"
        memory = Finding("redis memory", Status.PROBLEM, text_policy, fix_policy)
    return [Finding("redis", status, text, fix), memory]


def _read_version(version: str) -> tuple[int, ...]:
    with suppress(ValueError):
        return tuple(int(part) for part in version.split(".")[:2])
    return _REDIS_VERSION_MIN


def _time(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
