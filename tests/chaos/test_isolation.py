"""What happens to one business's rows keeps nobody else waiting, with the settings that everybody has."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from tests.chaos.cluster import Cluster, run_cluster
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import Answer, call
from tests.chaos.load import Connection as Client
from tests.servers import Account

OTHERS_WAIT_MAX_S = 1.5
CALLERS_OF_EACH = 2

BUSINESS_ROW = "SELECT FROM businesses WHERE id = :id FOR UPDATE"
USER_ROW = "SELECT FROM payout_users WHERE business_id = :id FOR UPDATE"


@contextmanager
def somebody_holding(cluster: Cluster, statement: str, account: Account) -> Iterator[Callable[[], None]]:
    """Hold rows of a business, as a session of psql does that somebody forgot; gives what ends it earlier."""
    with cluster.database.engine.connect() as connection:
        connection.execute(sa.text(statement), {"id": account.business.id})
        yield connection.rollback


async def keep_calling(
    cluster: Cluster, account: Account, email: str, until: float, *, web: str = "web-1", pause_s: float = 0.02
) -> list[Answer]:
    client = Client()
    answers: list[Answer] = []
    while time.monotonic() < until:
        amount = len(answers) + 1
        answers.append(await call(client, account, web, cluster.ports[web], email, amount))
        await asyncio.sleep(pause_s)
    client.close()
    return answers


async def call_once(cluster: Cluster, account: Account, email: str) -> Answer:
    client = Client()
    try:
        return await call(client, account, "web-1", cluster.ports["web-1"], email, 1)
    finally:
        client.close()


async def call_at_all(
    cluster: Cluster, held: Account, others: list[Account], *, held_callers: int, seconds: float
) -> tuple[list[Answer], list[Answer]]:
    """Return the answers of the business whose rows are held, and those of the others."""
    until = time.monotonic() + seconds
    of_held = [
        keep_calling(cluster, held, f"held.{n}@example.com", until, web=web, pause_s=0.5)
        for web in cluster.ports
        for n in range(held_callers)
    ]
    of_others = [
        keep_calling(cluster, account, f"free.{web}.{n}@example.com", until, web=web)
        for account in others
        for web in cluster.ports
        for n in range(CALLERS_OF_EACH)
    ]
    found = await asyncio.gather(*of_held, *of_others)
    flat = [
        [answer for answers in part for answer in answers] for part in (found[: len(of_held)], found[len(of_held) :])
    ]
    return flat[0], flat[1]


def assert_others_went_on(answers: list[Answer]) -> None:
    assert {answer.status for answer in answers} == {201}
    assert max(answer.seconds for answer in answers) < OTHERS_WAIT_MAX_S
    assert len(answers) > 100


@pytest.mark.overlap(seconds=30)
@pytest.mark.parametrize(("workers", "webs"), [(1, 1), (2, 2)])
def test_business_whose_row_somebody_holds_keeps_no_other_waiting(workers: int, webs: int) -> None:
    """One call goes to it; the row is free again after its deadline, and nothing was paid."""
    with run_cluster(workers=workers, webs=webs) as cluster:
        held, *others = [cluster.open_account(name) for name in "ABC"]
        with somebody_holding(cluster, BUSINESS_ROW, held):
            of_held, of_others = asyncio.run(call_once_at_held(cluster, held, others))
        assert [answer.status for answer in of_held] == [500]
        assert_others_went_on(of_others)
        assert_history_is_what_clients_were_told(cluster, [*of_held, *of_others])


async def call_once_at_held(
    cluster: Cluster, held: Account, others: list[Account]
) -> tuple[list[Answer], list[Answer]]:
    once = asyncio.create_task(call_once(cluster, held, "held@example.com"))
    _, of_others = await call_at_all(cluster, held, others, held_callers=0, seconds=8)
    return [await once], of_others


@pytest.mark.overlap(seconds=40)
@pytest.mark.parametrize(("workers", "webs"), [(1, 1), (2, 2)])
def test_callers_at_a_held_business_keep_no_other_waiting(workers: int, webs: int) -> None:
    """Two callers at it for 14 seconds, at each API process."""
    with run_cluster(workers=workers, webs=webs) as cluster:
        held, *others = [cluster.open_account(name) for name in "ABC"]
        with somebody_holding(cluster, BUSINESS_ROW, held):
            of_held, of_others = asyncio.run(call_at_all(cluster, held, others, held_callers=2, seconds=14))
        assert {answer.status for answer in of_held} == {500}
        assert_others_went_on(of_others)
        assert_history_is_what_clients_were_told(cluster, [*of_held, *of_others])


@pytest.mark.overlap(seconds=20)
def test_user_s_row_that_somebody_holds_keeps_no_other_business_waiting() -> None:
    with run_cluster(workers=1) as cluster:
        held, *others = [cluster.open_account(name) for name in "ABC"]
        first, _ = asyncio.run(call_at_all(cluster, held, [], held_callers=2, seconds=0.5))
        assert {answer.status for answer in first} == {201}
        with somebody_holding(cluster, USER_ROW, held):
            of_held, of_others = asyncio.run(call_at_all(cluster, held, others, held_callers=2, seconds=8))
        assert {answer.status for answer in of_held} == {500}
        assert_others_went_on(of_others)


@pytest.mark.overlap(seconds=15)
def test_calls_at_a_held_business_are_paid_soon_after_its_row_is_free() -> None:
    with run_cluster(workers=1) as cluster:
        account = cluster.open_account()

        async def call_and_free(free: Callable[[], None]) -> tuple[list[Answer], float]:
            calls = [asyncio.create_task(call_once(cluster, account, f"{n}@example.com")) for n in range(20)]
            await asyncio.sleep(3)
            freed_at = time.monotonic()
            free()
            return list(await asyncio.gather(*calls)), freed_at

        with somebody_holding(cluster, BUSINESS_ROW, account) as free:
            answers, freed_at = asyncio.run(call_and_free(free))
        assert {answer.status for answer in answers} == {201}
        assert max(answer.ended_at for answer in answers) - freed_at < 1.5
        assert_history_is_what_clients_were_told(cluster, answers)
