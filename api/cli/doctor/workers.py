"""Do the workers answer, and does beat run? An empty group goes through each of the real queues."""

import asyncio
import time
from contextlib import suppress

import redis
from celery import Celery

from api.allocations.publisher import Publisher, make_instance_prefix
from api.allocations.replies import Replies, Told
from api.cli.doctor.findings import Finding, Status
from core.messages import GroupCodec
from core.settings.loader import Settings
from core.settings.variables import variable_name
from workers.app import (
    BATCHES_QUEUE,
    PERIODIC_RUN_KEY,
    QUEUE,
    periodic_run_noted_s,
)
from workers.servers import open_async_redis, open_redis

_ROUND_TRIP_TIMEOUT_S = 8.0
_ROUND_TRIPS = 3
_SUBSCRIBE_TIMEOUT_S = 3.0
_BEAT_WAIT_MAX_S = 30.0


async def check_queues(settings: Settings, celery: Celery) -> list[Finding]:
    """Send an empty group through each of the real queues, and wait for the worker's reply."""
    client = open_async_redis(settings)
    prefix = make_instance_prefix()
    codec = GroupCodec(settings.hash_secret_bytes)
    publisher = Publisher(
        celery,
        codec,
        prefix,
        threads=1,
        expires_after_s=_ROUND_TRIP_TIMEOUT_S,
    )
    replies = Replies(client, codec, prefix)
    listening = asyncio.create_task(replies.listen())
    try:
        async with asyncio.timeout(_SUBSCRIBE_TIMEOUT_S):
            await replies.subscribed.wait()
        return [
            await _check_queue(publisher, replies, QUEUE, "worker"),
            await _check_queue(publisher, replies, BATCHES_QUEUE, "batches worker"),
        ]
    except TimeoutError:
        text, fix = "replies cannot be subscribed to", "allow PSUBSCRIBE in Redis"
        return [Finding(name, Status.PROBLEM, text, fix) for name in ("worker", "batches worker")]
    finally:
        listening.cancel()
        await asyncio.wait([listening], timeout=1)
        await client.aclose()


async def _check_queue(publisher: Publisher, replies: Replies, queue: str, name: str) -> Finding:
    begun = time.perf_counter()
    for _ in range(_ROUND_TRIPS):  # another worker may answer each time
        task_id = publisher.make_task_id()
        replied = replies.expect_later(task_id)
        try:
            await asyncio.to_thread(publisher.send_empty, task_id, queue)
            reply: Told = await asyncio.wait_for(replied, _ROUND_TRIP_TIMEOUT_S)
        except TimeoutError:
            text = f"nobody carried out an empty group from the queue {queue} within {_ROUND_TRIP_TIMEOUT_S:g} s"
            return Finding(
                name, Status.PROBLEM, text, f"start the Procfile's `{_PROCESS_BY_QUEUE[queue]}`, or more of it"
            )
        except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
            text = f"an empty group could not be sent to the queue {queue} ({type(error).__name__})"
            return Finding(name, Status.PROBLEM, text, "look at the broker's log")
        finally:
            replies.forget(task_id)
        if reply is None:
            variable = variable_name("hash_secret")
            text = f"a worker of the queue {queue} dropped an empty group: it could not open it with its {variable}"
            fix = f"give all processes the same {variable} as here, and restart them; upgrade workers before the API"
            return Finding(name, Status.PROBLEM, text, fix)
    took_ms = (time.perf_counter() - begun) / _ROUND_TRIPS * 1000
    text = f"an empty group came back from the queue {queue} in {took_ms:.0f} ms, opened with the same hash secret"
    return Finding(name, Status.OK, text)


_PROCESS_BY_QUEUE = {QUEUE: "worker", BATCHES_QUEUE: "batches"}


def check_beat(settings: Settings, *, has_batches_worker: bool) -> Finding:
    """Tell by the periodic task whether beat runs; just after a start, wait for its first run."""
    if not has_batches_worker:
        return Finding("beat", Status.SKIPPED, "not known, because nobody carries out what it sends")
    every_s = settings.batch_stalled_after_s
    give_up_at = time.monotonic() + min(every_s + 3, _BEAT_WAIT_MAX_S)
    left_ms = -2
    with open_redis(settings, retries=0) as client:
        while left_ms < 0 and time.monotonic() < give_up_at:
            with suppress(redis.RedisError):
                left_ms = int(client.pttl(PERIODIC_RUN_KEY))
            time.sleep(0 if left_ms >= 0 else 0.2)
    if left_ms < 0:
        text = f"its periodic task has not run for {periodic_run_noted_s(every_s):.0f} s"
        return Finding("beat", Status.PROBLEM, text, "start the Procfile's `beat`, one of it")
    return Finding("beat", Status.OK, f"its task ran {periodic_run_noted_s(every_s) - left_ms / 1000:.0f} s ago")
