"""What uvicorn writes through our transport arrives whole, in order, and at its reader's pace."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
import uvloop

from api.http_protocol import HELD_BYTES_MAX, HTTPProtocol

App = Callable[[Any, Any, Any], Awaitable[None]]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def on_each_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on uvicorn's event loop and on Python's."""

    @pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test())

    return run


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[int]:
    """Serve an application; gives the port."""
    config = uvicorn.Config(app, port=0, http=HTTPProtocol, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve([listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def answer(send: Any, body: bytes, *, more_body: bool = False) -> None:
    if not more_body:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more_body})


async def echo_path(scope: Any, _: Any, send: Any) -> None:
    await answer(send, scope["path"].encode())


def request(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return await asyncio.wait_for(reader.readexactly(length), 10)


@on_each_loop
async def test_head_and_body_arrive_together() -> None:
    async with serving(echo_path) as port:
        for _ in range(20):
            loop = asyncio.get_running_loop()
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", port))
                await loop.sock_sendall(client, request("/whole"))
                assert (await loop.sock_recv(client, 10_000)).endswith(b"\r\n\r\n/whole")


@on_each_loop
async def test_requests_sent_without_waiting_are_answered_in_their_order() -> None:
    paths = [f"/{number}" for number in range(50)]
    async with serving(echo_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(request(path) for path in paths))
        assert [(await read_answer(reader)).decode() for _ in paths] == paths
        writer.close()


@on_each_loop
async def test_last_answer_of_a_connection_comes_before_its_end() -> None:
    async with serving(echo_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("/last", "Connection: close"))
        assert await read_answer(reader) == b"/last"
        assert await reader.read() == b""
        writer.close()


@on_each_loop
async def test_caller_that_sends_nothing_more_gets_its_answer() -> None:
    async with serving(echo_path) as port:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("/asked"))
            writer.write_eof()
            assert await read_answer(reader) == b"/asked"
            writer.close()


@asynccontextmanager
async def answering_at_once(app: App, paths: Sequence[str]) -> AsyncIterator[tuple[list[Connection], asyncio.Event]]:
    """Have a request for each path wait on a connection of its own; set the event to answer them."""
    together = asyncio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await together.wait()
        await app(scope, receive, send)

    async with serving(wait) as port:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in paths]
        for (_, writer), path in zip(connections, paths, strict=True):
            writer.write(request(path))
        await asyncio.sleep(0.2)
        yield connections, together
        for _, writer in connections:
            writer.close()


@on_each_loop
async def test_response_that_cannot_be_written_costs_others_nothing() -> None:
    async def break_some(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/broken":
            body: Any = "no bytes"
            await answer(send, body)
        else:
            await echo_path(scope, receive, send)

    async with answering_at_once(break_some, ["/broken", "/whole"] * 3) as (connections, together):
        together.set()
        for reader, _ in connections[1::2]:
            assert await read_answer(reader) == b"/whole"
        for reader, _ in connections[::2]:
            assert await reader.read() == b""


@on_each_loop
async def test_caller_that_has_gone_costs_others_nothing() -> None:
    async with answering_at_once(echo_path, ["/all"] * 9) as (connections, together):
        for _, writer in connections[::2]:
            writer.transport.abort()
        together.set()  # in the same turn as the server learns of it
        for reader, _ in connections[1::2]:
            assert await read_answer(reader) == b"/all"


@on_each_loop
async def test_long_answer_goes_at_its_readers_pace() -> None:
    """Without a reader, the sender stops when the buffers are full; with one, everything arrives."""
    chunk, count = bytes(range(256)) * 64, 4_000  # 64 MiB
    sent = 0

    async def stream(_: Any, __: Any, send: Any) -> None:
        nonlocal sent
        headers = [(b"content-length", str(len(chunk) * count).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _number in range(count):
            await answer(send, chunk, more_body=True)
            sent += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with serving(stream) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=HELD_BYTES_MAX)
        writer.write(request("/long"))
        await asyncio.sleep(0.5)
        assert 0 < sent < count / 2
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(count):
            assert await asyncio.wait_for(reader.readexactly(len(chunk)), 10) == chunk
        writer.close()
    assert sent == count
