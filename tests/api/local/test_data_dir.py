"""The data directory: one owner at a time, and files that are whole and private."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from api.local.data_dir import DataDir, DataDirError

# A lock is held, and its file open, until the process ends.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_lock_creates_the_directory_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    DataDir(path).lock()
    assert mode_of(path) == 0o700


def test_locked_directory_is_refused_to_others(tmp_path: Path) -> None:
    first = DataDir(tmp_path)
    first.lock()
    with pytest.raises(DataDirError, match="already running"):
        DataDir(tmp_path).lock()


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = "import os, sys; from pathlib import Path; from api.local.data_dir import DataDir\n"
    script += "held = DataDir(Path(sys.argv[1])); held.lock(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == -9
    DataDir(tmp_path).lock()


def test_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(DataDirError, match="cannot be used"):
        DataDir(path).lock()


def test_secret_is_made_once_and_kept(tmp_path: Path) -> None:
    made = DataDir(tmp_path).read_or_make_secret("hash_secret")
    assert len(made) >= 32
    assert DataDir(tmp_path).read_or_make_secret("hash_secret") == made
    assert DataDir(tmp_path).read_or_make_secret("another") != made


def test_secret_written_leaves_the_others(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    data_dir.write_secret("one", "1")
    data_dir.write_secret("two", "2")
    assert (data_dir.read_secret("one"), data_dir.read_secret("two"), data_dir.read_secret("three")) == ("1", "2", None)


def test_settings_are_read_as_written(tmp_path: Path) -> None:
    assert DataDir(tmp_path).read_settings() == {}
    DataDir(tmp_path).write_settings({"PAYOUTS_GROUP_MAX": "5"})
    assert DataDir(tmp_path).read_settings() == {"PAYOUTS_GROUP_MAX": "5"}


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_files_are_the_owners_only(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        DataDir(tmp_path).write_secret("one", "1")
        DataDir(tmp_path).write_settings({})
    finally:
        os.umask(before)
    assert {mode_of(tmp_path / name) for name in ("secrets.json", "settings.json")} == {0o600}


def test_half_written_file_of_a_crash_changes_nothing_and_opens_nothing(tmp_path: Path) -> None:
    DataDir(tmp_path).write_secret("one", "1")
    left = tmp_path / "secrets.json.new"
    left.write_text('{"on')
    left.chmod(0o644)
    assert DataDir(tmp_path).read_secret("one") == "1"
    DataDir(tmp_path).write_secret("two", "2")
    assert json.loads((tmp_path / "secrets.json").read_text()) == {"one": "1", "two": "2"}
    assert mode_of(tmp_path / "secrets.json") == 0o600
    assert not left.exists()


@pytest.mark.parametrize("content", [b"", b'{"one"', b"\xff\xfe", b"[]", b'"text"', b"null"])
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secrets.json").write_bytes(content)
    with pytest.raises(DataDirError, match=r"secrets\.json"):
        DataDir(tmp_path).read_or_make_secret("one")
    assert (tmp_path / "secrets.json").read_bytes() == content
