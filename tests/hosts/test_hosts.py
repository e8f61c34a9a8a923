"""Two API hosts and two worker hosts, on one PostgreSQL and one Valkey: each host may be cut off."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
import pytest
import sqlalchemy as sa

from core.ids import IdKind, format_id
from tests.chaos.cluster import Cluster, run_cluster
from tests.chaos.faults import rows_held
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import Load, steady_load, unexpected
from tests.chaos.proxy import proxied_postgres_url, proxied_valkey_url, proxy_postgres, proxy_valkey
from tests.hosts.network import Network, run_network
from tests.polling import wait_until
from tests.servers import ROOT, Account, verify_books

pytestmark = pytest.mark.timeout(180)

HOSTS = ("api-1", "api-2", "work-1", "work-2")
CUT_S = {"api": 7.0, "work": 4.0}
"""An API host misses the deadlines of its calls; a worker host, any number of batches."""
_BACK_TO_NORMAL_AFTER_S = 6.0
_WAITING = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
_STALLED_AFTER_S = "1"
_ROWS = 20_000


@dataclass(frozen=True)
class Hosts:
    """The processes, and the network between them."""

    cluster: Cluster
    network: Network
    environment: dict[str, str]
    """The servers' addresses, as the hosts know them."""

    def start(self, name: str, host: str, **settings: str) -> None:
        place = self.network.hosts[host]
        if name.startswith("web-"):
            self.cluster.hosts[name] = place.address
        environment = self.environment | {"PAYOUTS_HOST": place.address} | settings
        self.cluster.start(name, namespace=place.namespace, **environment)

    def client(self, web: str, account: Account) -> httpx.Client:
        host, port = self.cluster.address(web)
        return httpx.Client(base_url=f"http://{host}:{port}", headers=account.headers, timeout=30, trust_env=False)

    def run_payouts(self, host: str, *arguments: str) -> None:
        """Run a command on a host."""
        command = ["ip", "netns", "exec", self.network.hosts[host].namespace, f"{sys.prefix}/bin/payouts", *arguments]
        environment = self.cluster.environment | self.environment
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended


@contextmanager
def run_hosts() -> Iterator[Hosts]:
    with (
        run_network(*HOSTS) as network,
        run_cluster(webs=0, workers=0, batch_stalled_after_s=_STALLED_AFTER_S) as cluster,
        ExitStack() as stack,
    ):
        postgres = stack.enter_context(proxy_postgres(cluster.postgres.url, network.address))
        valkey = stack.enter_context(proxy_valkey(cluster.valkey.url, network.address))
        stack.callback(cluster.end)
        environment = {
            "PAYOUTS_DATABASE_URL": proxied_postgres_url(cluster.postgres.url, postgres),
            "PAYOUTS_REDIS_URL": proxied_valkey_url(cluster.valkey.url, valkey),
        }
        hosts = Hosts(cluster, network, environment)
        try:
            for number in (1, 2):
                hosts.start(f"web-{number}", f"api-{number}")
                hosts.start(f"worker-{number}", f"work-{number}")
            cluster.wait_until_ready()
            yield hosts
        except BaseException as error:
            error.add_note(cluster.logs())
            raise


def test_each_host_is_cut_off_in_turn_and_only_its_own_callers_notice() -> None:
    with run_hosts() as hosts:
        # A refusal of a batch that was sent twice is told at the deadline, so all businesses have money here.
        with steady_load(hosts.cluster, has_poor_business=False) as load:
            load.wait_for_answers(100)
            for host in HOSTS:
                hosts.network.cut(host)
                cut_at = time.monotonic()
                time.sleep(CUT_S[host.partition("-")[0]])
                restored_at = time.monotonic()
                hosts.network.restore(host)
                assert_others_were_not_touched(load, host, cut_at, restored_at)
                calm = load.wait_for_answers(64, since=time.monotonic() + _BACK_TO_NORMAL_AFTER_S, timeout_s=40)
                assert not unexpected(load, {201}, calm)
        assert not unexpected(load, {201, 500, None})
        assert_history_is_what_clients_were_told(hosts.cluster, load.answers)


def assert_others_were_not_touched(load: Load, host: str, cut_at: float, restored_at: float) -> None:
    own = host.replace("api-", "web-")
    answers = [answer for answer in load.answers_since(cut_at) if answer.ended_at < restored_at]
    assert {answer.web for answer in answers} == {"web-1", "web-2"} - {own}
    assert len(answers) > 50
    assert not unexpected(load, {201}, answers)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with run_hosts() as running:
        yield running


def test_call_whose_api_host_was_cut_off_is_replayed_by_the_other(hosts: Hosts) -> None:
    account = hosts.cluster.open_account("replayed", funds_cents=1_000)
    body = {"email": "user@example.com", "amount": 400}
    key = {"Idempotency-Key": "order-1"}
    lost: list[httpx.Response | Exception] = []

    def call() -> None:
        try:
            with hosts.client("web-1", account) as client:
                lost.append(client.post("/payout/create", json=body, headers=key, timeout=4))
        except httpx.TransportError as error:
            lost.append(error)

    with hosts.client("web-1", account) as client:
        assert client.get("/balance").status_code == 200  # so that the host knows the key
    thread = threading.Thread(target=call)
    try:
        with rows_held(hosts.cluster):
            thread.start()
            wait_until(lambda: is_anyone_waiting(hosts.cluster), "a worker waits for the row", 10)
            hosts.network.cut("api-1")
        with hosts.client("web-2", account) as client:
            first, second = (client.post("/payout/create", json=body, headers=key) for _ in range(2))
            assert (first.status_code, second.status_code) == (201, 201), (first, second)
            assert first.headers["Idempotent-Replayed"] == second.headers["Idempotent-Replayed"] == "true"
            assert client.get("/balance").json()["payout_balance"] == 600
        thread.join()
        assert isinstance(lost[0], httpx.TransportError), "the caller of the host that was cut off got an answer"
    finally:
        hosts.network.restore("api-1")
        thread.join()
    hosts.cluster.wait_until_ready(hosts.cluster.processes["web-1"])
    with hosts.client("web-1", account) as client:
        assert client.post("/payout/create", json=body, headers=key).headers["Idempotent-Replayed"] == "true"
        assert client.get("/balance").json()["payout_balance"] == 600


def is_anyone_waiting(cluster: Cluster) -> bool:
    with cluster.server.transaction() as connection:
        return bool(connection.execute(_WAITING).scalar_one())


def test_key_that_is_revoked_on_one_host_is_refused_by_the_other_at_once(hosts: Hosts) -> None:
    account = hosts.cluster.open_account("revoked")
    body = {"email": "user@example.com", "amount": 1}
    with hosts.client("web-1", account) as one, hosts.client("web-2", account) as other:
        assert one.post("/payout/create", json=body).status_code == 201
        assert other.post("/payout/create", json=body).status_code == 201
        hosts.run_payouts("api-1", "key", "revoke", format_id(IdKind.API_KEY, account.api_key_id))
        assert other.post("/payout/create", json=body).status_code == 401
        assert one.post("/payout/create", json=body).status_code == 401


def test_rate_limit_counts_the_calls_of_all_api_hosts_together(hosts: Hosts) -> None:
    account = hosts.cluster.open_account("limited")
    limits = {"PAYOUTS_RATE_LIMIT_PER_S": "1", "PAYOUTS_RATE_LIMIT_BURST": "10"}
    for number in (3, 4):
        hosts.start(f"web-{number}", f"api-{number - 2}", **limits)
    webs = [hosts.cluster.processes[f"web-{number}"] for number in (3, 4)]
    try:
        hosts.cluster.wait_until_ready(*webs)
        with hosts.client("web-3", account) as one, hosts.client("web-4", account) as other:
            began_at = time.monotonic()
            codes = [client.get("/balance").status_code for _ in range(15) for client in (one, other)]
            refilled = int(time.monotonic() - began_at) + 1
            assert 10 <= codes.count(200) <= 10 + refilled
            assert set(codes) == {200, 429}
            assert {one.get("/balance").status_code, other.get("/balance").status_code} <= {200, 429}
    finally:
        for web in webs:
            web.end()


def test_payout_batches_are_worked_off_by_whichever_host_is_left(hosts: Hosts) -> None:
    account = hosts.cluster.open_account("batches")
    for number in (1, 2):
        hosts.start(f"batches-{number}", f"work-{number}")
    hosts.start("beat-1", "api-2")
    hosts.cluster.wait_until_ready(*hosts.cluster.named("batches"))
    rows = [{"email": f"user{number}@example.com", "amount": 1 + number % 9} for number in range(_ROWS)]
    with hosts.client("web-1", account) as one, hosts.client("web-2", account) as other:
        sent = [client.post("/payout/batches", json={"allocations": rows}) for client in (one, other)]
        assert [response.status_code for response in sent] == [202, 202], sent
        places = [response.headers["Location"] for response in sent]
        for host in ("work-1", "work-2"):
            hosts.network.cut(host)
            try:
                for client, place in zip((other, one), places, strict=True):  # each host tells of the other's batch
                    before = client.get(place).json()["processed"]
                    wait_until(
                        lambda: client.get(place).json()["processed"] > min(before, _ROWS - 1),  # noqa: B023
                        f"the batch goes on without {host}",
                        30,
                    )
            finally:
                hosts.network.restore(host)
        wait_until(lambda: all(one.get(place).json()["status"] == "completed" for place in places), "both are paid", 40)
        spent = 2 * sum(1 + number % 9 for number in range(_ROWS))
        assert other.get("/balance").json()["payout_balance"] == account.business.payout_balance - spent
    books = verify_books(hosts.cluster.database)
    assert books.balanced, books.discrepancies
