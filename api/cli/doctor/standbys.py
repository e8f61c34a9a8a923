"""Do commits wait for a synchronous standby? Then nothing is paid, and a restart of workers or API does not help."""

import re
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from api.cli.doctor.findings import Finding, Status

_WAIT_S = 1.0
"""Commits that waited for longer are not just on their way to a standby and back."""
_NAMES_SHOWN_MAX = 5
WAITING_COMMITS = "commits wait for a standby"

# `FIRST 2 (a, b)`, `ANY 1 (a, b)`, `2 (a, b)` or `a, b`, of which names may be quoted.
_LIST = re.compile(
    r"\s*(?:(?:(?:FIRST|ANY)\s+)?(?P<count>\d+)\s*\((?P<names>.*)\)|(?P<plain>.*))\s*\Z", re.IGNORECASE | re.DOTALL
)
_NAME = re.compile(r'"((?:[^"]|"")*)"|([^\s,"]+)')

_LOOK = sa.text("""
    SELECT current_setting('synchronous_standby_names'),
        ARRAY(SELECT application_name FROM pg_stat_replication WHERE COALESCE(state, 'streaming') = 'streaming'),
        count(*) FILTER (WHERE wait_event = 'SyncRep'),
        COALESCE(max(extract(epoch FROM clock_timestamp() - query_start)) FILTER (WHERE wait_event = 'SyncRep'), 0)
    FROM pg_stat_activity
    WHERE datname = current_database()
""")


class Standbys(NamedTuple):
    """What PostgreSQL says of its standbys."""

    setting: str
    attached: list[str | None]
    """Their names; None for those whose names only `pg_read_all_stats` shows."""
    waiting: int
    """Sessions whose commit waits for a standby."""
    longest_wait_s: float


def read_standbys(connection: Connection) -> Standbys:
    """Ask for what is needed, what is attached, and who waits."""
    setting, attached, waiting, longest_wait_s = connection.execute(_LOOK).one()
    return Standbys(setting, list(attached), waiting, float(longest_wait_s))


def find_waiting_commits(standbys: Standbys) -> Finding | None:
    """Return the problem that commits wait for a standby; None where they do not."""
    needed, names = parse_names(standbys.setting)
    if needed == 0:
        return None
    attached = [name for name in standbys.attached if name is None or not names or name in names]
    if len(attached) >= needed and standbys.longest_wait_s < _WAIT_S:
        return None
    missing = [name for name in names if name not in standbys.attached]
    what = f"{WAITING_COMMITS}: {needed} needed by synchronous_standby_names, {len(attached)} attached"
    if missing and None not in standbys.attached:
        shown = ", ".join(missing[:_NAMES_SHOWN_MAX]) + (", …" if len(missing) > _NAMES_SHOWN_MAX else "")
        what += f"; not attached: {shown}"
    if standbys.waiting:
        what += f"; {standbys.waiting} commits wait (SyncRep), one for {standbys.longest_wait_s:.0f} s"
    fix = (
        "start the standby, or take it out of synchronous_standby_names and reload PostgreSQL; restart neither workers "
        "nor API processes before: what they commit is not known until then"
    )
    return Finding("durability", Status.PROBLEM, what, fix)


def find_lossy_failover(standbys: Standbys) -> Finding | None:
    """Return a warning where a failover would lose what was answered 201; None where it would not."""
    needed, _ = parse_names(standbys.setting)
    if needed > 0 or not standbys.attached:
        return None
    text = (
        f"{len(standbys.attached)} standbys are attached, and all are asynchronous: a 201 means that a payment is on "
        "this server's disk, and a failover loses the last ones"
    )
    fix = (
        "name a standby in synchronous_standby_names, so that a commit is on two disks before it is answered 201; "
        "otherwise compare with a head that was kept elsewhere after each failover: payouts verify --against"
    )
    return Finding("durability", Status.WARNING, text, fix)


def parse_names(setting: str) -> tuple[int, list[str]]:
    """Return how many standbys a commit waits for, and the names that count; no names where all do (`*`)."""
    found = _LIST.match(setting)
    assert found is not None  # noqa: S101 (the second form is any text)
    listed = found["names"] if found["count"] else found["plain"]
    names = [quoted.replace('""', '"') or plain for quoted, plain in _NAME.findall(listed)]
    needed = int(found["count"] or 1) if names else 0
    return needed, [] if "*" in names else names
