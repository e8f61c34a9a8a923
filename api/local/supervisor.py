"""Runs the Procfile's processes: one log, those that end are started again, all are stopped together."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from api.local.procfile import parse_procfile
from core.errors import UserError

_RESTART_AFTER_S = 1.0
_RESTART_OPTIONAL_AFTER_S_MAX = 60.0
_STOP_WITHIN_S = 8.0
_POLL_S = 0.1


class SupervisedProcess:
    """One Procfile line in a session of its own, so that a Ctrl-C reaches it through us alone."""

    def __init__(
        self, name: str, command: str, environment: Mapping[str, str], *, name_width: int, is_optional: bool
    ) -> None:
        self.name = name
        self.starts = 0
        self.is_optional = is_optional
        self.start_again_at: float | None = None
        self._command = command
        self._environment = dict(environment)
        self._prefix = f"{name:<{name_width}} | "
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> int:
        """Start it, copy each line that it prints to our standard output, and return its process id."""
        self.starts += 1
        self.start_again_at = None
        self._process = subprocess.Popen(  # noqa: S602 (a Procfile line is a shell command)
            self._command,
            shell=True,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._copy_output, args=[self._process], daemon=True).start()
        return self._process.pid

    def is_running(self) -> bool:
        """Tell whether it runs."""
        return self._process is not None and self._process.poll() is None

    def restart_after_s(self) -> float:
        """Return how long to wait before the next start: longer each time, where nothing depends on it."""
        return min(2.0**self.starts, _RESTART_OPTIONAL_AFTER_S_MAX) if self.is_optional else _RESTART_AFTER_S

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process is not None and self.is_running():
            self._process.terminate()

    def kill(self) -> None:
        """End it, and whatever it started and left behind."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _copy_output(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # noqa: S101 (a pipe was asked for)
        with process.stdout:
            for line in process.stdout:
                if line.strip():
                    print_line(self._prefix + line.rstrip("\n"))


def print_line(line: str) -> None:
    """Write a whole line at once; a reader who has gone is no reason to fail."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        pass


class Server(Protocol):
    """What runs beside the Procfile's processes, is started and stopped by others, and started again by us."""

    name: str

    def is_running(self) -> bool:
        """Tell whether it runs."""

    def start(self) -> object:
        """Start it."""


class Supervisor:
    """Keeps all of a Procfile's processes, and the servers that they use, running until it is told to stop."""

    def __init__(
        self,
        procfile: Path,
        environment: Mapping[str, str],
        *,
        servers: Sequence[Server] = (),
        optional: Collection[str] = (),
        left_out: Collection[str] = (),
        on_start: Callable[[int], None] | None = None,
    ) -> None:
        commands: dict[str, str] = parse_procfile(procfile.read_text())
        width = max(len(name) for name in commands)
        self._processes = [
            SupervisedProcess(name, command, environment, name_width=width, is_optional=name in optional)
            for name, command in commands.items()
            if name not in left_out
        ]
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._on_start = on_start
        self._servers = servers

    def start(self) -> None:
        """Start all of them, and from then on what ends; `on_start` is told each process id."""
        for process in self._processes:
            self._start(process)
        self._watcher.start()

    def _watch(self) -> None:
        """Start again what ends, until `stop`."""
        while not self._stopping.wait(_POLL_S):
            for server in self._servers:
                self._restart_server(server)
            for process in self._processes:
                self._restart(process)

    def _restart(self, process: SupervisedProcess) -> None:
        if process.is_running() or self._stopping.is_set():
            return
        now = time.monotonic()
        if process.start_again_at is None:
            print_line(f"{process.name} has ended; it is started again")
            process.start_again_at = now + process.restart_after_s()
        elif now >= process.start_again_at:
            self._start(process)

    def _restart_server(self, server: Server) -> None:
        if server.is_running() or self._stopping.is_set():
            return
        print_line(f"{server.name} has ended; it is started again")
        try:
            server.start()
        except UserError as error:
            print_line(f"Error: {error}")
            self._stopping.wait(_RESTART_AFTER_S)

    def _start(self, process: SupervisedProcess) -> None:
        pid = process.start()
        if self._on_start is not None:
            self._on_start(pid)

    def restarts(self) -> int:
        """Return how often something had to be started again that others depend on."""
        return sum(process.starts - 1 for process in self._processes if not process.is_optional)

    def stop(self) -> None:
        """End all of them: by asking, and after a few seconds without asking."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()  # it may be about to start something
        for process in self._processes:
            process.terminate()
        give_up_at = time.monotonic() + _STOP_WITHIN_S
        while any(process.is_running() for process in self._processes) and time.monotonic() < give_up_at:
            time.sleep(0.02)
        for process in self._processes:
            process.kill()
