"""`payouts doctor`: what it finds on real parts, with each of them missing."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from api.cli.doctor.standbys import Standbys, find_lossy_failover
from api.local.valkey import EmbeddedValkey
from core.ids import new_id
from core.in_doubt.records import Doubt, InDoubt
from core.settings.loader import load_settings
from tests.servers import HASH_SECRET, Parts, Servers, System, run_system, run_valkey
from workers.in_doubt import open_records

PAYOUTS = str(Path(sys.executable).with_name("payouts"))
NAMES = ["settings", "database", "schema", "clocks", "durability", "connections", "roles", "redis", "redis memory",
         "broker", "worker", "batches worker", "beat", "state folder", "in doubt"]  # fmt: skip


class Report:
    """What the command found."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.exit_code = done.returncode
        self.shown = done.stdout + done.stderr
        assert done.stderr == ""
        self.document: dict[str, Any] = json.loads(done.stdout)

    def status_of(self, name: str) -> str:
        return str(self[name]["status"])

    def problems(self) -> list[str]:
        return [each["check"] for each in self.document["checks"] if each["status"] == "problem"]

    def __getitem__(self, name: str) -> dict[str, Any]:
        (check,) = [each for each in self.document["checks"] if each["check"] == name]
        return dict(check)


def run_doctor(
    environment: Mapping[str, str], *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [PAYOUTS, "doctor", *arguments]
    return subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=100, cwd=cwd)


def examine(system: System, **variables: str) -> Report:
    return Report(run_doctor(system.environment | variables, "--json"))


@contextmanager
def run_parts(servers: Servers, valkey: EmbeddedValkey, *without: str, **variables: dict[str, str]) -> Iterator[System]:
    """Run some of the processes, on a Valkey of their own; there, nobody else's worker answers."""
    parts = Parts(without=without, variables=variables, is_waited_for=False)
    with run_system(servers, parts, redis_url=valkey.url, batch_stalled_after_s="2") as system:
        yield system


def test_all_is_well(system: System) -> None:
    done = run_doctor(system.environment, "--json", "--url", system.base_url)
    report = Report(done)
    assert (report.exit_code, report.document["well"]) == (0, True), report.shown
    assert [each["check"] for each in report.document["checks"]] == [*NAMES, "api"]
    assert report.problems() == []
    assert "opened with the same hash secret" in report["worker"]["text"]
    for secret in (HASH_SECRET, system.environment["PAYOUTS_DATABASE_URL"], system.environment["PAYOUTS_REDIS_URL"]):
        assert secret not in report.shown


def test_in_words_for_people(system: System) -> None:
    done = run_doctor(system.environment)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "ok       settings: all settings fit"
    assert lines[-1].startswith(("All is well.", "All works"))
    assert done.stderr == ""


def test_no_worker(servers: Servers, valkey: EmbeddedValkey) -> None:
    with run_parts(servers, valkey, "web", "worker") as system:
        report = examine(system)
    assert (report.exit_code, report.problems()) == (1, ["worker"]), report.shown
    assert "nobody carried out an empty group from the queue allocations" in report["worker"]["text"]
    assert "`worker`" in report["worker"]["fix"]


def test_no_batches_worker(servers: Servers, valkey: EmbeddedValkey) -> None:
    with run_parts(servers, valkey, "web", "batches") as system:
        report = examine(system)
    assert (report.exit_code, report.problems()) == (1, ["batches worker"]), report.shown
    assert "`batches`" in report["batches worker"]["fix"]
    assert report.status_of("beat") == "skipped"


def test_no_beat(servers: Servers, valkey: EmbeddedValkey) -> None:
    with run_parts(servers, valkey, "web", "beat") as system:
        report = examine(system)
    assert (report.exit_code, report.problems()) == (1, ["beat"]), report.shown


def test_another_hash_secret_on_the_worker(servers: Servers, valkey: EmbeddedValkey) -> None:
    other = {"PAYOUTS_HASH_SECRET": "quite another secret, long enough for it"}
    with run_parts(servers, valkey, "web", worker=other) as system:
        report = examine(system)
    assert (report.exit_code, report.problems()) == (1, ["worker"]), report.shown
    assert "PAYOUTS_HASH_SECRET" in report["worker"]["text"]
    assert "same PAYOUTS_HASH_SECRET" in report["worker"]["fix"]
    assert "quite another" not in report.shown


def test_the_database_is_away(system: System) -> None:
    report = examine(system, PAYOUTS_DATABASE_URL="postgresql://payouts:hush-hush@127.0.0.1:1/payouts")
    assert (report.exit_code, report.problems()) == (1, ["database"]), report.shown
    assert "127.0.0.1:1 cannot be reached: connection refused" in report["database"]["text"]
    assert report.status_of("schema") == "skipped"
    assert report.status_of("worker") == "ok"
    assert "hush-hush" not in report.shown


def test_the_databases_host_does_not_exist(system: System) -> None:
    report = examine(system, PAYOUTS_DATABASE_URL="postgresql://payouts:hush-hush@no-such-host.invalid/payouts")
    assert (report.exit_code, report.problems()) == (1, ["database"]), report.shown
    assert "cannot be reached: its host is not known" in report["database"]["text"]


def test_the_database_does_not_exist(servers: Servers, system: System) -> None:
    report = examine(system, PAYOUTS_DATABASE_URL=servers.url_of("nothing_of_the_kind"))
    assert report.problems() == ["database"]
    assert "no such database" in report["database"]["text"]


def test_the_database_is_not_migrated(servers: Servers, system: System) -> None:
    report = examine(system, PAYOUTS_DATABASE_URL=servers.create("without_tables"))
    assert (report.exit_code, report.problems()) == (1, ["schema"]), report.shown
    assert "revision none" in report["schema"]["text"]
    assert report["schema"]["fix"] == "run: payouts migrate"


def test_redis_is_away(system: System) -> None:
    report = examine(system, PAYOUTS_REDIS_URL="redis://:hush-hush@127.0.0.1:1/0")
    assert (report.exit_code, report.problems()) == (1, ["redis", "broker"]), report.shown
    assert "Redis at 127.0.0.1:1 cannot be reached" in report["redis"]["text"]
    assert {report.status_of(name) for name in ("worker", "batches worker", "beat", "redis memory")} == {"skipped"}
    assert "hush-hush" not in report.shown


def test_redis_refuses_the_password(system: System) -> None:
    url = system.environment["PAYOUTS_REDIS_URL"].replace("@", "x@")
    report = examine(system, PAYOUTS_REDIS_URL=url)
    assert "refuses the user or the password" in report["redis"]["text"]


def test_redis_evicts(servers: Servers, system: System) -> None:
    with run_valkey() as valkey, Redis.from_url(valkey.url) as redis:
        redis.config_set("maxmemory-policy", "allkeys-lru")
        with run_parts(servers, valkey, "web") as evicting:
            report = examine(evicting)
    assert (report.exit_code, report.problems()) == (1, ["redis memory"]), report.shown
    assert "allkeys-lru" in report["redis memory"]["text"]
    assert report["redis memory"]["fix"] == "set maxmemory-policy noeviction"


@pytest.mark.parametrize(
    ("url", "text"),
    [("http://127.0.0.1:1", "127.0.0.1:1 does not answer"), ("ftp://x", "no http"), ("http://[", "no http")],
)
def test_the_api_is_away(system: System, url: str, text: str) -> None:
    report = Report(run_doctor(system.environment, "--json", "--url", url))
    assert report.exit_code == 1
    assert text in report["api"]["text"] or "does not answer" in report["api"]["text"]


def test_every_mistake_in_the_settings_is_a_finding(system: System) -> None:
    done = run_doctor(
        system.environment | {"PAYOUTS_GROUP_MAX": "many", "PAYOUTS_HASH_SECRET": "short", "PAYOUTS_LOG_FORMAT": "xml"},
        "--json",
    )
    report = Report(done)
    assert report.exit_code == 2
    texts = " ".join(each["text"] for each in report.document["checks"])
    for variable in ("PAYOUTS_GROUP_MAX", "PAYOUTS_HASH_SECRET", "PAYOUTS_LOG_FORMAT"):
        assert variable in texts
    assert "short" not in report.shown


def test_without_anything_it_says_what_is_missing(tmp_path: Path) -> None:
    done = run_doctor({"PATH": "/usr/bin"}, cwd=tmp_path)
    assert done.returncode == 2
    assert "PAYOUTS_DATABASE_URL is not set" in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_state_folder_that_cannot_be_written(system: System, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    report = examine(system, PAYOUTS_STATE_DIR=str(tmp_path / "state"))
    assert (report.exit_code, report.problems()) == (0, []), report.shown
    assert report.status_of("state folder") == "warning"
    assert "PAYOUTS_STATE_DIR" in report["state folder"]["fix"]


def test_something_in_doubt(system: System) -> None:
    settings = load_settings(system.environment)
    # Of a business that does not exist: nobody can finish it.
    stranger = InDoubt(Doubt.BATCH_FAILED, new_id(), new_id())
    with closing(open_records(settings)) as records:
        records.add([stranger])
        report = examine(system)
        records.discard([stranger])
    assert report.status_of("in doubt") == "warning"
    assert "payouts resolve" in report["in doubt"]["fix"]


def test_a_role_that_owns_the_tables_is_a_warning(system: System) -> None:
    report = examine(system)
    assert report.status_of("roles") == "warning"
    assert "can rewrite the history" in report["roles"]["text"]
    assert "PAYOUTS_MIGRATION_DATABASE_URL" in report["roles"]["fix"]


@pytest.mark.parametrize(
    ("standbys", "is_warned_of"),
    [
        (Standbys("", [], 0, 0), False),
        (Standbys("", ["replica"], 0, 0), True),
        (Standbys("", [None], 0, 0), True),
        (Standbys("replica", ["replica"], 0, 0), False),
        (Standbys("ANY 1 (a, b)", ["a", "backup"], 0, 0), False),
    ],
)
def test_standbys_that_are_all_asynchronous_are_a_warning(standbys: Standbys, is_warned_of: bool) -> None:
    finding = find_lossy_failover(standbys)
    assert (finding is not None) == is_warned_of
    if finding is not None:
        assert finding.status == "warning"
        assert "a failover loses the last ones" in finding.text
        assert "payouts verify --against" in str(finding.fix)
