"""`payouts doctor`: every check from the command line, in plain words, each with what to do about it."""

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import rich_click as click

from api.cli.doctor.api import check_api
from api.cli.doctor.broker import examine_broker
from api.cli.doctor.database import check_database
from api.cli.doctor.disk import check_disk
from api.cli.doctor.findings import Finding, Status
from api.cli.doctor.in_doubt import check_in_doubt
from api.cli.doctor.redis import check_redis
from api.cli.doctor.standbys import WAITING_COMMITS
from api.cli.doctor.workers import check_beat, check_queues
from api.local.data_dir import DEFAULT_DATA_DIR, DataDir
from core.database.connection import Database
from core.logging.setup import Logs
from core.settings.loader import Settings, SettingsError, find_doubtful_variables, load_settings
from core.settings.variables import FILE_SUFFIX, variable_name
from workers.app import (
    create_celery,
)


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
        found = check_database(database, settings)
    yield from found
    is_database_there = found[0].status is not Status.PROBLEM
    is_redis_there = False
    for finding in check_redis(settings):
        is_redis_there |= finding.check == "redis" and finding.status is not Status.PROBLEM
        yield finding
    celery = create_celery(settings)
    broker = examine_broker(celery, settings)
    yield broker
    if is_redis_there and broker.status is Status.OK:
        trips = asyncio.run(check_queues(settings, celery))
        # Workers wait for the database in their tasks, so that they may well be there.
        reason = "not known without the database" if not is_database_there else _find_hindrance(found)
        yield from (each if reason is None or each.status is Status.OK else _skip(each.check, reason) for each in trips)
        yield check_beat(settings, has_batches_worker=trips[-1].status is Status.OK)
    else:
        reason = "not tried, because Redis or the broker is out of reach"
        yield from (Finding(name, Status.SKIPPED, reason) for name in ("worker", "batches worker", "beat"))
    celery.close()
    yield from check_in_doubt(settings)
    if url:
        yield check_api(url)
    if data_dir is not None:
        yield check_disk(data_dir)


def _find_hindrance(found: list[Finding]) -> str | None:
    """Return why a worker may be there and not answer."""
    is_waiting = any(each.text.startswith(WAITING_COMMITS) for each in found)
    return f"not known while {WAITING_COMMITS}: a worker answers nothing meanwhile" if is_waiting else None


def _skip(name: str, reason: str) -> Finding:
    return Finding(name, Status.SKIPPED, reason)
