"""A small TCP proxy: the network between two parts of the system, which can be cut."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import sqlalchemy as sa

Given = TypeVar("Given")

_CHUNK_BYTES = 65_536


class Proxy:
    """Forwards `listen_host`:`port` to a TCP port or a unix socket. It runs on a thread of its own."""

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, unix_path: str | None = None, listen_host: str = "127.0.0.1"
    ) -> None:
        self.host = listen_host
        self._target = (host, port, unix_path)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._flowing = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Let nothing through, not even the end of a connection; whoever waits, waits."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def refuse(self) -> None:
        """Reset every connection and refuse new ones."""
        self._call(self._stop_listening())

    def restore(self) -> None:
        """Let through what was held back, as TCP does when a network comes back."""
        self._call(self._listen())

    def _call(self, work: Coroutine[Any, Any, Given]) -> Given:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._flowing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _close(self) -> None:
        await self._stop_listening()
        self._flowing.set()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        work = asyncio.current_task()
        assert work is not None
        self._pumps.add(work)
        try:
            await self._forward(reader, writer)
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._pumps.discard(work)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        host, port, unix_path = self._target
        if unix_path is None:
            there = await asyncio.open_connection(host, port)
        else:
            there = await asyncio.open_unix_connection(unix_path)
        self._writers.add(there[1])
        try:
            pumps = [
                asyncio.create_task(self._pump(reader, there[1])),
                asyncio.create_task(self._pump(there[0], writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._writers.discard(there[1])
            there[1].transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(_CHUNK_BYTES)
                await self._flowing.wait()
                if not data:
                    return
                writer.write(data)
                await writer.drain()


def proxy_postgres(url: str, listen_host: str = "127.0.0.1") -> Proxy:
    """Make a proxy for a server that listens on a unix socket."""
    directory = sa.make_url(url).query["host"]
    return Proxy(unix_path=f"{directory}/.s.PGSQL.5432", listen_host=listen_host)


def proxied_postgres_url(url: str, proxy: Proxy) -> str:
    """Return a PostgreSQL URL with the proxy in the place of the unix socket."""
    through = sa.make_url(url).difference_update_query(["host"]).set(host=proxy.host, port=proxy.port)
    return through.render_as_string(hide_password=False)


def proxy_valkey(url: str, listen_host: str = "127.0.0.1") -> Proxy:
    """Make a proxy for Valkey."""
    port = urlsplit(url).port
    assert port
    return Proxy(port=port, listen_host=listen_host)


def proxied_valkey_url(url: str, proxy: Proxy) -> str:
    """Return a Valkey URL with the proxy's address."""
    return url.replace(f"@127.0.0.1:{urlsplit(url).port}/", f"@{proxy.host}:{proxy.port}/")
