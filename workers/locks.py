"""Per-business locks in Redis. They keep workers from piling up on a row; they never decide what is right."""

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

import redis

from core import metrics

logger = logging.getLogger(__name__)

_POLL_S = 0.005

# Takes every lock that is free; answers 1 or 0 for each, and sets a mark where the caller waits. A lock with the
# caller's own token counts as taken: a request that timed out may have been carried out all the same, before the retry
# or after the caller went on without locks.
_ACQUIRE = """
local taken = {}
for i, key in ipairs(KEYS) do
    if redis.call('SET', key, ARGV[1], 'NX', 'PX', ARGV[2]) then
        taken[i] = 1
    elseif redis.call('GET', key) == ARGV[1] then
        redis.call('PEXPIRE', key, ARGV[2])
        taken[i] = 1
    else
        redis.call('SET', key .. ':wanted', 1, 'PX', ARGV[2])
        taken[i] = 0
    end
end
return taken
"""

# Gives back only what is still ours: the lock may have ended and be another's.
_RELEASE = """
local released = 0
for _, key in ipairs(KEYS) do
    if redis.call('GET', key) == ARGV[1] then
        released = released + redis.call('DEL', key)
    end
end
return released
"""


def lock_key(business_id: UUID) -> str:
    """Return the Redis key of a business's lock."""
    return f"payouts:lock:{business_id.hex}"


class BusinessLocks:
    """Takes and gives back the locks of many businesses, each in one script call."""

    def __init__(self, client: redis.Redis, *, ttl_s: float, wait_s: float) -> None:
        self.others_waited = False
        """Whether somebody waited for the lock that was held politely last."""
        self._client = client
        self._acquire = client.register_script(_ACQUIRE)
        self._release = client.register_script(_RELEASE)
        self._ttl_ms = round(ttl_s * 1000)
        self._wait_s = wait_s
        self._of_thread = threading.local()

    def hold_in_turn(self, business_ids: Iterable[UUID], *, wait_s: float | None = None) -> Iterator[set[UUID]]:
        """Yield groups of businesses while their locks are held, until each was in one group.

        The first group is of the locks that are free; the others follow. After `wait_s` in all (None: what the
        settings say), or where Redis does not answer, the rest is yielded without locks: the row locks decide anyway.
        """
        missing = set(business_ids)
        asked_at, is_waiting = time.monotonic(), False
        give_up_at = asked_at + (self._wait_s if wait_s is None else wait_s)
        while missing:
            with self._hold_free(missing) as held:
                group = held
                if group is None or (not group and time.monotonic() >= give_up_at):
                    metrics.UNLOCKED.labels("redis" if group is None else "timeout").inc()
                    group = set(missing)
                if group:
                    metrics.LOCKED_SECONDS.observe(time.monotonic() - asked_at)
                    yield group
                    missing -= group
                    asked_at, is_waiting = time.monotonic(), False
            if missing and not group:
                if not is_waiting:
                    metrics.LOCK_WAITS.inc()
                is_waiting = True
                time.sleep(_POLL_S)

    @contextmanager
    def hold_politely(self, business_id: UUID) -> Iterator[None]:
        """Hold one business's lock; afterwards, let those who waited for it go first."""
        for _ in self.hold_in_turn([business_id]):
            yield
        try:
            is_wanted = self._client.delete(f"{lock_key(business_id)}:wanted")
        except redis.RedisError:
            return  # `hold_in_turn` has said so
        self.others_waited = bool(is_wanted)
        if is_wanted:
            time.sleep(_POLL_S * 2)

    @contextmanager
    def _hold_free(self, business_ids: set[UUID]) -> Iterator[set[UUID] | None]:
        """Hold those of the locks that are free; None where Redis does not answer."""
        ordered = sorted(business_ids)
        token = self._token()
        try:
            taken = self._acquire(keys=[lock_key(id_) for id_ in ordered], args=[token, self._ttl_ms])
        except redis.RedisError as error:
            logger.warning("going on without Redis locks: %s", type(error).__name__)
            yield None
            return
        held = {id_ for id_, is_taken in zip(ordered, taken, strict=True) if is_taken}
        try:
            yield held
        finally:
            self._give_back(held, token)

    def _token(self) -> str:
        """Return what marks the locks of this thread: the same each time, so that it knows its own again."""
        token: str | None = getattr(self._of_thread, "token", None)
        if token is None:
            token = self._of_thread.token = secrets.token_hex(16)
        return token

    def _give_back(self, held: set[UUID], token: str) -> None:
        if not held:
            return
        try:
            self._release(keys=[lock_key(id_) for id_ in held], args=[token])
        except redis.RedisError as error:
            logger.warning("Redis locks are left to end by themselves: %s", type(error).__name__)
