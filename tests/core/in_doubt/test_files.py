"""Records in files: what was answered 500 in doubt is known after the loss of Redis and of the process."""

import os
from pathlib import Path

import pytest

from core.ids import new_id
from core.in_doubt.files import RecordFiles, StateFolderError
from core.in_doubt.records import Doubt, InDoubt, RecordCodec
from tests.core.builders import HASH_SECRET

CODEC = RecordCodec(HASH_SECRET)


def make_record(doubt: Doubt = Doubt.CALL_FAILED) -> InDoubt:
    return InDoubt(doubt, new_id(), new_id(), 1_700_000_000_000_000, 1_700_000_000)


def paths_in(state_dir: Path) -> list[Path]:
    return sorted((state_dir / "in-doubt").iterdir())


def test_what_was_recorded_is_read_by_another_process(tmp_path: Path) -> None:
    records = [make_record(doubt) for doubt in Doubt]
    RecordFiles(tmp_path, CODEC).add(records)
    assert RecordFiles(tmp_path, CODEC).read() == records


def test_file_is_removed_when_all_in_it_is_finished(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path, CODEC)
    first, second, third = make_record(), make_record(), make_record()
    files.add([first, second])
    files.add([third])
    files.discard([first, third])
    assert files.read() == [second]
    assert len(paths_in(tmp_path)) == 1
    files.discard([second])
    assert files.read() == []
    assert paths_in(tmp_path) == []


def test_another_process_removes_what_it_finished(tmp_path: Path) -> None:
    record = make_record()
    RecordFiles(tmp_path, CODEC).add([record])
    other = RecordFiles(tmp_path, CODEC)
    other.discard(other.read())
    assert paths_in(tmp_path) == []


def test_folder_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path / "none", CODEC)
    assert files.read() == []
    files.discard([make_record()])


def test_records_of_another_installation_are_left_alone(tmp_path: Path) -> None:
    RecordFiles(tmp_path, RecordCodec(b"quite another secret, long enough")).add([make_record()])
    files = RecordFiles(tmp_path, CODEC)
    assert files.read() == []
    files.discard([make_record()])
    assert len(paths_in(tmp_path)) == 1


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    record = make_record()
    files = RecordFiles(tmp_path, CODEC)
    files.add([record])
    [path] = paths_in(tmp_path)
    path.write_bytes(b"1:\xff\n2:abc\n1:YWJj\n" + path.read_bytes() + b"1:")
    assert RecordFiles(tmp_path, CODEC).read() == [record]


def test_what_is_half_written_is_not_read(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path, CODEC)
    files.add([make_record()])
    [path] = paths_in(tmp_path)
    path.rename(path.with_suffix(".unfinished"))
    assert files.read() == []


def test_files_are_for_nobody_else_and_tell_nothing(tmp_path: Path) -> None:
    record = make_record()
    RecordFiles(tmp_path, CODEC).add([record])
    [path] = paths_in(tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    assert record.id.bytes not in path.read_bytes()
    assert record.id.hex.encode() not in path.read_bytes()


def test_folder_that_can_be_written_passes_the_check_and_stays_empty(tmp_path: Path) -> None:
    RecordFiles(tmp_path, CODEC).check()
    assert paths_in(tmp_path) == []


@pytest.mark.parametrize("obstacle", ["a file", "no permission"])
def test_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, obstacle: str) -> None:
    state_dir = tmp_path / "state"
    if obstacle == "a file":
        state_dir.write_text("")
    elif os.geteuid() == 0:
        state_dir = Path("/proc/state")  # root may write everywhere else
    else:
        state_dir.mkdir(mode=0o500)
    with pytest.raises(StateFolderError, match=r"^\S+/in-doubt cannot be written: [A-Z][^\n]+$"):
        RecordFiles(state_dir, CODEC).check()


def test_sealed_record_cannot_be_made_or_changed_without_the_secret() -> None:
    record = make_record()
    sealed = CODEC.seal(record)
    assert CODEC.open(sealed) == record
    assert RecordCodec(b"quite another secret, long enough").open(sealed) is None
    for changed in (sealed[:-8] + "AAAA" + sealed[-4:], "2" + sealed[1:], sealed[:20], "", ":", "1:"):
        assert CODEC.open(changed) is None
