"""Free TCP ports of this machine."""

import contextlib
import secrets
import socket

from api.local.wheels import EmbeddedServerError

_PORTS = range(10_000, 32_768)
"""Above what is well known, and below what Linux gives to connections that go out."""
_given_ports: set[int] = set()


def find_free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on; never the same twice.

    Not one that the system would name: it gives the same ones to connections that go out, so that a server which takes
    seconds to start, or is started again, may find it taken.
    """
    for _ in range(len(_PORTS)):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given_ports:
                _given_ports.add(port)
                return port
    text = f"no TCP port of {_PORTS.start} to {_PORTS.stop - 1} is free"
    raise EmbeddedServerError(text)
