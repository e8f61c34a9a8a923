"""A load generator in Python: exact, because it waits for every answer, but it takes its share of the two cores.

It warms systems up, where each 201 and each cent can be checked against the history, and stands in for wrk.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

_ANSWER_WITHIN_S = 30.0


@dataclass
class Tally:
    """What was answered."""

    latencies_us: list[int] = field(default_factory=list)
    refused: int = 0
    socket_errors: int = 0
    cents: int = 0
    """Sum of the amounts that were answered 201."""

    def as_json(self, duration_s: float) -> str:
        ordered = sorted(self.latencies_us) or [0]
        percentiles = {f"p{p}_us": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 90, 99)}
        counts = {"requests": len(self.latencies_us), "refused": self.refused, "socket_errors": self.socket_errors}
        return json.dumps(
            {**counts, "duration_s": duration_s, **percentiles, "max_us": ordered[-1], "cents": self.cents}
        )


@dataclass(frozen=True)
class Plan:
    """The arguments, as `allocate.lua` has them."""

    url: str
    seconds: float
    connections: int
    keys: list[str]
    seed: int
    emails: int
    stride: int
    amount_max: int
    per_second: float


async def _pay_in_turn(plan: Plan, random_: random.Random, tally: Tally, stop_at: float) -> None:
    url = urlsplit(plan.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    pause_max_s = 2 * plan.connections / plan.per_second if plan.per_second else 0.0
    while True:
        if pause_max_s:
            await asyncio.sleep(random_.uniform(0, pause_max_s))
        started = time.monotonic()
        if started >= stop_at:
            break
        amount = random_.randint(1, plan.amount_max)
        email = f"user{plan.stride * random_.randrange(plan.emails)}@example.com"
        body = f'{{"email": "{email}", "amount": {amount}}}'
        writer.write(
            f"POST {url.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {random_.choice(plan.keys)}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        try:
            status = await asyncio.wait_for(_read_answer(reader), _ANSWER_WITHIN_S)
        except (OSError, EOFError, TimeoutError):
            tally.socket_errors += 1
            break
        tally.latencies_us.append(round((time.monotonic() - started) * 1e6))
        if status == 201:
            tally.cents += amount
        else:
            tally.refused += 1
    writer.close()


async def _read_answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, rest = head.partition(b"\r\ncontent-length:")
    await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    return int(head.split(b" ", 2)[1])


async def _run(plan: Plan) -> str:
    tally = Tally()
    started = time.monotonic()
    stop_at = started + plan.seconds
    await asyncio.gather(
        *(
            _pay_in_turn(plan, random.Random(plan.seed * 1000 + number), tally, stop_at)  # noqa: S311 (not a secret)
            for number in range(plan.connections)
        )
    )
    return tally.as_json(time.monotonic() - started)


def main() -> None:
    url, seconds, connections, key_file, seed, emails, stride, amount_max, per_second = sys.argv[1:]
    plan = Plan(
        url,
        float(seconds),
        int(connections),
        Path(key_file).read_text().split(),
        int(seed),
        int(emails),
        int(stride),
        int(amount_max),
        float(per_second),
    )
    print(uvloop.run(_run(plan)))


if __name__ == "__main__":
    main()
