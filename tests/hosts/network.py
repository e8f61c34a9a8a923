"""Hosts of one network: Linux network namespaces, each with a cable to a bridge on which the test itself sits."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from uuid import uuid4

import pytest

_NET = "198.18"  # of the range that is set aside for tests of networks


@dataclass(frozen=True)
class Host:
    """A namespace with an address, and the end of its cable that is plugged into the bridge."""

    name: str
    namespace: str
    address: str
    plug: str


class Network:
    """A bridge, and hosts whose cables can be pulled."""

    def __init__(self, names: Sequence[str]) -> None:
        self._id = uuid4().hex[:6]
        self._subnet = f"{_NET}.{int(self._id[:2], 16)}"
        self._bridge = f"pay{self._id}"
        self.address = f"{self._subnet}.1"
        """The test's own, with PostgreSQL and Valkey: the host that all others need."""
        self.hosts = {
            name: Host(name, f"payouts-{self._id}-{name}", f"{self._subnet}.{10 + number}", f"pay{self._id}-{number}")
            for number, name in enumerate(names)
        }

    def build(self, stack: ExitStack) -> None:
        """Make everything; the stack takes it away again."""
        stack.callback(_ip, "link", "delete", self._bridge)
        _ip("link", "add", self._bridge, "type", "bridge", "forward_delay", "0")
        _ip("address", "add", f"{self.address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for host in self.hosts.values():
            _ip("netns", "add", host.namespace)
            stack.callback(_ip, "netns", "delete", host.namespace)  # its end of the cable goes with it
            _ip("link", "add", host.plug, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("link", "set", host.plug, "master", self._bridge, "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")

    def cut(self, name: str) -> None:
        """Pull a host's cable: nothing comes or goes, and nobody is told."""
        _ip("link", "set", self.hosts[name].plug, "down")

    def restore(self, name: str) -> None:
        """Plug it in again."""
        _ip("link", "set", self.hosts[name].plug, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def find_obstacle() -> str | None:
    """Tell why there can be no network namespaces here."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    if os.getuid() != 0:
        return "network namespaces are for root"
    try:
        with ExitStack() as stack:
            Network(["probe"]).build(stack)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted here: {error.stderr.strip()}"
    return None


@contextmanager
def run_network(*names: str) -> Iterator[Network]:
    """Build a network, or skip the test where that is not possible."""
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    with ExitStack() as stack:
        network = Network(names)
        network.build(stack)
        yield network
