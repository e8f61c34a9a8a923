"""Load on the endpoint: wrk where it is installed, else the generator in Python."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.accounts import AMOUNT_MAX_CENTS, EMAILS, Account
from tests.servers import ROOT

_SCRIPT = Path(__file__).with_name("allocate.lua")
_ONE_THREAD_CONNECTIONS_MAX = 256
_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Load:
    """What a generator saw; `refused` are answers other than 201."""

    requests: int
    refused: int
    socket_errors: int
    duration_s: float
    p50_us: int
    p90_us: int
    p99_us: int
    max_us: int
    generator_cpu_s: float = 0.0
    cents: int | None = None
    """Sum of the amounts that were answered 201, where the generator knows it."""

    @property
    def allocated(self) -> int:
        return self.requests - self.refused

    @property
    def per_second(self) -> float:
        return self.allocated / self.duration_s


@dataclass(frozen=True, slots=True)
class Demand:
    """What to send: as fast as the connections can, or `per_second` of them all together."""

    accounts: Sequence[Account]
    connections: int
    seconds: int
    emails: int = EMAILS
    email_stride: int = 1
    per_second: int = 0


class RunningLoad:
    """A generator under way."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)

    def wait(self) -> Load:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        output = self._process.stdout.read().decode()
        errors = self._process.stderr.read().decode()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode != 0:
            text = f"{self._command[0]} failed: {output} {errors}"
            raise RuntimeError(text)
        return Load(**json.loads(output.splitlines()[-1]), generator_cpu_s=usage.ru_utime + usage.ru_stime)

    def stop(self) -> None:
        if self._process.returncode is None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class LoadGenerator:
    """Starts loads; each has a seed of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._wrk = shutil.which("wrk")
        self._seed = 0

    @property
    def has_wrk(self) -> bool:
        return self._wrk is not None

    @property
    def name(self) -> str:
        return "wrk" if self._wrk else "tests/bench/generator.py (wrk is not installed)"

    def start(self, base_url: str, demand: Demand) -> RunningLoad:
        if self._wrk is None:
            return self.start_exact(base_url, demand)
        threads = 1 if demand.connections <= _ONE_THREAD_CONNECTIONS_MAX else 2
        options = [f"-t{threads}", f"-c{demand.connections}", f"-d{demand.seconds}s", f"--timeout={_TIMEOUT_S}s"]
        return RunningLoad(
            [
                self._wrk,
                *options,
                f"--script={_SCRIPT}",
                f"{base_url}/payout/create",
                "--",
                *self._arguments(demand),
                str(demand.connections),
            ]
        )

    def start_exact(self, base_url: str, demand: Demand) -> RunningLoad:
        """Use the generator in Python, which waits for every answer."""
        command = [sys.executable, "-m", "tests.bench.generator", f"{base_url}/payout/create"]
        return RunningLoad(
            [*command, str(demand.seconds), str(demand.connections), *self._arguments(demand)],
        )

    def _arguments(self, demand: Demand) -> list[str]:
        self._seed += 1
        key_file = self._directory / f"keys-{self._seed}"
        key_file.write_text("".join(f"{account.secret_key}\n" for account in demand.accounts))
        numbers = (self._seed, demand.emails, demand.email_stride, AMOUNT_MAX_CENTS, demand.per_second)
        return [str(key_file), *map(str, numbers)]
