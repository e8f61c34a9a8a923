"""PostgreSQL from its wheel: whatever became of its files and processes, it starts, and the data are there."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from api.local.postgres import EmbeddedPostgres
from api.local.wheels import EmbeddedServerError
from core.database.connection import Database
from tests.polling import wait_until
from tests.servers import ROOT

START = """
import sys
from pathlib import Path
from api.local.postgres import EmbeddedPostgres
print(EmbeddedPostgres(Path(sys.argv[1])).start())
"""


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: it is closed to the user as whom root runs PostgreSQL.
    path = Path(tempfile.mkdtemp(prefix="payouts-embedded-")).resolve()
    try:
        yield path
    finally:
        for pid_file in path.rglob("postmaster.pid"):
            if is_postgres(pid := pid_in(pid_file)):
                os.kill(pid, signal.SIGINT)
                wait_until_ended(pid)
        shutil.rmtree(path)


def start(data_dir: Path, user: int | None = None) -> str:
    """Start PostgreSQL from a process that then ends, as each `payouts up` is one; return the URL."""
    started = subprocess.run(
        [sys.executable, "-c", START, str(data_dir)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        cwd=ROOT,
        user=user,
        group=user,
    )
    assert started.returncode == 0
    return started.stdout.strip()


def pid_in(pid_file: Path) -> int:
    return int(pid_file.read_text().split("\n", 1)[0])


def is_postgres(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def wait_until_ended(pid: int) -> None:
    wait_until(lambda: not is_postgres(pid), f"{pid} ends", 30)


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with Database(url, transaction_timeout_s=None) as database, database.transaction() as connection:
        result = connection.execute(sa.text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def write_a_row(url: str) -> None:
    execute(url, "CREATE TABLE kept AS SELECT 42 AS value")


def assert_row_is_there(url: str) -> None:
    assert execute(url, "SELECT value, current_database() FROM kept") == [(42, "payouts")]


def stop(data_dir: Path) -> None:
    pid = pid_in(data_dir / "postmaster.pid")
    os.kill(pid, signal.SIGINT)
    wait_until_ended(pid)


def test_data_survive_a_stop(home: Path) -> None:
    data_dir = home / "postgres"
    write_a_row(start(data_dir))
    stop(data_dir)
    assert_row_is_there(start(data_dir))


def test_stop_ends_the_server(home: Path) -> None:
    postgres = EmbeddedPostgres(home / "postgres")
    url = postgres.start()
    pid = pid_in(home / "postgres" / "postmaster.pid")
    with Database(url, transaction_timeout_s=None) as database, database.engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))  # an open transaction does not hold it up
        postgres.stop()
        connection.invalidate()
    assert not is_postgres(pid)
    postgres.stop()


def test_same_process_can_start_it_again(home: Path) -> None:
    first, second = EmbeddedPostgres(home / "postgres"), EmbeddedPostgres(home / "postgres")
    write_a_row(first.start())
    first.stop()
    try:
        assert_row_is_there(second.start())
    finally:
        second.stop()


def test_running_server_of_a_killed_process_is_taken_over(home: Path) -> None:
    write_a_row(start(home / "postgres"))
    pid = pid_in(home / "postgres" / "postmaster.pid")
    postgres = EmbeddedPostgres(home / "postgres")
    assert_row_is_there(postgres.start())
    assert pid_in(home / "postgres" / "postmaster.pid") == pid
    postgres.stop()
    assert not is_postgres(pid)


def test_killed_postmaster_starts_again_with_its_data(home: Path) -> None:
    data_dir = home / "postgres"
    write_a_row(start(data_dir))
    os.kill(pid_in(data_dir / "postmaster.pid"), signal.SIGKILL)
    assert_row_is_there(start(data_dir))


def test_pid_file_with_a_foreign_pid_does_not_matter(home: Path) -> None:
    data_dir = home / "postgres"
    write_a_row(start(data_dir))
    lines = (data_dir / "postmaster.pid").read_text().splitlines()
    stop(data_dir)
    (data_dir / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    assert_row_is_there(start(data_dir))


def test_pid_file_with_the_pid_of_another_postgres_does_not_matter(home: Path) -> None:
    data_dir, other = home / "postgres", home / "other"
    write_a_row(start(data_dir))
    lines = (data_dir / "postmaster.pid").read_text().splitlines()
    stop(data_dir)
    other_url = start(other)
    other_pid = pid_in(other / "postmaster.pid")
    (data_dir / "postmaster.pid").write_text("\n".join([str(other_pid), *lines[1:]]) + "\n")
    assert_row_is_there(start(data_dir))
    assert is_postgres(other_pid)
    assert execute(other_url, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("content", ["", "99999999\n"])
def test_damaged_pid_file_does_not_matter(home: Path, content: str) -> None:
    data_dir = home / "postgres"
    start(data_dir)
    stop(data_dir)
    (data_dir / "postmaster.pid").write_text(content)
    assert execute(start(data_dir), "SELECT 1") == [(1,)]


def test_interrupted_creation_does_not_matter(home: Path) -> None:
    left = home / "postgres.new"
    left.mkdir()
    (left / "PG_VERSION").write_text("18\n")
    assert execute(start(home / "postgres"), "SELECT 1") == [(1,)]
    assert not left.exists()


def test_path_longer_than_a_unix_socket_allows_works(home: Path) -> None:
    data_dir = home / ("long-" * 12) / ("longer-" * 10) / "postgres"
    assert len(str(data_dir)) > 107
    write_a_row(start(data_dir))
    stop(data_dir)
    assert_row_is_there(start(data_dir))


@pytest.mark.parametrize("name", ["my data", "c++", "100%41", "it's & données"])
def test_path_with_special_characters_works(home: Path, name: str) -> None:
    assert execute(start(home / name / "postgres"), "SELECT 1") == [(1,)]


def test_server_that_cannot_start_is_one_line_that_names_the_log(home: Path) -> None:
    data_dir = home / "postgres"
    start(data_dir)
    stop(data_dir)
    (data_dir / "postgresql.conf").write_text("nonsense = here\n")
    with pytest.raises(EmbeddedServerError, match=re.escape(str(data_dir / "log"))) as refused:
        EmbeddedPostgres(data_dir).start()
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user; all other tests ran as this one")
def test_ordinary_user_runs_it_as_itself(home: Path) -> None:
    nobody = 65534
    os.chown(home, nobody, nobody)
    try:
        subprocess.run(
            [sys.executable, "-c", "import api.local.postgres, api.local.valkey"],
            user=nobody,
            group=nobody,
            cwd=ROOT,
            check=True,
        )
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("this Python cannot be run by others")
    url = start(home / "postgres", user=nobody)
    pid = pid_in(home / "postgres" / "postmaster.pid")
    assert psutil.Process(pid).uids().real == nobody
    write_a_row(url)


@pytest.mark.skipif(os.getuid() != 0, reason="PostgreSQL refuses to run as root, and only root needs another user")
def test_root_runs_it_as_another_user(home: Path) -> None:
    start(home / "postgres")
    assert psutil.Process(pid_in(home / "postgres" / "postmaster.pid")).username() == "pgserver"
