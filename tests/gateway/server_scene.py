"""The gateway's own server in the test's loop, before a worker whose part the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from perdure.limits import Limits
from perdure_gateway.server import HttpServer
from sdk.fake_cluster import soon

from .gateway_scene import ROOM, GatewayScene, gateway_scene


class Served:
    """The server, and where it listens."""

    def __init__(self, scene: GatewayScene, server: HttpServer, port: int) -> None:
        self.scene = scene
        self.server = server
        self.port = port
        self.wires: list[Wire] = []

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/here"

    async def wire(self) -> Wire:
        """A client that has its socket, and from now on says what it likes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        wire = Wire(reader, writer)
        self.wires.append(wire)
        await wire.upgrade(self.url)
        return wire


class Wire:
    """A connection byte by byte; frames are read and written with the websockets library."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.protocol = ClientProtocol(parse_uri("ws://127.0.0.1/here"))
        self.events: list[Any] = []

    async def upgrade(self, url: str) -> None:
        self.protocol.send_request(self.protocol.connect())
        self.writer.writelines(self.protocol.data_to_send())
        response = await self.event()
        assert isinstance(response, Response)
        assert response.status_code == 101

    async def event(self) -> Any:
        """The next frame; None at the end of the connection.  Pings are not answered."""
        while not self.events:
            data = await soon(self.reader.read(65_536))
            if not data:
                return None
            self.protocol.receive_data(data)
            self.protocol.data_to_send()
            self.events += self.protocol.events_received()
        return self.events.pop(0)

    async def frame(self, opcode: Opcode) -> Frame:
        """The next frame, which must be of this kind."""
        event = await self.event()
        assert isinstance(event, Frame), event
        assert event.opcode is opcode, event
        return event

    def says(self, opcode: Opcode, data: bytes, *, fin: bool = True, **bits: bool) -> None:
        """Sends one frame, however little sense it makes."""
        raw = Frame(opcode, b"", fin, **bits)
        self.writer.write(_masked(raw, data))

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def closed_with(self) -> int | None:
        """The code of the close that ends the connection; None if it ends without one."""
        code = None
        while (event := await self.event()) is not None:
            if isinstance(event, Frame) and event.opcode is Opcode.CLOSE:
                code = int.from_bytes(event.data[:2], "big") if event.data else 1005
        return code

    def vanish(self) -> None:
        """The connection is reset, without a close."""
        self.writer.transport.abort()


def _masked(frame: Frame, data: bytes) -> bytes:
    """RFC 6455 §5.2, without the checks of a library that writes correct frames only."""
    first = (frame.fin << 7) | (frame.rsv1 << 6) | (frame.rsv2 << 5) | (frame.rsv3 << 4) | frame.opcode
    size = len(data)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    mask = b"\x01\x02\x03\x04"
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))


@contextlib.asynccontextmanager
async def served(folder: Path, **limits: Any) -> AsyncIterator[Served]:
    async with gateway_scene(folder, **limits) as scene:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert scope["type"] == "websocket"
            await scene.websockets.serve(ROOM, scope, receive, send)

        listener = socket.create_server(("127.0.0.1", 0))
        started = asyncio.Event()
        server = HttpServer(app, replace(Limits(), **limits), on_started=started.set)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        await soon(started.wait())
        made = Served(scene, server, listener.getsockname()[1])
        try:
            yield made
        finally:
            for wire in made.wires:
                wire.vanish()
            server.should_exit = True
            await soon(serving)
