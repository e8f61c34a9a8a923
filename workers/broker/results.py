"""Where Celery puts replies: Redis, without what only a caller of `AsyncResult` needs."""

import logging
from collections import Counter
from functools import cached_property
from typing import Any

from celery.backends.redis import RedisBackend
from redis import Redis

from core import metrics
from core.messages import Outcome
from workers.servers import open_redis

logger = logging.getLogger(__name__)


class GroupReply:
    """A reply for the API; in Flower, how many outcomes of each kind: `22 allocated, 1 expired`.

    `sealed` is None for an API process of the release before, which reads the outcomes themselves.
    """

    def __init__(self, outcomes: list[Outcome], sealed: str | None) -> None:
        self._outcomes = outcomes
        self._sealed = sealed

    def __json__(self) -> list[Outcome] | str:
        return self._outcomes if self._sealed is None else self._sealed

    def __repr__(self) -> str:
        return ", ".join(f"{count} {outcome}" for outcome, count in Counter(self._outcomes).items())


class ReplyBackend(RedisBackend):  # type: ignore[misc]
    """Celery's Redis backend for callers that listen to one channel pattern for all replies."""

    @cached_property
    def client(self) -> Redis:
        """The client for replies; Celery tries again itself."""
        return open_redis(self.app.conf.payouts_settings, retries=0)

    def on_task_call(self, producer: object, task_id: str) -> None:
        """Subscribe to nothing: the API has one pattern subscription, made before anything is published."""

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Store and publish a reply. One that gets lost is asked for again by the API, so it is no failure."""
        try:
            return super().store_result(task_id, result, state, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 (Celery would log a trace, and try to store that)
            logger.warning("a reply was lost: %s", type(error).__name__)
            metrics.REPLIES_LOST.inc()
            return result

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:  # noqa: ARG002
        """Look nothing up: Celery asks whether there is a result already, and no task id is used twice."""
        return {"status": "PENDING", "result": None}
