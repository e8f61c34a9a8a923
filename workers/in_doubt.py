"""Where records in doubt are kept: in Redis for every process of the installation, and in files of this machine."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

import redis

from core.in_doubt.files import RecordFiles
from core.in_doubt.records import InDoubt, RecordCodec

logger = logging.getLogger(__name__)

RECORDS_KEY = "payouts:in-doubt"
"""A hash in Redis: sealed records by their ids."""


class NotRecordedError(Exception):
    """Neither Redis nor the state folder took the records."""


class InDoubtRecords:
    """Keeps each record in both places, so that the loss of either loses nothing. Safe to use from several threads."""

    def __init__(self, client: redis.Redis, files: RecordFiles, codec: RecordCodec) -> None:
        self._client = client
        self._files = files
        self._codec = codec
        self._lock = threading.Lock()
        self._own: dict[UUID, InDoubt] = {}

    def add(self, records: Sequence[InDoubt]) -> None:
        """Keep records outside this process.

        Raises:
            NotRecordedError: that cannot be done; they are kept in this process alone.

        """
        with self._lock:
            self._own.update((record.id, record) for record in records)
        # Both in any case.
        is_in_files = _succeeds("the state folder", lambda: self._files.add(records))
        is_in_redis = _succeeds("Redis", lambda: self._write(records))
        if not (is_in_files or is_in_redis):
            raise NotRecordedError

    def read(self) -> list[InDoubt]:
        """Return all records that can be found, and see to it that they are in Redis, where every process finds them."""
        with self._lock:
            known = dict(self._own)
        try:
            known |= {record.id: record for record in self._files.read()}
        except OSError as error:
            logger.warning("the state folder cannot be read: %s", type(error).__name__)
        try:
            in_redis = self._read()
            missing = [record for id_, record in known.items() if id_ not in in_redis]
            if missing:
                self._write(missing)
            known |= in_redis
        except redis.RedisError as error:
            logger.warning("records in doubt cannot be read from Redis: %s", type(error).__name__)
        return list(known.values())

    def discard(self, records: Sequence[InDoubt]) -> None:
        """Forget what is finished; where that fails, it is finished again, which does no harm."""
        with self._lock:
            for record in records:
                self._own.pop(record.id, None)
        _succeeds("the state folder", lambda: self._files.discard(records))
        _succeeds("Redis", lambda: self._remove(records))

    @property
    def own(self) -> list[InDoubt]:
        """What this process recorded, and nobody finished as far as it knows."""
        with self._lock:
            return list(self._own.values())

    def _read(self) -> dict[UUID, InDoubt]:
        sealed: dict[bytes, bytes] = self._client.hgetall(RECORDS_KEY)  # type: ignore[assignment]
        opened = (self._codec.open(value.decode("ascii", errors="replace")) for value in sealed.values())
        return {record.id: record for record in opened if record is not None}

    def _write(self, records: Iterable[InDoubt]) -> None:
        self._client.hset(RECORDS_KEY, mapping={record.id.hex: self._codec.seal(record) for record in records})

    def _remove(self, records: Sequence[InDoubt]) -> None:
        self._client.hdel(RECORDS_KEY, *(record.id.hex for record in records))


def _succeeds(place: str, action: Callable[[], object]) -> bool:
    try:
        action()
    except (OSError, redis.RedisError) as error:
        logger.error("records in doubt could not be changed in %s: %s", place, type(error).__name__)
        return False
    return True
