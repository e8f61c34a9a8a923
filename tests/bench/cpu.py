"""Processor time of the processes that serve: where the time goes, part by part."""

import time
from collections import defaultdict

import psutil

_PART_BY_WORD = {"postgres": "postgres", "valkey-server": "valkey", "uvicorn": "api", "celery": "worker"}
"""By a word of the command line."""


def find_servers() -> dict[str, list[psutil.Process]]:
    """Return our own child processes by what they are."""
    found: dict[str, list[psutil.Process]] = defaultdict(list)
    for process in psutil.Process().children():
        try:
            words = [word.rpartition("/")[2] for word in process.cmdline()]
        except psutil.Error:
            continue
        part = next((part for word, part in _PART_BY_WORD.items() if word in words), None)
        if part is not None:
            found[part].append(process)
    return found


def read_cpu_s() -> dict[str, float]:
    """Return the seconds that each part has used so far, with its children, also those that ended."""
    return {part: sum(map(_cpu_s, processes)) for part, processes in find_servers().items()}


def read_machine_cpu_s() -> float:
    """Return the seconds that the whole machine has worked so far, with what its host took from it."""
    times = psutil.cpu_times()
    # Guests are within user.
    idle = times.idle + getattr(times, "iowait", 0.0)
    return float(sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))


class CpuWatch:
    """Processor time since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._servers = read_cpu_s()
        self._machine = read_machine_cpu_s()
        self._own = sum(psutil.Process().cpu_times()[:2])

    def read(self, generator_s: float) -> tuple[dict[str, float], float]:
        """Return the seconds of each part, and how many cores everything else was at work with."""
        servers = {part: seconds - self._servers.get(part, 0.0) for part, seconds in read_cpu_s().items()}
        own = sum(psutil.Process().cpu_times()[:2]) - self._own
        others = read_machine_cpu_s() - self._machine - sum(servers.values()) - generator_s - own
        return servers, max(others, 0.0) / (time.monotonic() - self._started)


def _cpu_s(process: psutil.Process) -> float:
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def read_memory_bytes() -> dict[str, int]:
    """Return the proportional set size of API and worker, with their children; off Linux, what is theirs alone."""
    return {
        part: sum(_memory_bytes(each) for process in processes for each in [process, *process.children(recursive=True)])
        for part, processes in find_servers().items()
        if part in {"api", "worker"}
    }


def _memory_bytes(process: psutil.Process) -> int:
    info = process.memory_full_info()
    return int(getattr(info, "pss", info.uss))
