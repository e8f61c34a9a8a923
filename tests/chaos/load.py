"""Steady load: 32 clients that record every answer."""

import asyncio
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from uuid import UUID, uuid4

from tests.chaos.cluster import Cluster
from tests.polling import wait_until
from tests.servers import Account

CLIENTS = 32
_GIVE_UP_AFTER_S = 30.0  # far beyond every limit of the service: such an answer is never right
_AGAIN_AFTER_S = 0.1
_REGULARS = 20
INSUFFICIENT = "Insufficient payout balance"

Key = tuple[UUID, str, int]
"""What tells one request from every other: business, e-mail, amount."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client asked, and what it was told. Times are of the monotonic clock."""

    business_id: UUID
    email: str
    amount: int
    idempotency_key: str | None
    web: str
    started_at: float
    ended_at: float
    status: int | None
    """None: the connection broke."""
    body: dict[str, object] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    was_sent: bool = True
    """False: nothing was sent, for the connection was refused."""

    @property
    def key(self) -> Key:
        return (self.business_id, self.email, self.amount)

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at

    @property
    def server_time(self) -> float:
        """The time of the process that answered, in seconds since 1970."""
        return parsedate_to_datetime(self.headers["date"]).timestamp()

    def __repr__(self) -> str:
        """Show what a failed test needs."""
        sent = "" if self.was_sent else ", not sent"
        return f"<{self.status} after {self.seconds:.2f} s by {self.web}{sent}: {self.email} {self.amount}>"


class Connection:
    """A client's HTTP/1.1 connection, kept open: raw, to leave the processor to the system."""

    def __init__(self) -> None:
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._address = ("", 0)

    async def open(self, port: int, host: str = "127.0.0.1") -> None:
        """Connect, unless the connection of before still stands."""
        if self._streams is not None and (self._address != (host, port) or self._streams[0].at_eof()):
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(host, port)
            self._address = (host, port)

    async def post(self, secret_key: str, body: dict[str, object], idempotency_key: str | None) -> None:
        """Send a request."""
        assert self._streams is not None
        data = json.dumps(body).encode()
        lines = [
            "POST /payout/create HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {secret_key}",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
        ]
        if idempotency_key is not None:
            lines.append(f"Idempotency-Key: {idempotency_key}")
        self._streams[1].write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        await self._streams[1].drain()

    async def receive(self) -> tuple[int, dict[str, str], dict[str, object]]:
        """Return status, headers and body of the answer."""
        assert self._streams is not None
        head = (await self._streams[0].readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self._streams[0].readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), headers, json.loads(body)

    def close(self) -> None:
        """Hang up, whatever is under way."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def call(
    connection: Connection,
    account: Account,
    web: str,
    port: int,
    email: str,
    amount: int,
    *,
    key: str | None = None,
    hang_up_after_s: float | None = None,
    host: str = "127.0.0.1",
) -> Answer:
    """Ask for an allocation, and record whatever becomes of it."""
    started_at = time.monotonic()
    status: int | None = None
    headers: dict[str, str] = {}
    body: dict[str, object] = {}
    was_sent = False
    try:
        async with asyncio.timeout(_GIVE_UP_AFTER_S):
            await connection.open(port, host)
            was_sent = True
            await connection.post(account.secret_key, {"email": email, "amount": amount}, key)
            if hang_up_after_s is None:
                status, headers, body = await connection.receive()
            else:
                await asyncio.sleep(hang_up_after_s)
                connection.close()
    except (OSError, EOFError, TimeoutError):
        connection.close()
    ended_at = time.monotonic()
    return Answer(account.business.id, email, amount, key, web, started_at, ended_at, status, body, headers, was_sent)


class Load:
    """Clients on a thread of their own. Which API process each uses, `rotation` says, and may change."""

    def __init__(self, cluster: Cluster, *, think_s: float, has_poor_business: bool, hangs_up: bool) -> None:
        self._cluster = cluster
        self._think_s = think_s
        self._hangs_up = hangs_up
        self.accounts = [cluster.open_account(f"rich {number}") for number in range(3)]
        self.poor: Account | None = None
        if has_poor_business:
            # Runs out of money soon: from then on its calls are refused.
            self.poor = cluster.open_account("poor", funds_cents=50_000)
            self.accounts.append(self.poor)
        self.answers: list[Answer] = []
        self.rotation = [name for name in cluster.ports if name in cluster.processes]
        self.follows_rotation = False
        """Take any API process of the rotation for each request, rather than one for each client."""
        self._domain = f"{uuid4().hex[:8]}.example.com"
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let each client finish the call that it is in."""
        self._stopping.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def answers_since(self, moment: float) -> list[Answer]:
        """Return the answers to calls that began after a moment."""
        return [answer for answer in list(self.answers) if answer.started_at >= moment]

    def wait_for_answers(self, count: int, *, since: float | None = None, timeout_s: float = 30) -> list[Answer]:
        """Wait for the answers to `count` calls that began from now on."""
        moment = time.monotonic() if since is None else since
        wait_until(lambda: len(self.answers_since(moment)) >= count, f"{count} more answers", timeout_s)
        return self.answers_since(moment)

    async def _run(self) -> None:
        clients = [self._be_client(number, hangs_up=False) for number in range(CLIENTS)]
        if self._hangs_up:
            clients += [self._be_client(number, hangs_up=True) for number in range(CLIENTS)]
        try:
            await asyncio.gather(*clients)
        except BaseException as error:  # noqa: BLE001 (raised again by `stop`)
            self.error = error

    async def _be_client(self, number: int, *, hangs_up: bool) -> None:
        connection = Connection()
        chance = random.Random(number)  # noqa: S311 (no secret)
        await asyncio.sleep(chance.random() * self._think_s)
        while not self._stopping.is_set():
            account, email, amount, key = self._think_of_a_call(chance)
            calls = 0
            while True:
                calls += 1
                web = self._choose_web(number, chance)
                hang_up_after_s = chance.random() * 0.03 if hangs_up else None
                host, port = self._cluster.address(web)
                answer = await call(
                    connection, account, web, port, email, amount, key=key, hang_up_after_s=hang_up_after_s, host=host
                )
                self.answers.append(answer)
                if answer.status in {201, 400}:
                    break
                # Only a caller with a key, or one who knows that nothing was sent, may try again.
                is_safe = key is not None or not answer.was_sent
                await asyncio.sleep(_AGAIN_AFTER_S)
                if not is_safe or (answer.was_sent and calls > 1) or self._stopping.is_set():
                    break
            await asyncio.sleep(chance.random() * 2 * self._think_s)
        connection.close()

    def _think_of_a_call(self, chance: random.Random) -> tuple[Account, str, int, str | None]:
        number = next(self._numbers)
        account = self.accounts[number % 3]
        if self.poor is not None and number % 8 == 0:
            account = self.poor
        if number % 5 == 0:  # a regular, known by an amount that nobody else gets
            email, amount = f"regular.{chance.randrange(_REGULARS)}@{self._domain}", number
        else:
            email, amount = f"user.{number}@{self._domain}", chance.randint(1, 5_000)
        key = f"{self._domain}-{number}" if number % 3 == 0 else None
        return account, email, amount, key

    def _choose_web(self, number: int, chance: random.Random) -> str:
        return chance.choice(self.rotation) if self.follows_rotation else self.rotation[number % len(self.rotation)]


@contextmanager
def steady_load(
    cluster: Cluster,
    *,
    think_s: float = 0.25,
    has_poor_business: bool = True,
    hangs_up: bool = False,
    arrange: Callable[[Load], None] = lambda _: None,
) -> Iterator[Load]:
    """Run the clients, once all of them have had an answer; let them finish their calls at the end.

    With `hangs_up`, as many again hang up before the answer.
    """
    load = Load(cluster, think_s=think_s, has_poor_business=has_poor_business, hangs_up=hangs_up)
    arrange(load)
    load.start()
    try:
        yield load
    finally:
        load.stop()


def unexpected(load: Load, allowed: set[int | None], answers: Sequence[Answer] | None = None) -> list[Answer]:
    """Return the answers that clients may not see; a business without money may always be told so."""
    poor_id = load.poor.business.id if load.poor else None
    return [
        answer
        for answer in (load.answers if answers is None else answers)
        if answer.status not in allowed
        and not (answer.status == 400 and answer.business_id == poor_id and answer.body == {"error": INSUFFICIENT})
    ]


def slowest_s(answers: Sequence[Answer]) -> float:
    """Return how long the slowest answer took."""
    return max(answer.seconds for answer in answers)
