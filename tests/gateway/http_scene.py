"""A real HTTP server over real sockets in the test's own loop, and clients that write what they like."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from perdure.limits import Limits
from perdure_gateway.server import HttpServer

DEADLINE_S = 15.0
UPGRADE = (
    b"host: h\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
    + b"A" * 22
    + b"==\r\n"
)
"""Headers of a WebSocket's handshake, but the upgrade itself."""
App = Callable[[Any, Any, Any], Awaitable[None]]


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    """What the scenario gives, in a loop of its own and within the deadline."""

    async def bounded() -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await scenario()

    return asyncio.run(bounded())


def limits(**changes: Any) -> Limits:
    """The usual limits with short looks, and changes."""
    return dataclasses.replace(Limits(), **{"http_look_s": 0.02, **changes})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path and the size of the body."""
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    text = f"{scope['method']} {scope['path']} {size}".encode()
    await respond(send, 200, text)


async def respond(send: Any, status: int, text: bytes) -> None:
    """One whole response."""
    headers = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


class Scene:
    """One running server."""

    def __init__(self, server: HttpServer, address: tuple[str, int]) -> None:
        self.server = server
        self.address = address
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address, **options)
        self._writers.append(writer)
        return reader, writer

    async def leave(self) -> None:
        """Ends all connections of the test."""
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def ask(self, data: bytes) -> bytes:
        """All that comes back until the server ends the connection."""
        reader, writer = await self.connect()
        writer.write(data)
        async with asyncio.timeout(DEADLINE_S):
            answer = await read_all(reader)
        writer.close()
        return answer

    async def get(self, path: str = "/") -> bytes:
        return await self.ask(f"GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".encode())


async def until(condition: Callable[[], Any]) -> None:
    """Returns when the condition holds, which something outside of this loop or later in it makes true."""
    never = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.wait((never,), timeout=0.005)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Until the end, in order or not."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := await reader.read(65_536):
            data += part
    return data


@contextlib.asynccontextmanager
async def serving(app: App = echo, bounds: Limits | None = None, **options: Any) -> AsyncIterator[Scene]:
    """A server of `app`; at the end it stops in order."""
    listener = socket.create_server(("127.0.0.1", 0))
    started = asyncio.Event()
    server = HttpServer(app, bounds or limits(), on_started=started.set, **options)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    async with asyncio.timeout(DEADLINE_S):
        await started.wait()
    scene = Scene(server, listener.getsockname())
    try:
        yield scene
    finally:
        await scene.leave()
        server.should_exit = True
        await task


def status_of(answer: bytes) -> int:
    """The status of the first response; 0 when there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
