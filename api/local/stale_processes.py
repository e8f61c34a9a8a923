"""What a killed `payouts up` left running: known by process id and start time, ended by the next one."""

import os
import signal
import threading
from contextlib import suppress

from api.local.data_dir import DataDir

_END_WITHIN_S = 5.0


class StartedProcesses:
    """Remembers, in the data directory, the processes that lead a session of their own.

    PostgreSQL is not among them: it is taken over. Without psutil, which comes with the embedded servers, nothing
    is remembered.
    """

    def __init__(self, data_dir: DataDir) -> None:
        self._data_dir = data_dir
        self._lock = threading.Lock()

    def remember(self, pid: int) -> None:
        """Remember a process that was just started."""
        try:
            import psutil
        except ModuleNotFoundError:
            return
        with suppress(psutil.Error), self._lock:
            started = {str(pid): repr(psutil.Process(pid).create_time())}
            self._data_dir.write_processes(self._data_dir.read_processes() | started)

    def end_those_left(self) -> None:
        """End what an earlier `payouts up` here could not stop, with all that it had started."""
        remembered = self._data_dir.read_processes()
        if not remembered:
            return
        import psutil

        left = []
        for pid, created in remembered.items():
            with suppress(psutil.Error):
                process = psutil.Process(int(pid))
                if repr(process.create_time()) == created:
                    process.send_signal(signal.SIGINT)
                    left.append(process)
        psutil.wait_procs(left, timeout=_END_WITHIN_S)
        for process in left:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        self.forget()

    def forget(self) -> None:
        """Remember nothing: all have ended."""
        self._data_dir.write_processes({})
