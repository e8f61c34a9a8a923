"""A PgBouncer of the test's own, in transaction mode: Debian's program, where it is installed."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from api.local.ports import find_free_port
from api.local.postgres import POSTGRES_ACCOUNT

_PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
_PASSWORD = "pooler-password"  # noqa: S105
_READY_WITHIN_S = 20.0

_SETTINGS = """\
pool_mode = transaction
max_client_conn = 1000
default_pool_size = {pool_size}
server_connect_timeout = 2
server_login_retry = 1
query_wait_timeout = 5
tcp_keepidle = 1
tcp_keepintvl = 1
tcp_keepcnt = 3
tcp_user_timeout = 3000
"""


def pgbouncer_settings(pool_size: int = 20) -> str:
    """Return how it is set up; docs/operations/scaling.md shows the same."""
    return _SETTINGS.format(pool_size=pool_size)


class PgBouncer:
    """Stands before a PostgreSQL that listens on a unix socket. Root runs it as PostgreSQL's account.

    Where it is not installed, the test that wants it is skipped.
    """

    def __init__(self, postgres_url: str, *, pool_size: int = 20, extra_settings: str = "") -> None:
        if _PROGRAM is None:
            pytest.skip("pgbouncer is not installed")
        self._program = _PROGRAM
        self._target = sa.make_url(postgres_url)
        self._settings = pgbouncer_settings(pool_size) + extra_settings
        self._directory = Path(tempfile.mkdtemp(prefix="payouts-pgbouncer-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = find_free_port()

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")

    def url_of(self, database_name: str | None = None) -> str:
        """Return the URL of a database behind it: the one that it was made for, or another of the same server."""
        name = database_name or self._target.database
        user = self._target.username
        url = sa.URL.create("postgresql", user, _PASSWORD, "127.0.0.1", self.port, name)
        return url.render_as_string(hide_password=False)

    def start(self) -> None:
        config = self._directory / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={self._target.query['host']} port=5432\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {self._directory}/users\n{self._settings}"
        )
        (self._directory / "users").write_text(f'"{self._target.username}" "{_PASSWORD}"\n')
        account: dict[str, Any] = {}
        if os.getuid() == 0:  # PgBouncer refuses to run as root
            account = {"user": POSTGRES_ACCOUNT, "group": POSTGRES_ACCOUNT, "extra_groups": []}
            for path in (self._directory, *self._directory.iterdir()):
                shutil.chown(path, POSTGRES_ACCOUNT, POSTGRES_ACCOUNT)
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **account,
            )
        give_up_at = time.monotonic() + _READY_WITHIN_S
        while "process up" not in self.log.rpartition("\n---\n")[2]:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < give_up_at, self.log
            time.sleep(0.02)

    def kill(self) -> None:
        """As a crash would."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with (self._directory / "log").open("a") as log:
            log.write("\n---\n")

    def end(self) -> None:
        """Leave nothing of it behind."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._directory)


@contextmanager
def run_pgbouncer(postgres_url: str, *, pool_size: int = 20, extra_settings: str = "") -> Iterator[PgBouncer]:
    pooler = PgBouncer(postgres_url, pool_size=pool_size, extra_settings=extra_settings)
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.end()
