"""How often a key may call: a token bucket in Redis for each, in its GCRA form. Off where no rate is set.

The headers are those of draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy` names the bucket's size and how
long it takes to fill, `RateLimit` what is left and when it is full again.
"""

import logging
import math
import time
from typing import Any
from uuid import UUID

from litestar.types import Message, Scope
from redis.asyncio import Redis
from throttled.asyncio import Throttled, rate_limiter, store
from throttled.exceptions import StoreUnavailableError

from api.web import responses
from api.web.responses import Refusal
from core import metrics
from core.ids import IdKind, format_id
from core.settings.loader import Settings
from workers.servers import open_async_redis

logger = logging.getLogger(__name__)

_HEADERS = "payouts.rate_limit"
_AGAIN_AFTER_S = 1.0
_FACTORY = f"{__name__}.RedisFactory"


class RedisFactory:
    """Gives the limiter a client such as all others use, Sentinels included."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._settings: Settings = options["SETTINGS"]

    def connect(self, _: str | None = None) -> Redis:
        """Make the client."""
        return open_async_redis(self._settings, retries=0)


class RateLimiter:
    """Counts calls by key. Where Redis cannot be asked, calls pass: it limits load, and guards no money."""

    def __init__(self, settings: Settings) -> None:
        self._throttled: Throttled | None = None
        self._ask_again_at = 0.0
        if not settings.rate_limit_per_s:
            return
        burst = settings.rate_limit_burst or settings.rate_limit_per_s
        self._policy = f'"key";q={burst};w={math.ceil(burst / settings.rate_limit_per_s)}'
        self._throttled = Throttled(
            using="gcra",
            quota=rate_limiter.per_sec(settings.rate_limit_per_s, burst=burst),
            store=store.RedisStore(options={"CONNECTION_FACTORY_CLASS": _FACTORY, "SETTINGS": settings}),
        )

    async def take(self, api_key_id: UUID, scope: Any) -> Refusal | None:
        """Count a call; return why it is refused, where it is one too many. Its response gets the headers."""
        if self._throttled is None or time.monotonic() < self._ask_again_at:
            return None
        try:
            result = await self._throttled.limit(format_id(IdKind.API_KEY, api_key_id))
        except (StoreUnavailableError, OSError) as error:
            self._ask_again_at = time.monotonic() + _AGAIN_AFTER_S
            logger.warning("calls pass uncounted for %g s: %s", _AGAIN_AFTER_S, type(error).__name__)
            return None
        state = result.state
        scope[_HEADERS] = [
            (b"ratelimit-policy", self._policy.encode()),
            (b"ratelimit", f'"key";r={max(state.remaining, 0)};t={math.ceil(state.reset_after)}'.encode()),
        ]
        if not result.limited:
            return None
        metrics.TOO_MANY_REQUESTS.labels("rate_limit").inc()
        retry_after_s = max(math.ceil(state.retry_after), 1)
        return Refusal(429, responses.TOO_MANY_REQUESTS.error, {"Retry-After": str(retry_after_s)})


async def add_rate_limit(message: Message, scope: Scope) -> None:
    """Add the headers; runs before each message of each response is sent."""
    headers: Any = scope.get(_HEADERS)
    if headers is not None and message["type"] == "http.response.start":
        message["headers"] = [*message.get("headers", []), *headers]
