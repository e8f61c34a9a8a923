"""Records in doubt in Redis and in files: the loss of either loses nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from api.local.valkey import EmbeddedValkey
from core.ids import new_id
from core.in_doubt.files import RecordFiles
from core.in_doubt.records import Doubt, InDoubt, RecordCodec
from tests.core.builders import HASH_SECRET
from workers.in_doubt import RECORDS_KEY, InDoubtRecords, NotRecordedError

CODEC = RecordCodec(HASH_SECRET)


def make_record() -> InDoubt:
    return InDoubt(Doubt.CALL_FAILED, new_id(), new_id(), 1)


def open_on(valkey: EmbeddedValkey, state_dir: Path) -> InDoubtRecords:
    """Open them as a process of a host does."""
    client = redis.Redis.from_url(valkey.url, socket_timeout=1)
    return InDoubtRecords(client, RecordFiles(state_dir, CODEC), CODEC)


@pytest.fixture
def client(valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as opened:
        yield opened


def test_another_host_finds_records_in_redis(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    record = make_record()
    open_on(valkey, tmp_path / "one").add([record])
    assert open_on(valkey, tmp_path / "two").read() == [record]


def test_same_host_finds_records_after_redis_lost_them_and_puts_them_back(
    valkey: EmbeddedValkey, tmp_path: Path, client: redis.Redis
) -> None:
    record = make_record()
    open_on(valkey, tmp_path).add([record])
    client.flushall()
    assert open_on(valkey, tmp_path).read() == [record]
    assert client.hlen(RECORDS_KEY) == 1


def test_record_is_kept_in_files_while_redis_is_gone(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    record = make_record()
    records = open_on(valkey, tmp_path)
    valkey.stop()
    records.add([record])
    other = open_on(valkey, tmp_path)
    assert other.read() == [record]
    assert len(other.problems) == 1
    assert "Redis" in other.problems[0]


def test_record_is_kept_in_redis_where_the_folder_cannot_be_written(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    record = make_record()
    open_on(valkey, tmp_path / "state").add([record])
    assert open_on(valkey, tmp_path / "other").read() == [record]


def test_record_that_is_kept_nowhere_is_told_and_tried_again(
    valkey: EmbeddedValkey, tmp_path: Path, client: redis.Redis
) -> None:
    (tmp_path / "state").write_text("no folder")
    record = make_record()
    records = InDoubtRecords(redis.Redis(port=1), RecordFiles(tmp_path / "state", CODEC), CODEC)
    with pytest.raises(NotRecordedError):
        records.add([record])
    assert records.own == [record]
    records._client = client
    assert records.read() == [record]
    assert client.hlen(RECORDS_KEY) == 1


def test_what_is_discarded_is_gone_everywhere(valkey: EmbeddedValkey, tmp_path: Path, client: redis.Redis) -> None:
    first, second = make_record(), make_record()
    records = open_on(valkey, tmp_path)
    records.add([first, second])
    records.discard([first])
    assert records.read() == open_on(valkey, tmp_path / "another host").read() == [second]
    records.discard([second])
    assert open_on(valkey, tmp_path).read() == []
    assert client.hlen(RECORDS_KEY) == 0


def test_forged_record_is_ignored(valkey: EmbeddedValkey, tmp_path: Path, client: redis.Redis) -> None:
    forged = make_record()
    client.hset(RECORDS_KEY, forged.id.hex, RecordCodec(b"quite another secret, long enough").seal(forged))
    client.hset(RECORDS_KEY, new_id().hex, b"\xff")
    assert open_on(valkey, tmp_path).read() == []


def test_redis_holds_nothing_readable(valkey: EmbeddedValkey, tmp_path: Path, client: redis.Redis) -> None:
    record = make_record()
    open_on(valkey, tmp_path).add([record])
    [sealed] = client.hgetall(RECORDS_KEY).values()
    assert record.business_id.hex.encode() not in sealed
    assert record.business_id.bytes not in sealed
