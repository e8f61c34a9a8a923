"""Free ports: nobody listens on them, and no connection that goes out gets them."""

from pathlib import Path

import pytest

from api.local.ports import find_free_port
from api.local.valkey import EmbeddedValkey

LINUX_LOWEST_OUTGOING_PORT = 32_768


def test_free_port_can_be_listened_on() -> None:
    server = EmbeddedValkey(port=find_free_port())
    server.start()
    server.stop()


def test_free_ports_are_all_different_and_none_that_a_connection_may_get() -> None:
    lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    if int(lowest) < LINUX_LOWEST_OUTGOING_PORT:
        pytest.skip("this machine gives other ports to connections than Linux does by itself")
    ports = [find_free_port() for _ in range(500)]
    assert len(set(ports)) == len(ports)
    assert max(ports) < LINUX_LOWEST_OUTGOING_PORT
