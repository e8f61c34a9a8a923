"""Certificates of the tests' own, and TLS in front of a server that has none."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trustme

_CHUNK_BYTES = 65_536


@dataclass(frozen=True)
class Authority:
    """A CA, and what it signed for a server."""

    ca_file: Path
    certificate_file: Path
    key_file: Path


def make_authority(directory: Path, *, address: str = "127.0.0.1") -> Authority:
    """Make a CA, and a certificate of it for the server at an address."""
    ca = trustme.CA(organization_name=f"CA of {directory.name}")
    server = ca.issue_cert(address)
    authority = Authority(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    ca.cert_pem.write_to_path(authority.ca_file)
    server.cert_chain_pems[0].write_to_path(authority.certificate_file)
    server.private_key_pem.write_to_path(authority.key_file)
    directory.chmod(0o755)
    authority.key_file.chmod(0o644)
    return authority


@contextmanager
def run_tls_in_front_of(port: int, authority: Authority) -> Iterator[int]:
    """Terminate TLS in front of 127.0.0.1:`port`; gives the port to connect to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate_file, authority.key_file)
    with _run_forwarder(
        ("127.0.0.1", 0), port, lambda client: context.wrap_socket(client, server_side=True)
    ) as listening:
        yield listening


@contextmanager
def forward(host: str, port: int) -> Iterator[None]:
    """Let a server of 127.0.0.1 be reached at another address, too."""
    with _run_forwarder((host, port), port, lambda client: client):
        yield


@contextmanager
def _run_forwarder(
    address: tuple[str, int], port: int, accept_client: Callable[[socket.socket], socket.socket]
) -> Iterator[int]:
    listener = socket.create_server(address)
    opened: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=[client], daemon=True).start()

    def serve(client: socket.socket) -> None:
        with suppress(OSError):
            ours = accept_client(client)
            theirs = socket.create_connection(("127.0.0.1", port))
            opened.extend([ours, theirs])
            threading.Thread(target=pump, args=[theirs, ours], daemon=True).start()
            pump(ours, theirs)

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        for each in opened:
            each.close()
