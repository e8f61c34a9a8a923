"""A body that does not come is the caller's fault, and told so."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from litestar import Litestar, post

from api.web.protocol import HTTPProtocol
from api.web.request import HttpRequest
from api.web.request_body import read_body

HEAD = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n"


@pytest.fixture
def answers() -> list[int]:
    return []


@pytest.fixture
def address(answers: list[int]) -> Iterator[tuple[str, int]]:
    @post("/")
    async def echo(request: HttpRequest) -> bytes:
        return await read_body(request, 0.3)

    async def note_status(scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                answers.append(message["status"])
            await send(message)

        await Litestar([echo], openapi_config=None)(scope, receive, note)

    config = uvicorn.Config(note_status, port=0, http=HTTPProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def test_body_that_comes_is_read(address: tuple[str, int], answers: list[int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(HEAD + b"12345")
        assert connection.recv(10_000).endswith(b"12345")
    assert answers == [201]


def test_body_that_is_late_is_a_time_out(address: tuple[str, int], answers: list[int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(HEAD + b"123")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 408 ")
    assert answers == [408]


def test_caller_that_goes_is_no_failure_of_ours(address: tuple[str, int], answers: list[int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(HEAD + b"123")
    for _ in range(100):
        if answers:
            break
        time.sleep(0.02)
    assert answers == [400]
