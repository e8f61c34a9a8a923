"""The nginx configuration of *Behind a proxy* works as it is shown, but for ports and certificate."""

import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.local.ports import find_free_port
from tests.docs.pages import find_block
from tests.servers import System, open_account
from tests.tls import make_authority

_PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
_READY_WITHIN_S = 20.0

pytestmark = pytest.mark.skipif(_PROGRAM is None, reason="nginx is not installed (Debian: apt-get install nginx-light)")


@pytest.fixture
def proxied(system: System, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client that reaches the server by way of nginx."""
    assert _PROGRAM is not None
    authority = make_authority(tmp_path)
    port, (_, server_port) = find_free_port(), system.address
    shown = find_block("docs/operations/proxy.md", "Behind a proxy", "nginx")
    changes = {
        "127.0.0.1:8000": f"127.0.0.1:{server_port}",
        "server 127.0.0.1:8001 max_fails=0;": "",
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/payouts.pem": str(authority.certificate_file),
        "/etc/ssl/payouts.key": str(authority.key_file),
    }
    for old, new in changes.items():
        assert old in shown
        shown = shown.replace(old, new)
    temporary = "".join(
        f"{kind}_temp_path {tmp_path / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = tmp_path / "nginx.conf"
    # As root, nginx would become an account that may not look into the folder.
    user = "user root;\n" if tmp_path.owner() == "root" else ""
    configuration.write_text(
        f"{user}daemon off;\npid {tmp_path / 'pid'};\nerror_log {tmp_path / 'error.log'};\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{shown}}}\n"
    )
    process = subprocess.Popen([_PROGRAM, "-p", str(tmp_path), "-c", str(configuration)])
    trusted = ssl.create_default_context(cafile=str(authority.ca_file))
    try:
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusted, timeout=30) as client:
            wait_until_answered(client, tmp_path / "error.log")
            yield client
    finally:
        process.terminate()
        process.wait(20)


def wait_until_answered(client: httpx.Client, log: Path) -> None:
    give_up_at = time.monotonic() + _READY_WITHIN_S
    while True:
        try:
            assert client.get("/health/live").status_code == 200
        except httpx.TransportError:
            assert time.monotonic() < give_up_at, log.read_text()
            time.sleep(0.05)
        else:
            return


def test_call_is_paid_through_the_proxy(proxied: httpx.Client, system: System) -> None:
    account = open_account(system.database)
    answer = system.pay(proxied, account, "user@example.com", 10_000)
    assert answer.status_code == 201
    assert system.read_paid(account) == (1, 10_000)


def test_largest_batch_passes_and_metrics_do_not(proxied: httpx.Client, system: System) -> None:
    account = open_account(system.database)
    padding = f"{'r' * 200}"
    rows = "email,amount,reference\n" + "".join(f"p{n}@example.com,1,{padding}{n}\n" for n in range(10_000))
    answer = proxied.post(
        "/payout/batches", content=rows.encode(), headers=account.headers | {"Content-Type": "text/csv"}
    )
    assert answer.status_code == 202
    assert len(rows) > 2_000_000  # nginx takes 1 MiB where it is not told otherwise
    assert proxied.get("/metrics").status_code == 404
    assert httpx.get(f"{system.base_url}/metrics").status_code == 200


def test_dashboard_learns_that_the_visitor_speaks_https(proxied: httpx.Client, system: System) -> None:
    visited = proxied.get("/dashboard/sign-in")
    cookies = visited.headers.get_list("set-cookie")
    assert cookies
    assert all(re.search(r"; *secure", cookie, re.IGNORECASE) for cookie in cookies)
    plain = httpx.get(f"{system.base_url}/dashboard/sign-in").headers.get_list("set-cookie")
    assert not any(re.search(r"; *secure", cookie, re.IGNORECASE) for cookie in plain)
