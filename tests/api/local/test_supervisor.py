"""The supervisor, with small shell scripts in place of the Procfile's processes."""

import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from api.local import supervisor as supervisor_module
from api.local.supervisor import SupervisedProcess, Supervisor
from tests.polling import wait_until

# The pipes are closed by the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_RESTART_AFTER_S", 0.1)
    monkeypatch.setattr(supervisor_module, "_STOP_WITHIN_S", 1.5)


@contextmanager
def run(tmp_path: Path, *, left_out: Collection[str] = (), **commands: str) -> Iterator[Supervisor]:
    """Run commands as a Procfile's; `$DIR` is `tmp_path`, and nothing depends on one that is called `extra`."""
    procfile = tmp_path / "Procfile"
    procfile.write_text("".join(f"{name}: {command}\n" for name, command in commands.items()))
    environment = os.environ | {"DIR": str(tmp_path)}
    supervisor = Supervisor(procfile, environment, optional=["extra"], left_out=left_out)
    try:
        supervisor.start()
        yield supervisor
    finally:
        supervisor.stop()


def read_pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_process_that_ends_is_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run(tmp_path, brief="echo $$ >> $DIR/brief", steady="echo $$ >> $DIR/steady; exec sleep 60") as supervisor:
        wait_until(lambda: len(read_pids(tmp_path / "brief")) >= 3)
        assert supervisor.restarts() >= 2
    assert len(read_pids(tmp_path / "steady")) == 1
    assert "brief has ended; it is started again" in capsys.readouterr().out


def test_killed_process_is_started_again(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with run(tmp_path, part="echo $$ >> $DIR/pids; exec sleep 60"):
        wait_until(lambda: read_pids(pids))
        psutil.Process(read_pids(pids)[0]).kill()
        wait_until(lambda: len(read_pids(pids)) == 2)
        assert is_alive(read_pids(pids)[1])


def test_what_nothing_depends_on_is_started_again_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_RESTART_OPTIONAL_AFTER_S_MAX", 0.3)
    with run(tmp_path, extra="echo $$ >> $DIR/extra", brief="echo $$ >> $DIR/brief") as supervisor:
        wait_until(lambda: len(read_pids(tmp_path / "extra")) >= 2 and len(read_pids(tmp_path / "brief")) >= 2)
        assert supervisor.restarts() == sum(1 for _ in read_pids(tmp_path / "brief")) - 1
    process = SupervisedProcess("extra", "true", {}, name_width=5, is_optional=True)
    monkeypatch.undo()
    delays = []
    for starts in range(1, 9):
        process.starts = starts
        delays.append(process.restart_after_s())
    assert delays == [2, 4, 8, 16, 32, 60, 60, 60]


def test_what_is_left_out_does_not_run(tmp_path: Path) -> None:
    with run(tmp_path, left_out=["extra"], extra="echo $$ >> $DIR/extra", steady="echo $$ >> $DIR/steady; sleep 60"):
        wait_until(lambda: read_pids(tmp_path / "steady"))
    assert not (tmp_path / "extra").exists()


def test_stop_ends_all_and_starts_none_again(tmp_path: Path) -> None:
    command = "echo $$ >> $DIR/pids; exec sleep 60"
    with run(tmp_path, one=command, two=command) as supervisor:
        wait_until(lambda: len(read_pids(tmp_path / "pids")) == 2)
        supervisor.stop()
        assert not any(is_alive(pid) for pid in read_pids(tmp_path / "pids"))
        time.sleep(0.5)
    assert len(read_pids(tmp_path / "pids")) == 2
    assert supervisor.restarts() == 0


def test_stop_asks_all_at_once_and_lets_them_finish(tmp_path: Path) -> None:
    # Each waits, having been asked, for the other one to have been asked too.
    command = (
        "trap 'touch $DIR/{0}; until [ -e $DIR/{1} ]; do sleep .01; done; echo {0} >> $DIR/ended; exit 0' TERM; "
        "touch $DIR/{0}-ready; while true; do sleep .01; done"
    )
    with run(tmp_path, one=command.format("one", "two"), two=command.format("two", "one")) as supervisor:
        wait_until(lambda: (tmp_path / "one-ready").exists() and (tmp_path / "two-ready").exists())
        supervisor.stop()
    assert sorted((tmp_path / "ended").read_text().split()) == ["one", "two"]


def test_stubborn_process_is_killed(tmp_path: Path) -> None:
    with run(tmp_path, stubborn="trap '' TERM; echo $$ >> $DIR/pids; while true; do sleep .05; done") as supervisor:
        wait_until(lambda: read_pids(tmp_path / "pids"))
        begun = time.monotonic()
        supervisor.stop()
        assert time.monotonic() - begun > 1
        assert not is_alive(read_pids(tmp_path / "pids")[0])


def test_children_left_behind_are_killed(tmp_path: Path) -> None:
    command = "sh -c 'trap \"\" TERM; echo $$ >> $DIR/pids; while true; do sleep .05; done' & wait"
    with run(tmp_path, parent=command) as supervisor:
        wait_until(lambda: read_pids(tmp_path / "pids"))
        supervisor.stop()
        wait_until(lambda: not is_alive(read_pids(tmp_path / "pids")[0]))


def test_stop_during_the_pause_before_a_restart_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor_module, "_RESTART_AFTER_S", 30)
    output = ""

    def has_ended() -> bool:
        nonlocal output
        output += capsys.readouterr().out
        return "has ended" in output

    with run(tmp_path, brief="echo $$ >> $DIR/pids") as supervisor:
        wait_until(has_ended)
    assert supervisor.restarts() == 0
    assert len(read_pids(tmp_path / "pids")) == 1


def test_stop_right_after_start_leaves_nothing(tmp_path: Path) -> None:
    with run(tmp_path, part="echo $$ >> $DIR/pids; exec sleep 60"):
        pass
    assert not any(is_alive(pid) for pid in read_pids(tmp_path / "pids"))


def test_lines_get_the_name_in_a_column_before_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "echo 'to stdout'; echo 'to stderr' >&2; echo; printf 'bytes \\377\\n'; touch $DIR/{}; exec sleep 60"
    with run(tmp_path, web=script.format("web"), worker=script.format("worker")):
        wait_until(lambda: (tmp_path / "web").exists() and (tmp_path / "worker").exists())
        time.sleep(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert {"web    | to stdout", "worker | to stdout", "web    | to stderr", "web    | bytes \ufffd"} <= set(lines)
    assert all(re.fullmatch(r"(web   |worker) \| .+", line) for line in lines)


def test_processes_see_the_environment_and_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run(tmp_path, part="cat; echo dir=$DIR; touch $DIR/done; exec sleep 60"):
        wait_until((tmp_path / "done").exists)
        time.sleep(0.3)
    assert f"part | dir={tmp_path}" in capsys.readouterr().out


def test_two_processes_do_not_mix_their_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "for i in $(seq 300); do echo {0}{0}{0}{0}{0}{0}{0}{0}; done; touch $DIR/{0}; exec sleep 60"
    with run(tmp_path, a=script.format("a"), b=script.format("b")):
        wait_until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
        time.sleep(0.5)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == ["a | aaaaaaaa"] * 300 + ["b | bbbbbbbb"] * 300
