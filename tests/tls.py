"""Certificates of the tests' own, and TLS in front of a server that has none."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_CHUNK_BYTES = 65_536


@dataclass(frozen=True)
class Authority:
    """A CA, and what it signed for a server."""

    ca_file: Path
    certificate_file: Path
    key_file: Path


def make_authority(directory: Path, *, address: str = "127.0.0.1") -> Authority:
    """Make a CA, and a certificate of it for the server at an address."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA of {directory.name}")])
    now = datetime.datetime.now(datetime.UTC)

    def build(subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    ca = (
        build(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    certificate = (
        build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")]), key.public_key())
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    authority = Authority(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    authority.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    authority.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    authority.key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
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
