"""The last requests of each business, for its developers: kept in Redis, and lost without harm.

A request costs an entry in memory, of which a business has as many as are shown. About once a second they go to a
capped list in Redis. Bodies, queries and headers are never kept.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from uuid import UUID

import msgspec
from redis.exceptions import RedisError

from api.web.request_log import RequestNote
from core import metrics
from core.settings.loader import Settings
from workers.servers import open_async_redis

logger = logging.getLogger(__name__)

SHOWN_MAX = 100
"""Requests that are kept for each business."""

_FLUSH_EVERY_S = 1.0
_BUSINESSES_MAX = 10_000
_BUSINESSES_AT_ONCE = 100
_KEPT_FOR_S = 30 * 24 * 3600
_PATH_CHARACTERS_MAX = 200


class RecentRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request of a business as its developers see it; `at` in seconds since 1970, the path without its query."""

    at: float
    method: str
    path: str
    status: int
    latency_ms: float
    request_id: str


# For each key: how many entries come, and the entries, oldest first. One command for many businesses: what a command
# costs here is more than what it costs there.
_PUSH = """
local at = 3
for _, key in ipairs(KEYS) do
    local count = tonumber(ARGV[at])
    redis.call('LPUSH', key, unpack(ARGV, at + 1, at + count))
    redis.call('LTRIM', key, 0, ARGV[1] - 1)
    redis.call('EXPIRE', key, ARGV[2])
    at = at + 1 + count
end
"""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RecentRequest)


class RecentRequests:
    """Notes the requests whose caller is known. While Redis is away, what is noted is dropped."""

    def __init__(self, settings: Settings) -> None:
        self._redis = open_async_redis(settings, retries=1)
        self._push = self._redis.register_script(_PUSH)
        self._noted: dict[UUID, deque[RequestNote]] = {}
        self._is_away = False

    def note(self, request: RequestNote) -> None:
        """Note a request that was answered; one whose caller is not known is nobody's."""
        if request.business_id is None:
            return
        entries = self._noted.get(request.business_id)
        if entries is None:
            if len(self._noted) >= _BUSINESSES_MAX:
                return
            entries = self._noted[request.business_id] = deque(maxlen=SHOWN_MAX)
        entries.append(request)

    async def keep_flushed(self) -> None:
        """Send what was noted to Redis about once a second, for ever."""
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            await self.flush()

    async def flush(self) -> None:
        """Send what was noted to Redis; where that fails, drop it."""
        noted, self._noted = self._noted, {}
        businesses = iter(noted.items())
        try:
            while group := list(islice(businesses, _BUSINESSES_AT_ONCE)):
                await self._send(group)
        except Exception as error:  # noqa: BLE001 (it would end the background task)
            if not self._is_away:
                logger.warning("recent requests are not kept for now: %s", type(error).__name__)
            self._is_away = True
        else:
            self._is_away = False

    async def read(self, business_id: UUID) -> list[RecentRequest] | None:
        """Return a business's last requests, newest first; None where Redis does not answer."""
        try:
            texts = await self._redis.lrange(_key(business_id), 0, SHOWN_MAX - 1)
        except (RedisError, OSError):
            return None
        # Several API processes push by turns.
        return sorted(_decode(texts), key=lambda request: request.at, reverse=True)

    async def close(self) -> None:
        """Send the last ones, and let go of Redis."""
        await self.flush()
        await self._redis.aclose()

    async def _send(self, group: list[tuple[UUID, deque[RequestNote]]]) -> None:
        arguments: list[bytes | int] = [SHOWN_MAX, _KEPT_FOR_S]
        for _, entries in group:
            arguments.append(len(entries))
            arguments += [_encode(entry) for entry in entries]
        await self._push(keys=[_key(business_id) for business_id, _ in group], args=arguments)


def _decode(texts: Iterable[bytes | str]) -> Iterator[RecentRequest]:
    """Decode entries; what is none was written by somebody else, and is left out."""
    for text in texts:
        try:
            yield _decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            metrics.FORGERIES.labels("request").inc()


def _key(business_id: UUID) -> str:
    return f"payouts:requests:{business_id.hex}"


def _encode(note: RequestNote) -> bytes:
    latency_ms = round(note.duration_s * 1000, 1)
    path = note.path[:_PATH_CHARACTERS_MAX]
    return _encoder.encode(RecentRequest(note.time, note.method, path, note.status, latency_ms, note.id))
