"""What each process does with wrong settings, and while the servers that it needs are not there."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from api.local.ports import find_free_port
from api.local.procfile import parse_procfile
from tests.servers import HASH_SECRET, ROOT, Servers, open_account, run_system, run_valkey

PROCFILE: dict[str, str] = parse_procfile((ROOT / "Procfile").read_text())
COMMANDS = PROCFILE | {"migrate": "payouts migrate", "list": "payouts business list", "up": "exec payouts up --port 0"}
NOWHERE = "postgresql://user:db-password@127.0.0.1:1/name"
PASSWORDS = ("db-password", "redis-password", HASH_SECRET)


def run(name: str, directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(find_free_port()),
        "PAYOUTS_HASH_SECRET": HASH_SECRET,
        "PAYOUTS_FLOWER_PASSWORD": secrets.token_urlsafe(12),
        "PAYOUTS_FLOWER_PORT": str(find_free_port()),
        **{f"PAYOUTS_{setting.upper()}": value for setting, value in settings.items()},
    }
    ended = subprocess.run(
        COMMANDS[name], shell=True, cwd=directory, env=environment, capture_output=True, text=True, timeout=100
    )
    assert "Traceback" not in ended.stderr
    for password in PASSWORDS:
        assert password not in ended.stdout + ended.stderr
    return ended


@pytest.mark.parametrize("name", COMMANDS)
def test_each_mistake_is_a_line_before_anything_starts(name: str, tmp_path: Path) -> None:
    ended = run(
        name,
        tmp_path,
        database_url=NOWHERE,
        redis_url="http://:redis-password@127.0.0.1:1",
        group_max="many",
        groupmax="1",
        resolve_timeout_s="-1",
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    warning, *mistakes = ended.stderr.replace("Error: ", "").splitlines()
    assert warning == "Warning: PAYOUTS_GROUPMAX is no setting; did you mean PAYOUTS_GROUP_MAX?"
    assert [line.split(":")[0] for line in mistakes] == [
        "PAYOUTS_REDIS_URL",
        "PAYOUTS_GROUP_MAX",
        "PAYOUTS_RESOLVE_TIMEOUT_S",
    ]


@pytest.mark.parametrize("name", ["web", "worker", "beat", "flower", "migrate", "up"])
def test_production_does_not_start_with_an_example(name: str, tmp_path: Path) -> None:
    ended = run(name, tmp_path, database_url=NOWHERE, redis_url="redis://127.0.0.1:1", environment="production")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.replace("Error: ", "").splitlines()
    assert line.startswith("PAYOUTS_HASH_SECRET: its value looks like an example")


@pytest.mark.parametrize("name", ["web", "worker"])
def test_a_database_that_stays_away_is_waited_for_and_then_said(name: str, tmp_path: Path) -> None:
    ended = run(name, tmp_path, database_url=NOWHERE, redis_url="redis://127.0.0.1:1", startup_timeout_s="2")
    assert (ended.returncode, ended.stdout) == (1, "")
    waiting, last = ended.stderr.splitlines()
    assert "waiting, for at most " in waiting
    assert last == "PostgreSQL at 127.0.0.1:1 cannot be reached: Connection refused; gave up after 2 s"


@pytest.mark.parametrize("name", ["web", "worker", "beat", "flower"])
def test_a_broker_that_stays_away_is_waited_for_and_then_said(name: str, tmp_path: Path, database_url: str) -> None:
    redis_url = "redis://:redis-password@127.0.0.1:1/0"
    ended = run(name, tmp_path, database_url=database_url, redis_url=redis_url, startup_timeout_s="2")
    assert (ended.returncode, ended.stdout) == (1, "")
    *waiting, last = ended.stderr.splitlines()
    assert waiting
    assert all("waiting, for at most " in line for line in waiting)
    assert last == "the broker at 127.0.0.1:1 cannot be reached: Connection refused; gave up after 2 s"


@pytest.mark.parametrize("name", ["web", "worker"])
def test_a_redis_beside_the_broker_is_waited_for_too(
    name: str, tmp_path: Path, servers: Servers, database_url: str
) -> None:
    ended = run(
        name,
        tmp_path,
        database_url=database_url,
        redis_url="redis://:redis-password@127.0.0.1:1/0",
        broker_url=servers.redis_url,
        startup_timeout_s="2",
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("Redis at 127.0.0.1:1 cannot be reached: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["web", "worker", "up"])
def test_who_waits_for_a_server_ends_when_asked_to(name: str, number: signal.Signals, tmp_path: Path) -> None:
    process = start(name, tmp_path, NOWHERE, "redis://127.0.0.1:1")
    try:
        assert process.stderr is not None
        while "waiting, for at most " not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        asked_at = time.monotonic()
        process.send_signal(number)
        _, rest = process.communicate(timeout=25)
        assert time.monotonic() - asked_at < 10  # of the 30 s that it would wait
        assert "gave up" not in rest
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["worker", "beat", "flower"])
def test_a_broker_that_comes_late_is_used(name: str, tmp_path: Path, database_url: str) -> None:
    with run_valkey() as valkey:
        url = valkey.url
        valkey.stop()
        process = start(name, tmp_path, database_url, url)
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            assert "waiting, for at most " in first
            valkey.start()
            alarm = threading.Timer(5, process.terminate)  # it runs until it is told to stop
            alarm.start()
            _, rest = process.communicate(timeout=60)
            alarm.join()
            assert "gave up" not in rest
            assert "Traceback" not in rest
        finally:
            process.kill()
            process.wait()


def start(name: str, directory: Path, database_url: str, redis_url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        COMMANDS[name],
        shell=True,
        cwd=directory,
        env={
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PORT": str(find_free_port()),
            "PAYOUTS_DATABASE_URL": database_url,
            "PAYOUTS_REDIS_URL": redis_url,
            "PAYOUTS_HASH_SECRET": HASH_SECRET,
            "PAYOUTS_FLOWER_PASSWORD": secrets.token_urlsafe(12),
            "PAYOUTS_FLOWER_PORT": str(find_free_port()),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_state_folder_that_cannot_be_written_is_told_and_calls_are_answered(servers: Servers, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    with (
        run_valkey() as valkey,
        run_system(Servers(servers.postgres_url, valkey.url), state_dir=str(tmp_path / "state")) as system,
        system.client() as client,
    ):
        account = open_account(system.database)
        assert system.pay(client, account, "user@example.com", 5).status_code == 201
        assert "in-doubt cannot be written" in system.logs()
