"""Far more callers come at once than may wait."""

import json
import resource
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import psutil

from tests.chaos.cluster import run_cluster
from tests.chaos.history import assert_history_is_what_clients_were_told
from tests.chaos.load import Answer, steady_load, unexpected
from tests.servers import Account

CALLS = 20_000
SPARE_FILES = 500
RSS_GROWTH_MAX_BYTES = 600_000_000
"""30 kB for each caller, the connections included: nothing is kept beyond that."""
_DONE_WITHIN_S = 60.0


@contextmanager
def all_files_that_the_system_allows() -> Iterator[int]:
    """Give how many files one process may open; what is started meanwhile may open as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, CALLS + SPARE_FILES)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (OSError, ValueError):
        wanted = hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, wanted))


@dataclass
class Caller:
    """One connection, with the calls that it makes one after another."""

    calls: list[tuple[str, int]]
    started_at: float = 0
    received: bytearray = field(default_factory=bytearray)


def request(account: Account, email: str, amount: int) -> bytes:
    body = json.dumps({"email": email, "amount": amount})
    return (
        f"POST /payout/create HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {account.secret_key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def call_all_at_once(port: int, account: Account, connections: int) -> list[Answer]:
    """Connect all callers, then send every request, then collect the answers."""
    callers = [Caller([]) for _ in range(connections)]
    for number in range(CALLS):
        callers[number % connections].calls.append((f"many.{number}@example.com", 1 + number % 97))
    answers: list[Answer] = []
    with selectors.DefaultSelector() as selector:
        for caller in callers:
            connection = socket.create_connection(("127.0.0.1", port), timeout=_DONE_WITHIN_S)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, caller)
        for key in list(selector.get_map().values()):
            send(key, account)
        give_up_at = time.monotonic() + _DONE_WITHIN_S
        while len(answers) < CALLS and time.monotonic() < give_up_at:
            for key, _ in selector.select(1):
                answer = receive(key, account)
                if answer is None:
                    continue
                answers.append(answer)
                if key.data.calls:
                    send(key, account)
        for key in list(selector.get_map().values()):
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
    return answers


def send(key: selectors.SelectorKey, account: Account) -> None:
    connection, caller = key.fileobj, key.data
    assert isinstance(connection, socket.socket)
    assert isinstance(caller, Caller)
    caller.started_at = time.monotonic()
    connection.send(request(account, *caller.calls[0]))


def receive(key: selectors.SelectorKey, account: Account) -> Answer | None:
    """Read what has come; return the answer once it is whole."""
    connection, caller = key.fileobj, key.data
    assert isinstance(connection, socket.socket)
    assert isinstance(caller, Caller)
    data = connection.recv(65_536)
    assert data, "a connection was closed without an answer"
    caller.received += data
    head, separator, body = bytes(caller.received).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    if not separator or len(body) < int(headers["content-length"]):
        return None
    email, amount = caller.calls.pop(0)
    caller.received.clear()
    times = caller.started_at, time.monotonic()
    return Answer(
        account.business.id, email, amount, None, "web-1", *times, int(lines[0].split()[1]), json.loads(body), headers
    )


@contextmanager
def peak_rss(pid: int) -> Iterator[list[int]]:
    """Give the process's memory before, and at the end its greatest, in bytes."""
    process = psutil.Process(pid)
    measured = [process.memory_info().rss]
    stopping = threading.Event()

    def measure() -> None:
        while not stopping.wait(0.1):
            measured.append(process.memory_info().rss)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield measured
    finally:
        stopping.set()
        thread.join()


def test_twenty_thousand_calls_at_once_are_paid_or_told_to_come_back() -> None:
    with ExitStack() as stack:
        files = stack.enter_context(all_files_that_the_system_allows())
        connections = min(CALLS, files - SPARE_FILES)
        # Half of those who can be there at once; for all 20,000, that is the default.
        cluster = stack.enter_context(run_cluster(waiting_max=str(min(5_000, connections // 2))))
        account = cluster.open_account()
        web = cluster.processes["web-1"]
        with peak_rss(web.pid) as rss:
            answers = call_all_at_once(cluster.ports["web-1"], account, connections)
        told = Counter(answer.status for answer in answers)
        print(told, f"memory {rss[0] / 1e6:.0f} MB, then {max(rss) / 1e6:.0f} MB")
        assert told.total() == CALLS
        assert set(told) <= {201, 429}
        for answer in answers:
            if answer.status == 429:
                assert answer.body == {"error": "Too many requests"}
                assert int(answer.headers["retry-after"]) >= 1
        assert told[429] > 0, "there were too few callers"
        assert max(rss) - rss[0] <= RSS_GROWTH_MAX_BYTES
        with steady_load(cluster) as load:
            load.wait_for_answers(100)
        assert not unexpected(load, {201})
        assert_history_is_what_clients_were_told(cluster, answers + load.answers)
