"""Where records in doubt are kept: in Redis for every process of the installation, and in files of this machine."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from uuid import UUID

import redis

from core.in_doubt.files import RecordFiles, StateFolderError
from core.in_doubt.records import InDoubt, RecordCodec
from core.settings.loader import Settings
from workers.servers import open_redis

logger = logging.getLogger(__name__)

RECORDS_KEY = "payouts:in-doubt"
"""A hash in Redis: sealed records by their ids."""


def open_records(settings: Settings) -> "InDoubtRecords":
    """Make what the settings say. Nothing connects yet."""
    codec = RecordCodec(settings.hash_secret_bytes)
    # One attempt: a caller waits for it, and the files hold the records as well.
    return InDoubtRecords(open_redis(settings, retries=0), RecordFiles(Path(settings.state_dir), codec), codec)


class NotRecordedError(Exception):
    """Neither Redis nor the state folder took the records."""


class InDoubtRecords:
    """Keeps each record in both places, so that the loss of either loses nothing. Safe to use from several threads."""

    def __init__(self, client: redis.Redis, files: RecordFiles, codec: RecordCodec) -> None:
        self.files = files
        self._client = client
        self._codec = codec
        self._lock = threading.Lock()
        self._own: dict[UUID, InDoubt] = {}
        self.problems: list[str] = []
        """Of the last reading."""

    def add(self, records: Sequence[InDoubt]) -> None:
        """Keep records outside this process.

        Raises:
            NotRecordedError: that cannot be done; they are kept in this process alone.

        """
        with self._lock:
            self._own.update((record.id, record) for record in records)
        # Both in any case.
        is_in_files = _succeeds("the state folder", lambda: self.files.add(records))
        is_in_redis = _succeeds("Redis", lambda: self._write(records))
        if not (is_in_files or is_in_redis):
            raise NotRecordedError

    def read(self) -> list[InDoubt]:
        """Return all records that can be found, and see to it that all processes find them: in Redis.

        `problems` then says where could not be looked.
        """
        problems: list[str] = []
        with self._lock:
            known = dict(self._own)
        try:
            known |= {record.id: record for record in self.files.read()}
        except OSError as error:
            problems.append(f"the state folder cannot be read: {error.strerror or type(error).__name__}")
        try:
            in_redis = self._read()
            missing = [record for id_, record in known.items() if id_ not in in_redis]
            if missing:
                self._write(missing)
            known |= in_redis
        except redis.RedisError as error:
            problems.append(f"Redis cannot be read: {type(error).__name__}")
        self.problems = problems
        return list(known.values())

    def discard(self, records: Sequence[InDoubt]) -> None:
        """Forget what is finished; where that fails, it is finished again, which does no harm."""
        with self._lock:
            for record in records:
                self._own.pop(record.id, None)
        _succeeds("the state folder", lambda: self.files.discard(records))
        _succeeds("Redis", lambda: self._remove(records))

    def close(self) -> None:
        """Close the connection to Redis."""
        self._client.close()

    def warn_where_unwritable(self) -> None:
        """Say in the log where the state folder cannot be written; all goes on."""
        try:
            self.files.check()
        except StateFolderError as error:
            text = "%s; what is answered 500 in doubt is recorded in Redis alone, and lost where Redis loses it"
            logger.warning(text, error)

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
