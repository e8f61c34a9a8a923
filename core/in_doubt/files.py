"""Records in a folder of this machine, for when Redis is out of reach or loses what it held."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from core.errors import UserError
from core.ids import new_id
from core.in_doubt.records import InDoubt, RecordCodec

_SUFFIX = ".sealed"


class StateFolderError(UserError):
    """The state folder cannot be written; the text says why."""


class RecordFiles:
    """A file for all that was recorded at once; it is removed when all of that is finished.

    Several processes may share the folder. Files that another hash secret sealed are left alone.
    """

    def __init__(self, state_dir: Path, codec: RecordCodec) -> None:
        self._folder = state_dir / "in-doubt"
        self._codec = codec
        self._lock = threading.Lock()
        self._left: dict[Path, set[UUID]] = {}
        """By file, the ids in it that are not finished, as far as this process knows."""

    def check(self) -> None:
        """Write a file and remove it.

        Raises:
            StateFolderError: that cannot be done.

        """
        try:
            path = self._write("")
            path.unlink()
        except OSError as error:
            text = f"{self._folder} cannot be written: {error.strerror or type(error).__name__}"
            raise StateFolderError(text) from None

    def add(self, records: Sequence[InDoubt]) -> None:
        """Write records to the disk.

        Raises:
            OSError: they are not there.

        """
        path = self._write("".join(f"{self._codec.seal(record)}\n" for record in records))
        with self._lock:
            self._left[path] = {record.id for record in records}

    def read(self) -> list[InDoubt]:
        """Return what is recorded in the folder and was sealed with our hash secret.

        Raises:
            OSError: the folder cannot be read.

        """
        found: dict[Path, list[InDoubt]] = {path: list(self._read(path)) for path in self._paths()}
        with self._lock:
            self._left = {
                path: self._left.get(path, {record.id for record in records})
                for path, records in found.items()
                if records
            }
            left = {id_ for ids in self._left.values() for id_ in ids}
        return [record for records in found.values() for record in records if record.id in left]

    def discard(self, records: Sequence[InDoubt]) -> None:
        """Remove the files of which all is finished.

        Raises:
            OSError: one cannot be removed.

        """
        finished = {record.id for record in records}
        with self._lock:
            left = {path: ids - finished for path, ids in self._left.items()}
            done = [path for path, ids in left.items() if not ids]
            self._left = {path: ids for path, ids in left.items() if ids}
        for path in done:
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        try:
            return sorted(path for path in self._folder.iterdir() if path.suffix == _SUFFIX)
        except FileNotFoundError:
            return []

    def _read(self, path: Path) -> Iterator[InDoubt]:
        with suppress(FileNotFoundError):  # another process has finished it
            for line in path.read_text("ascii", errors="replace").splitlines():
                record = self._codec.open(line)
                if record is not None:
                    yield record

    def _write(self, text: str) -> Path:
        """Write a file so that it is there as a whole or not at all, also after a loss of power."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{new_id().hex}{_SUFFIX}"
        unfinished = path.with_suffix(".unfinished")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return path
