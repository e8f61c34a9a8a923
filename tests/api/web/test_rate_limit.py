"""How often a key may call: by setting, with headers that say so."""

import re
import time
from collections.abc import Iterator

import httpx
import pytest

from api.local.valkey import EmbeddedValkey
from tests.servers import Account, Servers, System, open_account, run_system

RATE_PER_S = 2
BURST = 5


@pytest.fixture(scope="module")
def limited(servers: Servers) -> Iterator[System]:
    # A queue of its own: the session's worker would otherwise take this system's batches.
    own = Servers(servers.postgres_url, servers.redis_url.removesuffix("/0") + "/7")
    with run_system(own, rate_limit_per_s=str(RATE_PER_S), rate_limit_burst=str(BURST)) as running:
        yield running


@pytest.fixture(scope="module")
def limited_client(limited: System) -> Iterator[httpx.Client]:
    with limited.client() as opened:
        yield opened


@pytest.fixture
def payer(limited: System) -> Account:
    return open_account(limited.database)


def read_rest(response: httpx.Response) -> tuple[int, int]:
    match = re.fullmatch(r'"key";r=([0-9]+);t=([0-9]+)', response.headers["ratelimit"])
    assert match is not None
    return int(match[1]), int(match[2])


def test_without_a_setting_nothing_is_limited(client: httpx.Client, account: Account) -> None:
    answers = [client.get("/balance", headers=account.headers) for _ in range(50)]
    assert {answer.status_code for answer in answers} == {200}
    assert not any("ratelimit" in name for answer in answers for name in answer.headers)


def test_calls_beyond_the_burst_are_429_until_tokens_come_back(limited_client: httpx.Client, payer: Account) -> None:
    answers = [limited_client.get("/balance", headers=payer.headers) for _ in range(BURST + 3)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:BURST] == [200] * BURST
    assert 429 in statuses[BURST:]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json() == {"error": "Too many requests"}
    assert int(refused.headers["retry-after"]) == 1
    time.sleep(int(refused.headers["retry-after"]))
    assert limited_client.get("/balance", headers=payer.headers).status_code == 200


def test_headers_say_what_is_left(limited_client: httpx.Client, payer: Account) -> None:
    answers = [limited_client.get("/balance", headers=payer.headers) for _ in range(3)]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {f'"key";q={BURST};w=3'}
    rests = [read_rest(answer) for answer in answers]
    assert rests[0] == (BURST - 1, 1)
    assert rests[2][0] < rests[0][0]


def test_paying_counts_and_is_limited_like_all_else(
    limited: System, limited_client: httpx.Client, payer: Account
) -> None:
    answers = [limited.pay(limited_client, payer, "user@example.com", 1) for _ in range(BURST + 3)]
    paid = [answer for answer in answers if answer.status_code == 201]
    assert {answer.status_code for answer in answers} == {201, 429}
    assert all(read_rest(answer)[0] <= BURST for answer in answers)
    with limited.database.transaction() as connection:
        moved = connection.exec_driver_sql(
            "SELECT count(*) FROM payout_transactions WHERE business_id = %s AND type = 'allocation'",
            (payer.business.id,),
        ).scalar_one()
    assert moved == len(paid)


def test_each_key_has_a_bucket_of_its_own(limited: System, limited_client: httpx.Client, payer: Account) -> None:
    for _ in range(BURST + 3):
        last = limited_client.get("/balance", headers=payer.headers)
    assert last.status_code == 429
    other = open_account(limited.database)
    assert limited_client.get("/balance", headers=other.headers).status_code == 200


def test_errors_of_a_known_key_have_the_headers_too(limited_client: httpx.Client, payer: Account) -> None:
    assert "ratelimit" in limited_client.post("/payout/create", headers=payer.headers, content=b"[").headers
    assert "ratelimit" in limited_client.get("/payout/users?limit=0", headers=payer.headers).headers
    assert "ratelimit" not in limited_client.get("/balance").headers


def test_calls_pass_while_redis_is_gone(servers: Servers, valkey: EmbeddedValkey) -> None:
    own = Servers(servers.postgres_url, valkey.url)
    with run_system(own, rate_limit_per_s="1", redis_timeout_s="0.2") as running, running.client() as client:
        payer = open_account(running.database)
        assert client.get("/balance", headers=payer.headers).status_code == 200
        valkey.stop()
        answers = [client.get("/balance", headers=payer.headers) for _ in range(5)]
        assert {answer.status_code for answer in answers} == {200}
