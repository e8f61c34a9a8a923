"""Where Celery puts replies: Redis, without what only a caller of `AsyncResult` needs."""

from celery.backends.redis import RedisBackend


class ReplyBackend(RedisBackend):  # type: ignore[misc]
    """Celery's Redis backend for callers that listen to one channel pattern for all replies."""

    def on_task_call(self, producer: object, task_id: str) -> None:
        """Subscribe to nothing: the API has one pattern subscription, made before anything is published."""
