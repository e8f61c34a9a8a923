"""A real RabbitMQ for the tests, from Debian's package, beside whatever else runs on the machine."""

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import amqp
import pytest

from api.local.ports import find_free_port
from tests.servers import make_directory
from tests.tls import Authority

_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_READY_WITHIN_S = 90.0
_POLL_S = 0.1

needs_rabbitmq = pytest.mark.skipif(
    not (_SERVER.exists() and shutil.which("epmd")), reason="needs Debian's package rabbitmq-server"
)


class RabbitMQ:
    """One node on 127.0.0.1 with files, ports, name and epmd of its own; it may be killed and started again."""

    def __init__(self, directory: Path, authority: Authority | None = None) -> None:
        self.port = find_free_port()
        self.tls_port = find_free_port()
        self.password = secrets.token_hex(8)
        self._directory = directory
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        epmd_port = find_free_port()
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "default_user = payouts",
            f"default_pass = {self.password}",
            "log.console = false",
            "loopback_users = none",
        ]
        if authority is not None:
            lines += [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"ssl_options.certfile = {authority.certificate_file}",
                f"ssl_options.keyfile = {authority.key_file}",
            ]
        (directory / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (directory / "enabled_plugins").write_text("[].\n")
        self._environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_NODENAME": f"payouts-{secrets.token_hex(4)}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(find_free_port()),
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
        }

    @property
    def url(self) -> str:
        return f"amqp://payouts:{self.password}@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Start the node, and return when it serves."""
        if self._epmd is None:  # by us, so that the node leaves none behind
            self._epmd = subprocess.Popen(["epmd"], env=self._environment)
        self._node = subprocess.Popen(
            [_SERVER],
            env=self._environment,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        give_up_at = time.monotonic() + _READY_WITHIN_S
        while not self._is_ready():
            assert self._node.poll() is None, self._logs()
            assert time.monotonic() < give_up_at, self._logs()
            time.sleep(_POLL_S)

    def connect(self, virtual_host: str = "/") -> amqp.Connection:
        """Open a connection of the test's own."""
        connection = amqp.Connection(
            f"127.0.0.1:{self.port}",
            userid="payouts",
            password=self.password,
            virtual_host=virtual_host,
            connect_timeout=5,
        )
        connection.connect()
        return connection

    def count_messages(self, queue: str, virtual_host: str = "/") -> int:
        """Return how many messages are ready to be delivered."""
        with self.connect(virtual_host) as connection:
            return int(connection.channel().queue_declare(queue, passive=True).message_count)

    def signal(self, number: signal.Signals) -> None:
        """Signal every process of the node."""
        assert self._node is not None
        os.killpg(self._node.pid, number)

    def kill(self) -> None:
        """As a crash of its machine would; what it has written stays."""
        if self._node is not None:
            self.signal(signal.SIGKILL)
            self._node.wait()
            self._node = None

    def end(self) -> None:
        """Leave nothing behind."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run an administrator's command."""
        result = subprocess.run(
            [_SERVER.with_name("rabbitmqctl"), *arguments],
            env=self._environment,
            cwd=self._directory,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def _is_ready(self) -> bool:
        try:
            self.connect().close()
        except (OSError, amqp.AMQPError):
            return False
        return True

    def _logs(self) -> str:
        return "".join(path.read_text(errors="replace")[-4000:] for path in self._directory.glob("log/*.log"))


@contextmanager
def run_rabbitmq(authority: Authority | None = None) -> Iterator[RabbitMQ]:
    directory = make_directory("rabbitmq")
    server = RabbitMQ(directory, authority)
    try:
        server.start()
        yield server
    finally:
        server.end()
        shutil.rmtree(directory, ignore_errors=True)
