"""WebSockets as ASGI on a real client of a cluster, whose worker's door and ASGI server the test plays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure import codec, connect, protocol
from perdure.errors import PerdureError, RemoteError, to_wire
from perdure.limits import Limits
from perdure.protocol import Item
from perdure.stub import Target, make_target
from perdure_gateway.websocket import WebSockets
from sdk.fake_cluster import Door, FakeCluster, Message, fake_cluster, soon

ROOM = make_target("Room", "lobby", None, {})
ACCEPT = [101, [], b"", {"auto": None, "protocol": None}]
LATER = object()
"""What a worker returns that answers later, with `Worker.answer`."""

Handler = Callable[[Item], Any]


class Worker:
    """A worker's door that serves the calls of a gateway: accepts sockets, handles frames, hears of ends."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.requests: list[dict[str, Any]] = []
        self.frames: asyncio.Queue[list[Any]] = asyncio.Queue()
        """Arguments of each `web.frame`."""
        self.ends: asyncio.Queue[list[Any]] = asyncio.Queue()
        """Arguments of each `web.closed`."""
        self.marks: asyncio.Queue[list[Any]] = asyncio.Queue()
        """Bodies of SOCKETS."""
        self.fetch: Handler = lambda item: ACCEPT
        self.frame: Handler = lambda item: 0
        self.closed: Handler = lambda item: 0
        self.identity = b""
        self.counter = 0
        self._unanswered: dict[bytes, tuple[Message, int]] = {}
        self._pump = asyncio.ensure_future(self._serve())

    async def _serve(self) -> None:
        while True:
            message: Message = await self.door.received.get()
            if message.header.kind == protocol.SOCKETS:
                self.identity = message.identity
                self.marks.put_nowait(codec.decode(message.body))
            elif message.header.kind == protocol.BATCH:
                replies = [reply for item in message.items if (reply := self._reply(message, item))]
                if replies:
                    await self.door.send_replies(message.identity, replies)

    def _reply(self, message: Message, item: Item) -> list[Any] | None:
        serve, arrived = {
            "web.fetch": (self.fetch, self.requests.append),
            "web.frame": (self.frame, self.frames.put_nowait),
            "web.closed": (self.closed, self.ends.put_nowait),
        }[item.method]
        arrived(item.args[0] if item.method == "web.fetch" else item.args)
        try:
            result = serve(item)
        except RemoteError as error:
            dumped = {"type": "test." + error.type_name, "message": str(error)}
            return [item.sequence, protocol.STATUS_RAISED, dumped]
        except PerdureError as error:
            return [item.sequence, protocol.STATUS_ERROR, to_wire(error)]
        if result is LATER:
            self._unanswered[bytes(item.object_id)] = (message, item.sequence)
            return None
        return [item.sequence, protocol.STATUS_RESULT, result]

    async def answer(self, target: Target = ROOM, result: Any = 0) -> None:
        """Answers what was left open of that object."""
        message, sequence = self._unanswered.pop(target.object_id)
        await self.door.send_replies(message.identity, [[sequence, protocol.STATUS_RESULT, result]])

    async def send(self, *entries: list[Any], record: bytes | None = None) -> None:
        """The next record of frames."""
        self.counter += 1
        encoded = codec.encode(list(entries)) if record is None else record
        await self.send_raw([[self.counter, encoded]])

    async def send_raw(self, records: list[Any], gateway: bytes | None = None) -> None:
        if gateway is None:
            gateway = self.requests[-1]["socket"][:16]
        header = protocol.header(protocol.FRAMES, self.door.worker, self.door.epoch)
        await self.door.send(self.identity, header, codec.encode([gateway, *records]))

    def number(self, index: int = -1) -> int:
        """The number of the socket of a request."""
        return int.from_bytes(self.requests[index]["socket"][16:], "big")

    async def close(self) -> None:
        self._pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pump


class Browser:
    """An ASGI server with one client, whose both parts the test plays."""

    def __init__(self, scene: GatewayScene, target: Target = ROOM, **scope: Any) -> None:
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.got: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.writable = asyncio.Event()
        self.writable.set()
        self.gone = False
        headers = scope.pop("headers", [])
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "scheme": "ws",
            "path": "/here",
            "raw_path": b"/here",
            "query_string": b"a=b",
            "root_path": "",
            "headers": [(b"host", b"test"), *headers],
            "client": ("10.0.0.1", 5000),
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
            **scope,
        }
        self.said.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.ensure_future(
            scene.websockets.serve(target, self.scope, self.said.get, self._send)
        )

    async def _send(self, message: Any) -> None:
        await self.writable.wait()
        if self.gone:
            raise OSError("the client is gone")
        self.got.put_nowait(message)
        if message["type"] == "websocket.close":
            self.leave(message.get("code", 1000), message.get("reason", ""))

    def says(self, data: str | bytes) -> None:
        self.said.put_nowait(
            {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}
        )

    def leave(self, code: int, reason: str | None = "") -> None:
        message = {"type": "websocket.disconnect", "code": code}
        self.said.put_nowait(message if reason is None else {**message, "reason": reason})

    async def take(self) -> dict[str, Any]:
        message: dict[str, Any] = await soon(self.got.get())
        return message

    async def data(self) -> Any:
        """The next message that the client gets."""
        message = await self.take()
        assert message["type"] == "websocket.send", message
        return message["text"] if "text" in message else message["bytes"]

    async def accepted(self) -> dict[str, Any]:
        message = await self.take()
        assert message["type"] == "websocket.accept", message
        return message

    async def ended(self) -> None:
        """The application has returned."""
        await soon(self.task)


class GatewayScene:
    """A gateway whose clients and workers the test plays."""

    def __init__(self, cluster: FakeCluster, websockets: WebSockets) -> None:
        self.cluster = cluster
        self.link = websockets.link
        self.websockets = websockets
        self.workers = [Worker(door) for door in cluster.doors]
        self.browsers: list[Browser] = []
        self.background: list[asyncio.Future[None]] = []

    @property
    def worker(self) -> Worker:
        return self.workers[0]

    def browser(self, **scope: Any) -> Browser:
        self.browsers.append(Browser(self, **scope))
        return self.browsers[-1]

    async def connected(self, **scope: Any) -> Browser:
        """A client whose socket the object has taken."""
        browser = self.browser(**scope)
        await browser.accepted()
        return browser

    async def restart(self, worker: int = 0) -> Worker:
        """The worker dies; its successor is there and in the map."""
        old = self.workers[worker]
        await old.close()
        new = Worker(await self.cluster.restart(worker))
        new.fetch, new.frame, new.closed, new.requests = old.fetch, old.frame, old.closed, old.requests
        self.workers[worker] = new
        await self.cluster.router.publish(self.cluster.slot_map)
        return new


@contextlib.asynccontextmanager
async def gateway_scene(
    folder: Path, workers: int = 1, *, origins: Collection[str] = (), **limits: Any
) -> AsyncIterator[GatewayScene]:
    async with fake_cluster(folder, workers) as cluster, connect(cluster.url) as client:
        chosen = replace(Limits(), **limits)
        websockets = WebSockets(client, origins=origins, limits=chosen)
        scene = GatewayScene(cluster, websockets)
        yield scene
        for browser in scene.browsers:
            browser.task.cancel()
        await asyncio.gather(*(browser.task for browser in scene.browsers), return_exceptions=True)
        scene.link.close()
        for worker in scene.workers:
            await worker.close()
