"""The recent requests of a business: what is noted on a running API, and what is kept while Redis is away."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
import redis

from api.local.valkey import EmbeddedValkey
from api.web.recent_requests import SHOWN_MAX, RecentRequest, RecentRequests
from api.web.request_log import RequestNote
from core.settings.loader import Settings, load_settings
from tests.servers import HASH_SECRET, Account, System, open_account

PATH = "/payout/create"


def settings_for(redis_url: str) -> Settings:
    return load_settings(
        {
            "PAYOUTS_DATABASE_URL": "postgresql://nowhere",
            "PAYOUTS_REDIS_URL": redis_url,
            "PAYOUTS_HASH_SECRET": HASH_SECRET,
        }
    )


def note(recent: RecentRequests, business_id: UUID | None, *, request_id: str = "", path: str = PATH) -> None:
    recent.note(RequestNote(request_id, None, 0.001, time.time(), "POST", path, None, 201, business_id))


def read_shown(system: System, business_id: UUID, count: int) -> list[RecentRequest]:
    """Return what is shown once `count` requests are."""

    async def read() -> list[RecentRequest]:
        recent = RecentRequests(settings_for(system.environment["PAYOUTS_REDIS_URL"]))
        for _ in range(100):
            shown = await recent.read(business_id)
            if shown is not None and len(shown) >= count:
                break
            await asyncio.sleep(0.1)
        await recent.close()
        assert shown is not None
        return shown

    return asyncio.run(read())


def test_requests_of_every_kind_are_shown_newest_first(system: System, client: httpx.Client, account: Account) -> None:
    secret = {"note": "not for others"}
    for id_ in ("first", "second"):
        headers = account.headers | {"X-Request-Id": id_}
        body = {"email": "someone@example.com", "amount": 5} | secret
        assert client.post(PATH, json=body, headers=headers).status_code == 201
    assert client.post(PATH, json={}, headers=account.headers).status_code == 400
    listed = client.get("/payout/users?email=someone@example.com", headers=account.headers)
    assert listed.status_code == 200
    missing = client.get(f"/payout/users/usr_{uuid4().hex}", headers=account.headers)
    shown = read_shown(system, account.business.id, 5)
    assert [(each.method, each.path, each.status) for each in shown] == [
        ("GET", missing.request.url.path, 404),
        ("GET", "/payout/users", 200),
        ("POST", PATH, 400),
        ("POST", PATH, 201),
        ("POST", PATH, 201),
    ]
    assert [each.request_id for each in shown[3:]] == ["second", "first"]
    assert shown[1].request_id == listed.headers["X-Request-Id"]
    assert all(0 < each.latency_ms < 60_000 and abs(each.at - time.time()) < 60 for each in shown)
    kept = msgspec.json.encode(shown)
    assert b"someone" not in kept
    assert b"not for others" not in kept
    assert account.secret_key.encode() not in kept


def test_nobody_sees_the_requests_of_others(system: System, client: httpx.Client, account: Account) -> None:
    other = open_account(system.database)
    client.post(PATH, json={}, headers={"Authorization": "Bearer " + account.secret_key[:-1] + "?"})
    client.get("/balance", headers=other.headers)
    assert [each.path for each in read_shown(system, other.business.id, 1)] == ["/balance"]
    assert read_shown(system, account.business.id, 0) == []


@pytest.fixture
def recent(valkey: EmbeddedValkey) -> Iterator[tuple[RecentRequests, asyncio.Runner, redis.Redis]]:
    with asyncio.Runner() as runner, redis.Redis.from_url(valkey.url) as client:
        opened = RecentRequests(settings_for(valkey.url))
        yield opened, runner, client
        runner.run(opened.close())


def count_scripts(client: redis.Redis) -> int:
    """Return how often the script was called that sends entries; the first call only finds that it is missing."""
    calls: dict[str, Any] = client.info("commandstats")["cmdstat_evalsha"]
    return int(calls["calls"]) - int(calls["failed_calls"])


def test_only_the_last_ones_are_sent_and_kept(
    recent: tuple[RecentRequests, asyncio.Runner, redis.Redis],
) -> None:
    opened, runner, client = recent
    business_id = uuid4()

    async def work() -> list[RecentRequest] | None:
        for first in (0, 1000):
            for position in range(first, first + 1000):
                note(opened, business_id, request_id=str(position))
            await opened.flush()
        note(opened, business_id, request_id="2000")
        note(opened, None)
        await opened.flush()
        return await opened.read(business_id)

    shown = runner.run(work())
    assert shown is not None
    assert [each.request_id for each in shown] == [str(position) for position in range(2000, 1900, -1)]
    (key,) = client.keys()
    assert client.llen(key) == SHOWN_MAX
    assert client.ttl(key) > 0
    assert count_scripts(client) == 3  # however many requests there were


def test_many_businesses_are_sent_in_few_round_trips(
    recent: tuple[RecentRequests, asyncio.Runner, redis.Redis],
) -> None:
    opened, runner, client = recent
    business_ids = [uuid4() for _ in range(250)]

    async def work() -> None:
        for business_id in business_ids:
            note(opened, business_id)
        await opened.flush()

    runner.run(work())
    assert client.dbsize() == len(business_ids)
    assert count_scripts(client) == 3


def test_a_long_path_is_cut(recent: tuple[RecentRequests, asyncio.Runner, redis.Redis]) -> None:
    opened, runner, _ = recent
    business_id = uuid4()

    async def work() -> list[RecentRequest] | None:
        note(opened, business_id, path="/" + "x" * 60_000)
        await opened.flush()
        return await opened.read(business_id)

    shown = runner.run(work())
    assert shown is not None
    assert len(shown[0].path) == 200


def test_without_redis_entries_are_dropped_and_the_next_ones_kept(
    valkey: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    business_id = uuid4()
    with asyncio.Runner() as runner:
        opened = RecentRequests(settings_for(valkey.url))
        valkey.stop()

        async def work_without() -> None:
            for _ in range(3):
                note(opened, business_id, request_id="lost")
                await opened.flush()

        runner.run(work_without())
        assert runner.run(opened.read(business_id)) is None
        assert [record.getMessage() for record in caplog.records] == [
            "recent requests are not kept for now: ConnectionError"
        ]
        valkey.start()

        async def work_with() -> list[RecentRequest] | None:
            note(opened, business_id, request_id="kept")
            await opened.flush()
            return await opened.read(business_id)

        shown = runner.run(work_with())
        assert shown is not None
        assert [each.request_id for each in shown] == ["kept"]
        runner.run(opened.close())
