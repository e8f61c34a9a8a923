"""The programs of *First integration* run as they are shown, and pay once whatever breaks on the way."""

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.docs.pages import find_block
from tests.servers import Account, System, open_account

PAGE = "docs/first-integration.md"
_CHUNK_BYTES = 65_536


def python(folder: Path) -> list[str]:
    (folder / "pay.py").write_text(find_block(PAGE, "Python", "python"))
    return [sys.executable, "pay.py"]


def node(folder: Path) -> list[str]:
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    (folder / "pay.mjs").write_text(find_block(PAGE, "Node", "js"))
    return ["node", "pay.mjs"]


def go(folder: Path) -> list[str]:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    (folder / "main.go").write_text(find_block(PAGE, "Go", "go"))
    subprocess.run(["go", "build", "-o", "pay", "main.go"], cwd=folder, check=True, timeout=110)
    return ["./pay"]


def curl(folder: Path) -> list[str]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    return ["bash", "-c", find_block(PAGE, "curl")]


EXAMPLES = [python, node, go, curl]
needs = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)


def run(command: list[str], folder: Path, url: str, account: Account, system: System) -> str:
    environment = system.environment | {"PAYOUTS_URL": url, "PAYOUTS_KEY": account.secret_key}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@needs
def test_example_pays_once_however_often_it_is_run(
    example: Callable[[Path], list[str]], system: System, tmp_path: Path
) -> None:
    account = open_account(system.database)
    command = example(tmp_path)
    for _ in range(2):
        said = run(command, tmp_path, system.base_url, account, system)
        assert "@example.com has $100.00" in said or '"hash"' in said
    assert system.read_paid(account) == (1, 10_000)


@needs
def test_example_pays_once_where_the_first_answer_is_lost(
    example: Callable[[Path], list[str]], system: System, tmp_path: Path
) -> None:
    account = open_account(system.database)
    command = example(tmp_path)
    with lose_first_answer(system) as url:
        run(command, tmp_path, url, account, system)
    assert system.read_paid(account) == (1, 10_000)


@needs
def test_example_reports_a_refusal_and_pays_nothing(
    example: Callable[[Path], list[str]], system: System, tmp_path: Path
) -> None:
    account = open_account(system.database, funds_cents=1)
    with pytest.raises(AssertionError) as caught:
        # curl prints the answer, and ends with 0.
        assert "Insufficient" not in run(example(tmp_path), tmp_path, system.base_url, account, system)
    assert "Insufficient payout balance" in str(caught.value) or "top the payout balance up" in str(caught.value)
    assert system.read_paid(account) == (0, 0)


@contextmanager
def lose_first_answer(system: System) -> Iterator[str]:
    """Give the URL of a way to the server that breaks once, when the first answer is on it."""
    lost = threading.Event()

    def serve(near: socket.socket) -> None:
        with near, socket.create_connection(system.address) as far:
            sending = threading.Thread(target=copy, args=(near, far), daemon=True)
            sending.start()
            with suppress(OSError):
                while data := far.recv(_CHUNK_BYTES):
                    if not lost.is_set():
                        lost.set()
                        near.shutdown(socket.SHUT_RDWR)
                        return
                    near.sendall(data)
                near.shutdown(socket.SHUT_WR)

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                target.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=serve, args=(near,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert lost.is_set()
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
