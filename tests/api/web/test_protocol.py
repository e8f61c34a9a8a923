"""What uvicorn reads is what was asked; what it writes arrives whole, in order, and at its reader's pace."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
import uvloop

from api.web.protocol import HEAD_BYTES_MAX, HELD_BYTES_MAX, HTTPProtocol

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


class Slow:
    """Answers with path and body, a while after it was asked; keeps what it was asked, and what broke off."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, dict[str, str]]] = []
        self.broken_off = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.broken_off += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.asked.append((scope["path"], body, {name.decode(): value.decode() for name, value in scope["headers"]}))
        await asyncio.sleep(0.01)
        await answer(send, scope["path"].encode() + b" " + body)


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


async def exchange(port: int, *segments: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number, segment in enumerate(segments):
        if number:
            await asyncio.sleep(0.003)
        writer.write(segment)
    return reader, writer


async def read_refusal(reader: asyncio.StreamReader, status: bytes = b"400 Bad Request") -> None:
    """Read the last that a connection brings."""
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    assert first == b"HTTP/1.1 " + status
    assert {header.partition(b":")[0] for header in headers} == {
        b"content-type", b"content-length", b"x-request-id", b"connection",
    }  # fmt: skip
    assert f"content-length: {len(body)}".encode() in headers
    assert set(json.loads(body)) == {"error"}


NO_REQUEST = [
    b" ",
    b"x",
    b"\x16\x03\x01",
    b"\x0c\r\n",
    b"GET /late HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@on_each_loop
async def test_what_is_no_request_is_refused_behind_the_answers_that_are_owed() -> None:
    async with serving(Slow()) as port:
        for bad in NO_REQUEST:
            asked = [post(f"/{number}", b"body") for number in range(3)]
            for segments in ([asked[0] + bad], [asked[0], bad], [b"".join(asked) + bad], [*asked, bad], [bad]):
                reader, writer = await exchange(port, *segments)
                for number in range(b"".join(segments).count(b"POST")):
                    assert await read_answer(reader) == f"/{number} body".encode(), (bad, segments)
                await read_refusal(reader)
                writer.close()


@on_each_loop
async def test_request_whose_body_is_broken_is_refused_once_and_never_carried_out() -> None:
    app = Slow()
    chunked = b"POST /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
    async with serving(app) as port:
        for number, segments in enumerate([[chunked + b"nonsense\r\n"], [chunked, b"nonsense\r\n"]]):
            reader, writer = await exchange(port, *segments)
            await read_refusal(reader)
            writer.close()
            reader, writer = await exchange(port, post("/first", b"1") + segments[0], *segments[1:])
            assert await read_answer(reader) == b"/first 1"
            await read_refusal(reader)
            writer.close()
            assert [path for path, _, _ in app.asked] == ["/first"] * (number + 1)
        # What waits for its body in turn has never begun.
        assert app.broken_off == 2


@on_each_loop
async def test_offers_of_another_protocol_are_ignored() -> None:
    h2c = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    websocket = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AA=="]
    as_request = post("/smuggled", b"")
    app = Slow()
    async with serving(app) as port:
        for offer in (h2c, websocket):
            chunked = "\r\n".join(["POST /chunked HTTP/1.1", *offer, "Transfer-Encoding: chunked", "", ""]).encode()
            chunks = b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"
            sent = {
                post("/whole", b"hello", *offer): b"/whole hello",
                post("/hidden", as_request, *offer): b"/hidden " + as_request,
                chunked + chunks: b"/chunked abcde",
                request("/nothing", *offer): b"/nothing ",
                post("/plain", b"plain"): b"/plain plain",
            }
            for whole, expected in sent.items():
                end = whole.index(b"\r\n\r\n") + 4
                for cut in (end, end + 1, end - 1, end - 3, 10):
                    reader, writer = await exchange(port, *[part for part in (whole[:cut], whole[cut:]) if part])
                    assert await read_answer(reader) == expected
                    writer.write(post("/next", b"n"))  # on the same connection
                    assert await read_answer(reader) == b"/next n"
                    writer.close()
            reader, writer = await exchange(port, b"".join(sent) * 3)
            for expected in [*sent.values()] * 3:
                assert await read_answer(reader) == expected
            writer.close()
            reader, writer = await exchange(port, post("/last", b"bye", *offer, "Connection: close, upgrade"))
            assert await read_answer(reader) == b"/last bye"
            assert await reader.read() == b""
            writer.close()
    assert not any(path == "/smuggled" for path, _, _ in app.asked)


@on_each_loop
async def test_trailers_are_no_headers() -> None:
    app = Slow()
    head = b"POST /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n"
    end = b"0\r\nAuthorization: Bearer trailing\r\nExpect: 100-continue\r\n\r\n"
    async with serving(app) as port:
        for segments in (
            [head + b"2\r\nab\r\n" + end + request("/next")],
            [head, b"2\r\nab\r\n" + end, request("/next")],
        ):
            reader, writer = await exchange(port, *segments)
            assert await read_answer(reader) == b"/chunked ab"
            assert await read_answer(reader) == b"/next "
            writer.close()
    assert len(app.asked) == 4
    assert not any("authorization" in headers for _, _, headers in app.asked)


@on_each_loop
async def test_heads_have_a_limit_and_bodies_have_none_here() -> None:
    async with serving(Slow()) as port:
        fits, too_long = f"X-A: {'a' * (HEAD_BYTES_MAX - 200)}", f"X-A: {'a' * HEAD_BYTES_MAX}"
        many = [f"X-{number}: {number}" for number in range(10_000)]
        body = b"b" * (1 << 20)
        reader, writer = await exchange(port, post("/fits", body, fits))
        assert await read_answer(reader) == b"/fits " + body
        writer.write(b"".join(post(f"/{number}", b"b" * 1_000) for number in range(300)))
        for number in range(300):
            assert (await read_answer(reader)).startswith(f"/{number} ".encode())
        writer.close()
        trailing = b"POST /t HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-A: "
        for sent in (
            [request("/long", too_long)],
            [request("/many", *many)],
            [request(f"/{'p' * HEAD_BYTES_MAX}")],
            [request("/never", too_long)[:-4]] * 8,
            [trailing, *[b"a" * 100_000] * 8],
        ):
            reader, writer = await exchange(port, post("/first", b"1"), *sent)
            assert await read_answer(reader) == b"/first 1"
            await read_refusal(reader, b"431 Request Header Fields Too Large")
            writer.close()


@on_each_loop
async def test_caller_that_sends_nothing_more_gets_answers_that_take_a_while() -> None:
    async with serving(Slow()) as port:
        for count in (1, 3):
            reader, writer = await exchange(port, b"".join(post(f"/{number}", b"body") for number in range(count)))
            writer.write_eof()
            for number in range(count):
                assert await read_answer(reader) == f"/{number} body".encode()
            assert await asyncio.wait_for(reader.read(), 1) == b""
            writer.close()


@on_each_loop
async def test_what_is_asked_does_not_depend_on_how_it_arrives() -> None:
    app = Slow()
    offer = ["Connection: Upgrade", "Upgrade: h2c"]
    chunked = b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;extension=1\r\nc\r\n0\r\nX-Trailer: 1\r\n\r\n"
    stream = b"".join(
        [
            post("/1", b"plain", "X-A: 1"),
            b"POST /2 HTTP/1.1\r\nX-A: 2\r\n" + chunked,
            post("/3", b"offered", *offer),
            request("/4", *offer),
            b"POST /5 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n" + chunked,
            request("/6", "X-A: 6"),
            post("/7", b"broken", "X-A: 7")[:-1] + b"n\x00",
        ]
    )
    bodies = [b"plain", b"abc", b"offered", b"", b"abc", b"", b"broken"]
    async with serving(app) as port:
        for seed in range(40):
            chosen = random.Random(seed)  # noqa: S311
            ends = sorted(chosen.sample(range(1, len(stream)), chosen.randrange(1, 12)))
            segments = [stream[start:end] for start, end in pairwise([0, *ends, len(stream)])]
            app.asked.clear()
            reader, writer = await exchange(port, *segments)
            for number, body in enumerate(bodies, start=1):
                assert await read_answer(reader) == f"/{number} ".encode() + body
            await read_refusal(reader)
            writer.close()
            assert [headers.get("x-a") for _, _, headers in app.asked] == ["1", "2", None, None, None, "6", "7"]
            assert not any("x-trailer" in headers for _, _, headers in app.asked)


@on_each_loop
async def test_caller_that_stops_within_a_request_gets_the_answers_before_it() -> None:
    first, second = post("/first", b"1"), post("/second", b"2")
    cut = post("/never", b"123456789")[:-7]
    broken = b"POST /never HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    app = Slow()
    async with serving(app) as port:
        for sent, is_refused in ((cut, False), (cut[:20], False), (broken, True)):
            for whole in ([first], [first, second]):
                reader, writer = await exchange(port, b"".join(whole) + sent)
                writer.write_eof()
                for expected in [b"/first 1", b"/second 2"][: len(whole)]:
                    assert await read_answer(reader) == expected
                if is_refused:
                    await read_refusal(reader)
                assert await asyncio.wait_for(reader.read(), 5) == b""
                writer.close()
    assert not any(path == "/never" for path, _, _ in app.asked)


@on_each_loop
async def test_caller_that_sends_on_behind_a_broken_body_can_read_its_refusal() -> None:
    head = b"POST /broken HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(Slow()) as port:
        for body in (b"zz\r\n", b"%x\r\n%b\r\nzz\r\n" % (200_000, b"b" * 200_000)):
            reader, writer = await exchange(port, head + body)
            for _ in range(100):  # 10 MB: more than the kernel holds for a reader that has stopped
                writer.write(b"b" * 100_000)
                await asyncio.wait_for(writer.drain(), 1)
            answer = await asyncio.wait_for(reader.read(), 5)
            assert b"HTTP/1.1 400 Bad Request" in answer
            assert answer.count(b"HTTP/1.1") - answer.count(b"100 Continue") == 1
            writer.close()
