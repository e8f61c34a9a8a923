"""The data directory of `payouts up`: what it keeps there, and that only one uses it at a time."""

import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

import msgspec

from core.errors import UserError

DEFAULT_DATA_DIR = Path(".payouts")


class DataDirError(UserError):
    """The directory cannot be used; the text says why."""


class DataDir:
    """Files: `lock`, `settings.json` (how to reach what runs), `secrets.json`, `processes.json`, `postgres/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Take the directory for this process, creating it where needed.

        Raises:
            DataDirError: it cannot be created, or another process has it.

        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (self.path / "lock").open("a+")
        except OSError as error:
            text = f"{self.path} cannot be used: {error.strerror}"
            raise DataDirError(text) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            text = f"payouts up is already running on {self.path}; stop it first, or choose another --data-dir"
            raise DataDirError(text) from None

    def read_secret(self, name: str) -> str | None:
        """Return a secret that was written before."""
        return self._read("secrets.json").get(name)

    def write_secret(self, name: str, value: str) -> None:
        """Keep a secret in a file that only its owner can read."""
        self._write("secrets.json", self._read("secrets.json") | {name: value})

    def read_or_make_secret(self, name: str) -> str:
        """Return a secret, made at random the first time."""
        value = self.read_secret(name)
        if value is None:
            value = secrets.token_hex(32)
            self.write_secret(name, value)
        return value

    def read_settings(self) -> dict[str, str]:
        """Return the environment variables that the last `payouts up` here gave its processes."""
        return self._read("settings.json")

    def write_settings(self, variables: dict[str, str]) -> None:
        """Keep the environment variables for commands that name this directory."""
        self._write("settings.json", variables)

    def read_processes(self) -> dict[str, str]:
        """Return the start times, by process id, of what was started here."""
        return self._read("processes.json")

    def write_processes(self, processes: dict[str, str]) -> None:
        """Keep what was started here."""
        self._write("processes.json", processes)

    def _read(self, name: str) -> dict[str, str]:
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            text = f"{self.path / name} cannot be read"
            raise DataDirError(text) from None

    def _write(self, name: str, values: dict[str, str]) -> None:
        """Replace a file as a whole, so that a crash leaves the old one or the new one."""
        new = self.path / f"{name}.new"
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode(values))
        new.replace(self.path / name)
