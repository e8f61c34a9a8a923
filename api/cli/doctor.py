"""`payouts doctor`: every check from the command line, in plain words, each with what to do about it."""

import asyncio
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import redis
import rich_click as click
import sqlalchemy as sa
from celery import Celery
from sqlalchemy import Connection

from api.allocations.publisher import Publisher, make_instance_prefix
from api.allocations.replies import Replies, Reply
from api.local.data_dir import DEFAULT_DATA_DIR, DataDir
from core.database.connection import DATABASE_ERRORS, Database, describe_error, read_clock_us
from core.database.revision import REQUIRED_REVISION, read_revision
from core.logging.setup import Logs
from core.messages import GroupCodec
from core.settings.loader import (
    FILE_SUFFIX,
    Settings,
    SettingsError,
    find_doubtful_variables,
    load_settings,
    variable_name,
)
from core.startup import address_of
from workers.app import (
    BATCHES_QUEUE,
    PERIODIC_RUN_KEY,
    QUEUE,
    check_broker,
    create_celery,
    periodic_run_noted_s,
)
from workers.broker.queues import QueueWatch
from workers.servers import open_async_redis, open_redis
from workers.startup import describe_refusal

_ROUND_TRIP_TIMEOUT_S = 8.0
_ROUND_TRIPS = 3
_SUBSCRIBE_TIMEOUT_S = 3.0
_API_TIMEOUT_S = 6.0
_CLOCK_SKEW_MAX_S = 5.0
_POSTGRES_VERSION_MIN = 18
_REDIS_VERSION_MIN = (6, 2)
_REDIS_LATENCY_MAX_S = 0.05
_QUEUE_DEPTH_MAX = 1_000
_DISK_FREE_MIN_BYTES = 1 << 30
_PROCESS_CONNECTIONS = 16  # an API process: its pool, and those for payout batches and the dashboard
_BEAT_WAIT_MAX_S = 30.0


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """It works, and will not for long, or not as well as it could."""
    PROBLEM = "problem"
    SKIPPED = "skipped"
    """It cannot be told, because of another problem."""


class Finding(msgspec.Struct, frozen=True):
    """What one check found, in words, and what to do about it."""

    check: str
    status: Status
    text: str
    fix: str | None = None


def run_doctor(data_dir: Path | None, url: str | None, *, as_json: bool) -> int:
    """Check everything and print what was found; return the exit code: 0, or 1, or 2 where settings are wrong."""
    Logs.configure_command(os.environ.get(variable_name("log_format"), ""))
    findings: list[Finding] = []
    exit_code = 0
    variables, path = _find_variables(data_dir)
    try:
        settings = load_settings(variables)
    except SettingsError as error:
        fix = "set it in the environment of every process" + (
            "; for what `payouts up` runs, name its --data-dir" if data_dir is None else ""
        )
        findings += [Finding("settings", Status.PROBLEM, mistake, fix) for mistake in error.mistakes]
        exit_code = 2
    else:
        unknown = find_doubtful_variables(variables)
        fix = "correct the name, or take it out"
        findings += [Finding("settings", Status.WARNING, text, fix) for text in unknown] or [
            Finding("settings", Status.OK, "all settings fit")
        ]
        with _silence():
            findings += _check_all(settings, url or variables.get("PAYOUTS_URL"), path)
        if path is not None:
            findings = [_tell_to_run_up(each, path) for each in findings]
        if any(each.status is Status.PROBLEM for each in findings):
            exit_code = 1
    if as_json:
        document = {"well": exit_code == 0, "checks": msgspec.to_builtins(findings)}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _print(findings, exit_code)
    return exit_code


def _find_variables(data_dir: Path | None) -> tuple[dict[str, str], Path | None]:
    """Return the settings' variables, and the data directory where they are one's."""
    environment = dict(os.environ)
    url = variable_name("database_url")
    if data_dir is None and any(environment.get(name, "").strip() for name in (url, url + FILE_SUFFIX)):
        return environment, None
    path = data_dir or DEFAULT_DATA_DIR
    kept = DataDir(path).read_settings()
    return environment | kept, path if kept else None


def _tell_to_run_up(found: Finding, path: Path) -> Finding:
    is_down = "cannot be reached" in found.text or "does not answer" in found.text
    if found.status is not Status.PROBLEM or not is_down:
        return found
    return msgspec.structs.replace(found, fix=f"run: payouts up --data-dir {path}")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep out of the output what is logged about a problem that a finding names."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _print(findings: list[Finding], exit_code: int) -> None:
    for each in findings:
        click.echo(f"{each.status:<8} {each.check}: {each.text}")
        if each.fix:
            click.echo(f"{'':<8} → {each.fix}")
    problems = sum(each.status is Status.PROBLEM for each in findings)
    warnings = sum(each.status is Status.WARNING for each in findings)
    click.echo(
        ("All is well." if not warnings else f"All works; {warnings} warnings.")
        if exit_code == 0
        else f"{problems} {'thing is' if problems == 1 else 'things are'} wrong."
    )


def _check_all(settings: Settings, url: str | None, data_dir: Path | None) -> Iterator[Finding]:
    with Database.from_settings(settings, pool_size=1) as database:
        found = _check_database(database, settings)
    yield from found
    is_database_there = found[0].status is not Status.PROBLEM
    is_redis_there = False
    for finding in _check_redis(settings):
        is_redis_there |= finding.check == "redis" and finding.status is not Status.PROBLEM
        yield finding
    celery = create_celery(settings)
    broker = _check_broker(celery, settings)
    yield broker
    if is_redis_there and broker.status is Status.OK:
        trips = asyncio.run(_check_queues(settings, celery))
        # Workers wait for the database in their tasks, so that they may well be there.
        yield from (each if is_database_there or each.status is Status.OK else _skip(each.check) for each in trips)
        yield _check_beat(settings, has_batches_worker=trips[-1].status is Status.OK)
    else:
        reason = "not tried, because Redis or the broker is out of reach"
        yield from (Finding(name, Status.SKIPPED, reason) for name in ("worker", "batches worker", "beat"))
    celery.close()
    if url:
        yield _check_api(url)
    if data_dir is not None:
        yield _check_disk(data_dir)


def _skip(name: str) -> Finding:
    return Finding(name, Status.SKIPPED, "not known without the database")


def _check_database(database: Database, settings: Settings) -> list[Finding]:
    place = _place_of(settings.database_url, 5432)
    try:
        begun = time.perf_counter()
        return database.read(lambda connection: _examine_database(connection, place, time.perf_counter() - begun))
    except DATABASE_ERRORS as error:
        text, fix = _explain_database_error(error, place)
        reason = "not known without the database"
        skipped = ("schema", "clocks", "durability", "connections")
        return [
            Finding("database", Status.PROBLEM, text, fix),
            *(Finding(name, Status.SKIPPED, reason) for name in skipped),
        ]


_DATABASE_ERRORS_BY_TEXT = {
    "password authentication failed": ("it refuses the user or the password", "correct them in {url}"),
    "no password supplied": ("it wants a password", "add it to {url}"),
    "does not exist": ("it has no such database or user", "create it, or correct its name in {url}"),
    "too many": ("all of its connections are in use", "raise max_connections, or run fewer processes"),
    "remaining connection slots": (
        "all of its connections are in use",
        "raise max_connections, or run fewer processes",
    ),
    "starting up": ("it is starting", "wait until it is up"),
}
_NO_CONNECTION_BY_TEXT = {
    "could not translate host": "its host is not known",
    "resolve host": "its host is not known",
    "connection refused": "connection refused",
    "no such file": "its socket is not there",
    "timeout": "it does not answer in time",
}


def _explain_database_error(error: Exception, place: str) -> tuple[str, str]:
    """Return what is wrong and what to do, from the error's text, which itself is never shown."""
    said = str(getattr(error, "orig", error)).lower()
    variable = variable_name("database_url")
    for words, (reason, fix) in _DATABASE_ERRORS_BY_TEXT.items():
        if words in said:
            return f"PostgreSQL at {place} answers, but {reason}", fix.format(url=variable)
    fix = f"start PostgreSQL, or correct {variable}; look for a firewall in between"
    reason = next((reason for words, reason in _NO_CONNECTION_BY_TEXT.items() if words in said), describe_error(error))
    return f"PostgreSQL at {place} cannot be reached: {reason}", fix


def _examine_database(connection: Connection, place: str, connect_s: float) -> list[Finding]:
    began, database_us, ended = time.time(), read_clock_us(connection), time.time()
    row = connection.execute(
        sa.text(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000,"
            " current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'),"
            " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
            " - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),"
            " pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on'"
        )
    ).one()
    version, major, synchronous_commit, fsync, full_page_writes, left, is_read_only = row
    text = f"PostgreSQL {version} at {place}, connected in {connect_s * 1000:.0f} ms"
    if major < _POSTGRES_VERSION_MIN:
        fix = f"upgrade to PostgreSQL {_POSTGRES_VERSION_MIN}"
        server = Finding("database", Status.PROBLEM, f"{text}, which is too old", fix)
    elif is_read_only:
        fix = f"name the primary server in {variable_name('database_url')}"
        server = Finding("database", Status.PROBLEM, f"{text}, which only reads", fix)
    else:
        server = Finding("database", Status.OK, text)
    return [
        server,
        _examine_schema(read_revision(connection)),
        _examine_clocks(database_us / 1_000_000 - (began + ended) / 2),
        _examine_durability(
            {"synchronous_commit": synchronous_commit, "fsync": fsync, "full_page_writes": full_page_writes}
        ),
        _examine_connections(left),
    ]


def _examine_schema(revision: str) -> Finding:
    if revision >= REQUIRED_REVISION:
        return Finding("schema", Status.OK, f"the database is at revision {revision}")
    text = f"the database is at revision {revision or 'none'}, and {REQUIRED_REVISION} is needed"
    return Finding("schema", Status.PROBLEM, text, "run: payouts migrate")


def _examine_clocks(skew_s: float) -> Finding:
    if abs(skew_s) <= _CLOCK_SKEW_MAX_S:
        return Finding("clocks", Status.OK, f"the database's clock and this machine's are {abs(skew_s):.2f} s apart")
    text = f"the database's clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's"
    return Finding("clocks", Status.WARNING, f"{text}; payouts go on, logs mislead", "run NTP on both machines")


def _examine_durability(values: Mapping[str, str]) -> Finding:
    off = [name for name, value in values.items() if value in {"off", "local"}]
    if not off:
        return Finding("durability", Status.OK, "a commit is on disk before it is answered 201")
    fix = "switch it on in postgresql.conf, and let no pooler in between drop what a connection asks for"
    return Finding("durability", Status.PROBLEM, f"a 201 may be lost in a crash: {', '.join(off)} is off", fix)


def _examine_connections(left: int) -> Finding:
    text = f"PostgreSQL has {left} connections left"
    if left >= _PROCESS_CONNECTIONS:
        return Finding("connections", Status.OK, text)
    fix = f"raise max_connections, lower {variable_name('database_pool_size')}, or use a pooler"
    return Finding("connections", Status.WARNING if left > 0 else Status.PROBLEM, text, fix)


def _check_redis(settings: Settings) -> list[Finding]:
    place = _place_of(settings.redis_url, 6379)
    try:
        with open_redis(settings, retries=0) as client:
            client.ping()
            latency_s = min(_time(client.ping) for _ in range(5))
            return _examine_redis(client.info(), place, latency_s)
    except redis.AuthenticationError:
        text, fix = f"Redis at {place} refuses the user or the password", "correct them in {}"
    except (redis.RedisError, OSError, ValueError) as error:
        text = f"Redis at {place} cannot be reached ({type(error).__name__})"
        fix = "start Redis or Valkey, or correct {}"
    skipped = Finding("redis memory", Status.SKIPPED, "not known without Redis")
    return [Finding("redis", Status.PROBLEM, text, fix.format(variable_name("redis_url"))), skipped]


def _examine_redis(info: Mapping[str, object], place: str, latency_s: float) -> list[Finding]:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version") or "")
    kept = "with an append-only file" if info.get("aof_enabled") else "without an append-only file (none is needed)"
    text = f"{name} {version} at {place}, answers in {latency_s * 1000:.1f} ms, {kept}"
    status, fix = Status.OK, None
    if _read_version(version) < _REDIS_VERSION_MIN:
        status, fix = Status.PROBLEM, "upgrade it: 6.2 is the oldest that fits"
    elif info.get("role") in {"slave", "replica"}:
        status, fix = Status.PROBLEM, f"it is a replica: name the primary server in {variable_name('redis_url')}"
    elif latency_s > _REDIS_LATENCY_MAX_S:
        status, fix = Status.WARNING, "every payout waits for it several times: bring it nearer"
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        memory = Finding("redis memory", Status.OK, "nothing is evicted")
    else:
        fix_policy = "set maxmemory-policy noeviction"
        text_policy = f"maxmemory-policy is {policy}: queued payouts can vanish"
        memory = Finding("redis memory", Status.PROBLEM, text_policy, fix_policy)
    return [Finding("redis", status, text, fix), memory]


def _read_version(version: str) -> tuple[int, ...]:
    with suppress(ValueError):
        return tuple(int(part) for part in version.split(".")[:2])
    return _REDIS_VERSION_MIN


def _check_broker(celery: Celery, settings: Settings) -> Finding:
    place = _place_of(settings.broker_url, 5672 if settings.broker_url.startswith("amqp") else 6379)
    try:
        check_broker(celery)
        with closing(QueueWatch(celery)) as watch:
            states = watch.look()
    except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
        if refusal := describe_refusal(error):
            fix = f"correct {variable_name('broker_url')}, or {variable_name('redis_url')} if that is not set"
            return Finding("broker", Status.PROBLEM, refusal, fix)
        fix = f"start it, or correct {variable_name('broker_url')}"
        return Finding("broker", Status.PROBLEM, f"it cannot be reached at {place} ({type(error).__name__})", fix)
    text = f"reached at {place}; " + ", ".join(f"{state.messages} messages in {state.queue}" for state in states)
    if any(state.messages > _QUEUE_DEPTH_MAX for state in states):
        return Finding("broker", Status.WARNING, text, "start more workers of that queue")
    return Finding("broker", Status.OK, text)


async def _check_queues(settings: Settings, celery: Celery) -> list[Finding]:
    """Send a batch of nothing through each of the real queues, and wait for the worker's reply."""
    client = open_async_redis(settings)
    prefix = make_instance_prefix()
    publisher = Publisher(
        celery,
        GroupCodec(settings.hash_secret_bytes),
        prefix,
        threads=1,
        expires_after_s=_ROUND_TRIP_TIMEOUT_S,
    )
    replies = Replies(client, prefix)
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
            reply: Reply = await asyncio.wait_for(replied, _ROUND_TRIP_TIMEOUT_S)
        except TimeoutError:
            text = f"nobody carried out an empty batch from the queue {queue} within {_ROUND_TRIP_TIMEOUT_S:g} s"
            return Finding(
                name, Status.PROBLEM, text, f"start the Procfile's `{_PROCESS_BY_QUEUE[queue]}`, or more of it"
            )
        except Exception as error:  # noqa: BLE001 (kombu lets the errors of every transport through)
            text = f"an empty batch could not be sent to the queue {queue} ({type(error).__name__})"
            return Finding(name, Status.PROBLEM, text, "look at the broker's log")
        finally:
            replies.forget(task_id)
        if reply is None:
            variable = variable_name("hash_secret")
            text = f"a worker of the queue {queue} dropped an empty batch: it could not open it with its {variable}"
            fix = f"give all processes the same {variable} as here, and restart them"
            return Finding(name, Status.PROBLEM, text, fix)
    took_ms = (time.perf_counter() - begun) / _ROUND_TRIPS * 1000
    text = f"an empty batch came back from the queue {queue} in {took_ms:.0f} ms, opened with the same hash secret"
    return Finding(name, Status.OK, text)


_PROCESS_BY_QUEUE = {QUEUE: "worker", BATCHES_QUEUE: "batches"}


def _check_beat(settings: Settings, *, has_batches_worker: bool) -> Finding:
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


def _check_api(url: str) -> Finding:
    shown = _place_of(url, None)
    fix = "start the Procfile's `web`, or correct --url"
    try:
        if urlsplit(url).scheme not in {"http", "https"}:
            return Finding("api", Status.PROBLEM, "its address is no http:// or https:// URL", "correct --url")
        request = urllib.request.Request(f"{url.rstrip('/')}/health/ready")  # noqa: S310 (checked above)
        with urllib.request.urlopen(request, timeout=_API_TIMEOUT_S):  # noqa: S310 (checked above)
            return Finding("api", Status.OK, f"ready at {shown}")
    except urllib.error.HTTPError as error:
        with error:
            try:
                reason = str(json.load(error)["error"])
            except (ValueError, KeyError, TypeError, OSError):
                return Finding("api", Status.PROBLEM, f"{shown} answers {error.code}, and is none of ours", fix)
        return Finding("api", Status.PROBLEM, f"at {shown}: {reason}", "mend what it names; it is found above, too")
    except (OSError, ValueError) as error:
        return Finding("api", Status.PROBLEM, f"{shown} does not answer ({type(error).__name__})", fix)


def _check_disk(data_dir: Path) -> Finding:
    free = shutil.disk_usage(data_dir).free
    text = f"{free / (1 << 30):.1f} GiB are free for {data_dir}"
    if free >= _DISK_FREE_MIN_BYTES:
        return Finding("disk", Status.OK, text)
    return Finding("disk", Status.PROBLEM, text, "make room: without any, every call is answered 500")


def _time(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _place_of(url: str, port: int | None) -> str:
    """Return host and port of a URL, without user and password."""
    try:
        parts = urlsplit(url)
        shown_port = parts.port or port
    except ValueError:
        return address_of(url)
    host = parts.hostname or ("a unix socket" if port is not None else "its address")
    return host if host == "a unix socket" or shown_port is None else f"{host}:{shown_port}"
