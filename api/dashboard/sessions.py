"""Who is signed in: sessions in Redis, under digests of their ids, and a text for the next page.

Both are sealed for the key that they lie under: a record that somebody else writes to Redis, or copies from another
session, signs nobody in.
"""

import hashlib
import logging
import re
import secrets
import time
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec
from redis.asyncio import Redis

from core import metrics
from core.sealing import ForgeryError, Seal

logger = logging.getLogger(__name__)

IDLE_MAX_S = 12 * 3600
AGE_MAX_S = 7 * 24 * 3600

_REFRESH_EVERY_S = 60
_ID = re.compile(r"[A-Za-z0-9_-]{43}\Z")  # 256 bits
_NOTICE_FOR_S = 300


class Notice(msgspec.Struct, frozen=True):
    """What the next page says at its top; `is_error` where nothing was done."""

    text: str
    is_error: bool = False


class _Stored(msgspec.Struct, frozen=True):
    account_id: UUID
    password_changed_at: datetime
    began_at_s: int


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is signed in. The id is the browser's secret.

    The session ends when the account's password is another than the one that `password_changed_at` stands for.
    """

    id: str
    account_id: UUID
    password_changed_at: datetime
    notice: Notice | None = None


_stored = msgspec.msgpack.Decoder(_Stored)
_notices = msgspec.msgpack.Decoder(Notice)


def new_random_id() -> str:
    """Make 256 random bits for a cookie."""
    return secrets.token_urlsafe(32)


def looks_like_random_id(text: str) -> bool:
    """Tell whether a cookie has the shape of what `new_random_id` makes."""
    return _ID.match(text) is not None


class Sessions:
    """Begins, finds and ends sessions. Every call may raise what Redis raises."""

    def __init__(self, redis: "Redis", hash_secret: bytes) -> None:
        self._redis = redis
        self._seal = Seal(hash_secret, "sessions")

    async def begin(self, account_id: UUID, password_changed_at: datetime) -> Session:
        """Begin a session under an id of its own."""
        id_ = new_random_id()
        stored = _Stored(account_id, password_changed_at, int(time.time()))
        key = _key(id_)
        await self._redis.set(key, self._seal.seal(msgspec.msgpack.encode(stored), key.encode()), ex=IDLE_MAX_S)
        return Session(id_, account_id, password_changed_at)

    async def find(self, id_: str, *, take_notice: bool = False) -> Session | None:
        """Return a session that has not ended; whoever shows its notice takes it."""
        if not looks_like_random_id(id_):
            return None
        key = _key(id_)
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.get(key)
            pipeline.ttl(key)
            if take_notice:
                pipeline.getdel(_notice_key(id_))
            content, left_s, *rest = await pipeline.execute()
        opened = self._open(content, key)
        if opened is None:
            return None
        stored = _stored.decode(opened)
        may_last_s = stored.began_at_s + AGE_MAX_S - int(time.time())
        if may_last_s <= 0:
            return None
        lasts_s = min(IDLE_MAX_S, may_last_s)
        if left_s < lasts_s - _REFRESH_EVERY_S:
            await self._redis.expire(key, lasts_s)
        text = self._open(rest[0], _notice_key(id_)) if rest else None
        notice = _notices.decode(text) if text is not None else None
        return Session(id_, stored.account_id, stored.password_changed_at, notice)

    async def leave_notice(self, session: Session, notice: Notice) -> None:
        """Leave a text for the next page that the session shows."""
        key = _notice_key(session.id)
        await self._redis.set(key, self._seal.seal(msgspec.msgpack.encode(notice), key.encode()), ex=_NOTICE_FOR_S)

    async def end(self, id_: str) -> None:
        """End a session, if there is one."""
        if looks_like_random_id(id_):
            await self._redis.delete(_key(id_), _notice_key(id_))

    def _open(self, content: bytes | None, key: str) -> bytes | None:
        """Return what we sealed for a key; None where there is nothing, or somebody else's."""
        if content is None:
            return None
        try:
            return self._seal.open(content, key.encode())
        except ForgeryError as error:
            metrics.FORGERIES.labels("session").inc()
            logger.error("a session's record was dropped: %s", error)
            return None


def _key(id_: str) -> str:
    return f"payouts:sealed-session:{hashlib.sha256(id_.encode()).hexdigest()}"


def _notice_key(id_: str) -> str:
    return f"payouts:sealed-notice:{hashlib.sha256(id_.encode()).hexdigest()}"
