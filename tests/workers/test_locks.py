"""The locks that keep workers from piling up on a business row."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import fakeredis
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.local.ports import find_free_port
from core import metrics
from tests.servers import Servers, run_valkey
from workers.locks import BusinessLocks, lock_key


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
def client(server: fakeredis.FakeServer) -> Iterator[redis.Redis]:
    with fakeredis.FakeRedis(server=server) as opened:
        yield opened


def make_locks(client: redis.Redis, *, ttl_s: float = 60, wait_s: float = 60) -> BusinessLocks:
    return BusinessLocks(client, ttl_s=ttl_s, wait_s=wait_s)


def count(name: str, **labels: str) -> float:
    return metrics.WORKER.get_sample_value(name, labels) or 0


def make_ids(count: int) -> set[UUID]:
    return {uuid4() for _ in range(count)}


def test_free_locks_are_taken_at_once_and_given_back(client: redis.Redis) -> None:
    ids = make_ids(5)
    groups = []
    for group in make_locks(client).hold_in_turn(ids):
        groups.append(group)
        assert client.exists(*map(lock_key, ids)) == len(ids)
    assert groups == [ids]
    assert client.keys() == []


def test_no_businesses_are_no_groups(client: redis.Redis) -> None:
    assert list(make_locks(client).hold_in_turn([])) == []


def test_a_business_named_twice_is_locked_once(client: redis.Redis) -> None:
    id_ = uuid4()
    assert list(make_locks(client).hold_in_turn([id_, id_])) == [{id_}]


def test_held_locks_end_by_themselves(client: redis.Redis) -> None:
    ids = make_ids(3)
    for _ in make_locks(client, ttl_s=2.5).hold_in_turn(ids):
        assert all(1500 < int(client.pttl(lock_key(id_))) <= 2500 for id_ in ids)


def test_free_ones_go_first_and_the_others_follow(client: redis.Redis) -> None:
    free, held = make_ids(2), make_ids(2)
    for id_ in held:
        client.set(lock_key(id_), "another's")
    groups = []
    for group in make_locks(client).hold_in_turn(free | held):
        groups.append(group)
        if len(groups) == 1:
            client.delete(*map(lock_key, held))
        else:
            assert client.exists(*map(lock_key, free)) == 0  # given back before the others are taken
    assert groups == [free, held]
    assert [key for key in client.scan_iter() if "wanted" not in str(key)] == []


def test_locks_that_come_free_one_by_one_are_taken_one_by_one(client: redis.Redis) -> None:
    ids = sorted(make_ids(3))
    for id_ in ids[1:]:
        client.set(lock_key(id_), "another's")
    groups = []
    for group in make_locks(client).hold_in_turn(ids):
        groups.append(group)
        if len(groups) < 3:
            client.delete(lock_key(ids[len(groups)]))
    assert groups == [{id_} for id_ in ids]


def test_lock_that_became_anothers_is_left_to_them(client: redis.Redis) -> None:
    kept, lost = uuid4(), uuid4()
    for _ in make_locks(client).hold_in_turn([kept, lost]):
        client.set(lock_key(lost), "another's")
    assert client.get(lock_key(lost)) == b"another's"
    assert client.exists(lock_key(kept)) == 0


def test_error_in_the_middle_gives_the_locks_back(client: redis.Redis) -> None:
    def fail() -> None:
        for _ in make_locks(client).hold_in_turn(make_ids(2)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert client.keys() == []


def test_lock_held_for_too_long_is_done_without(client: redis.Redis) -> None:
    free, held = uuid4(), uuid4()
    client.set(lock_key(held), "another's")
    before = [count("payouts_unlocked_total", reason="timeout"), count("payouts_lock_waits_total")]
    locked, waited_s = count("payouts_locked_seconds_count"), count("payouts_locked_seconds_sum")
    groups = list(make_locks(client, wait_s=0.05).hold_in_turn([free, held]))
    assert groups == [{free}, {held}]
    after = [count("payouts_unlocked_total", reason="timeout"), count("payouts_lock_waits_total")]
    assert after == [before[0] + 1, before[1] + 1]
    assert count("payouts_locked_seconds_count") == locked + 2
    assert count("payouts_locked_seconds_sum") - waited_s >= 0.05 - 0.01
    assert client.get(lock_key(held)) == b"another's"


def test_lock_of_a_dead_worker_is_waited_for(client: redis.Redis) -> None:
    id_ = uuid4()
    client.set(lock_key(id_), "the dead one's", px=50)
    for group in make_locks(client).hold_in_turn([id_]):
        assert group == {id_}
        assert client.get(lock_key(id_)) not in {None, b"the dead one's"}


@pytest.mark.parametrize("wait_s", [0.01, 60])
def test_unreachable_redis_is_done_without(wait_s: float, caplog: pytest.LogCaptureFixture) -> None:
    ids = make_ids(3)
    before = count("payouts_unlocked_total", reason="redis")
    with redis.Redis(port=find_free_port(), retry=Retry(NoBackoff(), 0)) as closed:
        assert list(make_locks(closed, wait_s=wait_s).hold_in_turn(ids)) == [ids]
    assert count("payouts_unlocked_total", reason="redis") == before + 1
    assert caplog.messages == ["going on without Redis locks: ConnectionError"]


def test_redis_that_goes_away_while_locks_are_held_changes_nothing(
    client: redis.Redis, server: fakeredis.FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    ids = make_ids(2)
    groups = []
    for group in make_locks(client).hold_in_turn(ids):
        groups.append(group)
        server.connected = False
    assert groups == [ids]
    assert caplog.messages == ["Redis locks are left to end by themselves: ConnectionError"]


def test_redis_that_goes_away_before_the_others_come_is_done_without(
    client: redis.Redis, server: fakeredis.FakeServer
) -> None:
    free, held = uuid4(), uuid4()
    client.set(lock_key(held), "another's")
    groups = []
    for group in make_locks(client).hold_in_turn([free, held]):
        groups.append(group)
        server.connected = False
    assert groups == [{free}, {held}]


def test_a_business_is_in_the_hands_of_one_thread_at_a_time(servers: Servers) -> None:
    ids = sorted(make_ids(6))
    in_hand: dict[UUID, int] = dict.fromkeys(ids, 0)
    guard = threading.Lock()
    clashes: list[UUID] = []

    def work(number: int) -> int:
        mine = {ids[(number + step) % 6] for step in range(3)}
        seen: list[UUID] = []
        with redis.Redis.from_url(servers.redis_url) as own:
            for group in make_locks(own).hold_in_turn(mine):
                with guard:
                    clashes.extend(id_ for id_ in group if in_hand[id_])
                    in_hand.update(dict.fromkeys(group, 1))
                time.sleep(0.002)
                with guard:
                    in_hand.update(dict.fromkeys(group, 0))
                seen.extend(group)
        assert sorted(seen) == sorted(mine)
        return len(seen)

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(48))) == 48 * 3
    assert clashes == []


def test_lock_asked_for_again_after_a_late_answer_is_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    """A client sends its request again where no answer comes in time; the first one may be carried out all the same."""
    with run_valkey() as valkey, redis.Redis.from_url(valkey.url) as control:
        client = redis.Redis.from_url(valkey.url, socket_timeout=0.5, retry=Retry(NoBackoff(), 1))
        locks = make_locks(client, ttl_s=2.5, wait_s=1)
        id_ = uuid4()
        control.execute_command("CLIENT", "PAUSE", 700, "ALL")
        for expected_s in (1.0, 0.2, 0.2):
            began_at = time.monotonic()
            assert list(locks.hold_in_turn([id_])) == [{id_}]
            assert time.monotonic() - began_at < expected_s
        assert control.exists(lock_key(id_), f"{lock_key(id_)}:wanted") == 0
        client.close()
    assert caplog.messages == []


def test_lock_taken_after_the_caller_went_on_without_is_ones_own() -> None:
    """A server that stood still carries out what it finds in its sockets, whoever has given up."""
    with run_valkey() as valkey, redis.Redis.from_url(valkey.url) as control:
        client = redis.Redis.from_url(valkey.url, socket_timeout=0.1, retry=Retry(NoBackoff(), 0))
        locks = make_locks(client, ttl_s=60, wait_s=5)
        id_ = uuid4()
        list(locks.hold_in_turn([uuid4()]))  # from now on, the server knows the script
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            assert list(locks.hold_in_turn([id_])) == [{id_}]  # without the lock
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        give_up_at = time.monotonic() + 10
        while control.exists(lock_key(id_)) == 0:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        began_at = time.monotonic()
        assert list(locks.hold_in_turn([id_])) == [{id_}]
        assert time.monotonic() - began_at < 1
        assert control.exists(lock_key(id_)) == 0
        client.close()


def test_threads_of_one_process_do_not_hold_each_other_s_locks(client: redis.Redis) -> None:
    locks, id_ = make_locks(client, wait_s=0.05), uuid4()
    before = count("payouts_unlocked_total", reason="timeout")
    for _ in locks.hold_in_turn([id_]):
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(lambda: list(locks.hold_in_turn([id_]))).result() == [{id_}]
        assert client.exists(lock_key(id_)) == 1
    assert count("payouts_unlocked_total", reason="timeout") == before + 1


def test_wait_for_a_lock_may_be_none_at_all(client: redis.Redis) -> None:
    id_ = uuid4()
    client.set(lock_key(id_), "another's")
    began_at = time.monotonic()
    assert list(make_locks(client, wait_s=60).hold_in_turn([id_], wait_s=0)) == [{id_}]
    assert time.monotonic() - began_at < 1
