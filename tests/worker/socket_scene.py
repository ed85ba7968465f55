"""What the tests of WebSockets share: a gateway with clients' sockets, and classes that talk to them.

The gateway is one as docs/PROTOCOL.md asks for: it takes each record once, in order, and says its mark.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from starlette.responses import PlainTextResponse

from perdure import DurableObject, codec, durable
from perdure.object import namespace_of
from perdure.web_wire import FETCH, FRAME
from perdure_storage import keys
from perdure_storage.memory import MemoryDisk
from worker.host_scene import EPOCH, Scene, Sent, take_time

_IDENTITIES = itertools.count(1)


def request_map(socket: bytes | None, **more: Any) -> dict[str, Any]:
    """A request as a gateway sends it."""
    return {
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query": b"",
        "headers": [],
        "scheme": "http",
        "client": None,
        "root_path": "",
        "body": b"",
        "more": False,
        "length": None,
        "socket": socket,
        **more,
    }


def serve(make_scene: Callable[..., Scene], *classes: Any, epoch: int = EPOCH, **options: Any) -> Scene:
    """A worker of these classes."""
    return make_scene(*classes, epoch=epoch, **options)


def restart(
    make_scene: Callable[..., Scene], old: Scene, *gateways: Gateway, disk: MemoryDisk | None = None
) -> Scene:
    """The next incarnation on what the old one's disk holds now; the gateways connect to it."""
    epoch = old.host.gateways.epoch + 1
    classes = [entry.cls for entry in old.host.classes.values()]
    options: dict[str, Any] = {"disk": (disk or old.disk).copy(), "limits": old.limits}
    scene = serve(make_scene, *classes, epoch=epoch, client_id=old.client_id, **options)
    scene._sequence = old._sequence
    scene.wall_step_s = old.wall_clock() - scene.wall_clock()
    for gateway in gateways:
        gateway.connect(scene)
    return scene


def pass_time(scene: Scene, seconds: float, *gateways: Gateway) -> None:
    """Time passes, the worker looks at its clock every 50 ms, these gateways speak, and the disk keeps up."""
    for step in range(round(seconds / 0.05)):
        scene.advance(0.05)
        scene.commit()
        if step % 10 == 0:
            for gateway in gateways:
                gateway.say()


class Gateway:
    """One incarnation of a gateway, and what its clients get."""

    def __init__(self, scene: Scene, gateway_id: bytes = b"G" * 16) -> None:
        self.id = gateway_id
        self.mark = (0, 0)
        self.numbers = 0
        self.got: dict[int, list[Any]] = {}
        """By socket: text and data, or a tuple of what else it was sent."""
        self.all: list[tuple[int, Any]] = []
        """The same in the order in which it came."""
        self.messages: list[list[Any]] = []
        self.repeated = 0
        """Records that came again after they were taken."""
        self.lost = 0
        """How often it was told that it is lost."""
        self.room: int | None = None
        """How many more messages its connection takes; None for any number."""
        self.connect(scene)

    def connect(self, scene: Scene, *, speak: bool = True) -> None:
        """A new connection to this worker."""
        self.scene = scene
        self.identity = b"gateway-%d" % next(_IDENTITIES)
        others, mine = scene.on_frames, self.identity

        def take(identity: bytes, body: bytes) -> bool | None:
            if identity != mine:
                return others(identity, body)
            # What comes by an earlier connection is lost on the way.
            return self._take(body) if mine == self.identity else True

        scene.on_frames = take
        self.peer = scene.peer(self.identity)
        if speak:
            self.say()

    def say(self, mark: tuple[int, int] | None = None) -> None:
        """SOCKETS."""
        body = codec.encode([self.id, *(mark or self.mark)])
        self.scene.do(self.scene.host.gateways.on_message, self.identity, None, body)

    def _take(self, body: bytes) -> bool | None:
        if self.room is not None:
            if self.room == 0:
                return False
            self.room -= 1
        message = codec.decode(body)
        self.messages.append(message)
        assert message[0] == self.id
        for record in message[1:]:
            if record is None:
                self.lost += 1
                continue
            counter, entries, *earlier = record
            position = (earlier[0] if earlier else self.scene.host.gateways.epoch, counter)
            if position <= self.mark:
                self.repeated += 1
                continue
            self.mark = position
            for kind, payload, numbers in entries:
                for number in numbers:
                    what = payload if kind in (0, 1) else (("close", "auto")[kind - 2], payload)
                    self.got.setdefault(number, []).append(what)
                    self.all.append((number, what))
        return True

    def key(self, number: int) -> bytes:
        """Of a socket."""
        return self.id + number.to_bytes(8, "big")

    # --- clients

    def start_upgrade(self, cls: Any, name: str, path: str = "/", **options: Any) -> tuple[int, Sent]:
        """A client asks for a socket."""
        self.numbers += 1
        request = request_map(self.key(self.numbers), path=path)
        return self.numbers, self._call(cls, name, FETCH, request, **options)

    def upgrade(self, cls: Any, name: str, path: str = "/") -> int:
        """The same, and the object has taken it: the socket's number."""
        number, sent = self.start_upgrade(cls, name, path)
        self.scene.commit()
        assert sent.result()[0] == 101
        return number

    def start_frame(self, cls: Any, name: str, number: int, message: str | bytes, **options: Any) -> Sent:
        """A message of a client."""
        return self._call(cls, name, FRAME, self.key(number), message, **options)

    def frame(self, cls: Any, name: str, number: int, message: str | bytes) -> Any:
        """The same, with its outcome."""
        sent = self.start_frame(cls, name, number, message)
        self.scene.commit()
        return sent.result()

    def closed(
        self,
        cls: Any,
        name: str,
        number: int,
        code: int = 1000,
        reason: str = "",
        was_clean: bool = True,
        error: str | None = None,
    ) -> Any:
        """A client has closed its socket, or is gone."""
        sent = self._call(cls, name, "web.closed", self.key(number), code, reason, was_clean, error)
        self.scene.commit()
        return sent.result()

    def _call(self, cls: Any, name: str, method: str, *args: Any, **options: Any) -> Sent:
        return self.scene.start(cls, name, method, *args, peer=self.peer, **options)


def socket_rows(scene: Scene, cls: Any = None, name: str = "") -> list[bytes]:
    """Keys on disk of an object's sockets, or of all sockets."""
    found = []
    for key, _ in scene.disk.between(keys.OBJECTS_REGION, keys.NAMES_REGION):
        row = keys.parse_object_row(key)
        if row.kind == keys.SOCKET and row.key and (cls is None or row.namespace == namespace_of(cls)):
            found.append(row.key)
    return found


def index_rows(scene: Scene) -> list[keys.SocketRow]:
    """What the sockets by gateway say."""
    region = keys.SOCKETS_REGION
    return [keys.parse_socket_row(key) for key, _ in scene.disk.between(region, keys.prefix_end(region))]


def frame_rows(scene: Scene) -> list[tuple[int, int]]:
    """Positions of records on disk; (0, 0) says that a gateway is lost."""
    region = keys.FRAMES_REGION
    return [keys.frames_position(key) for key, _ in scene.disk.between(region, keys.prefix_end(region))]


class Room(DurableObject):
    """Does with its sockets what it is told, and notes what it hears."""

    heard: list[Any] = durable(default_factory=list)
    count: int = durable(0)

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.woke_with: list[Any] = []

    async def on_start(self) -> None:
        self.woke_with = [(ws.id[-1], ws.tags, ws.attachment) for ws in self.ctx.websockets()]

    async def fetch(self, request: Any) -> Any:
        what = request.path_params["path"].removeprefix("/")
        if what == "deny":
            return PlainTextResponse("no", 403)
        if what == "twice":
            self.ctx.accept_websocket(request)
        tags = [tag for tag in what.split(",") if tag] if what.startswith("t") and what != "twice" else []
        response = self.ctx.accept_websocket(request, tags=tags, attachment={"path": what}, protocol="chat")
        self.count += 1
        if what == "raise":
            raise ValueError("no socket")
        if what == "forget":
            return PlainTextResponse("hello")
        if what == "greet":
            response.websocket.send("welcome")
        if what == "greet and wait":
            response.websocket.send("welcome")
            self.storage.put("before", "the wait")
            await self.storage.sync()
            await self.go.wait()
            response.websocket.send("at last")
        if what == "close":
            response.websocket.send("bye")
            response.websocket.close(4001, "full")
        return response

    async def websocket_message(self, ws: Any, message: str | bytes) -> None:
        text = message if isinstance(message, str) else message.decode("latin-1")
        match text.split(" ", 1):
            case ["echo", what]:
                ws.send(what)
            case ["count", *_]:
                self.count += 1
                ws.send(f"{self.count}")
            case ["all", what]:
                for other in self.ctx.websockets():
                    other.send(what)
            case ["tag", tag]:
                for other in self.ctx.websockets(tag):
                    other.send(f"for {tag}")
            case ["attach", what]:
                ws.attachment = what
            case ["raise", what]:
                self.count += 100
                ws.send(what)
                ws.attachment = "never"
                for other in self.ctx.websockets():
                    other.close()
                raise ValueError(what)
            case ["close", reason]:
                ws.send("last")
                ws.close(4000, reason)
            case ["close and send", *_]:
                pass
            case ["slow", what]:
                ws.send(f"{what} 1")
                await take_time(1)
                ws.send(f"{what} 2")
            case ["sync", what]:
                ws.send(f"{what} 1")
                await self.storage.sync()
                ws.send(f"{what} 2")
                raise ValueError("after the commit point")
            case _:
                self.heard.append(message)
                if isinstance(message, bytes):
                    ws.send(message)

    async def websocket_close(self, ws: Any, code: int, reason: str, was_clean: bool) -> None:
        self.heard.append(["closed", code, reason, was_clean, len(self.ctx.websockets())])
        ws.send("nobody reads this")
        if reason == "raise":
            raise ValueError("cannot close")
        if reason == "abort":
            self.ctx.abort("enough")
        if reason == "bad field":
            self.count = object()  # type: ignore[assignment]
        if reason == "wait":
            await self.go.wait()

    async def websocket_error(self, ws: Any, error: Exception) -> None:
        self.heard.append(["error", str(error)])
        if "raise" in str(error):
            raise ValueError("worse")

    # --- calls

    async def broadcast(self, what: str) -> int:
        sockets = self.ctx.websockets()
        for ws in sockets:
            ws.send(what)
        return len(sockets)

    async def seen(self) -> list[Any]:
        return self.heard

    async def total(self) -> int:
        return self.count

    async def attachments(self) -> list[Any]:
        return [ws.attachment for ws in self.ctx.websockets()]

    async def tagged(self, tag: str | None = None) -> list[int]:
        return [int(ws.id[-8:], 16) for ws in self.ctx.websockets(tag)]

    async def at_wake(self) -> list[Any]:
        return self.woke_with

    async def auto(self, request: str | None, response: str | None) -> None:
        self.ctx.set_websocket_auto_response(request, response)

    async def release(self) -> None:
        self.go.set()

    async def empty(self) -> None:
        await self.storage.delete_all()


def taker(**accepted: Any) -> type[Any]:
    """A class that accepts sockets so."""

    class Taker(DurableObject):
        async def fetch(self, request: Any) -> Any:
            return self.ctx.accept_websocket(request, **accepted)

        async def say(self, message: Any) -> None:
            for ws in self.ctx.websockets():
                ws.send(message)

        async def attach(self, value: Any) -> None:
            for ws in self.ctx.websockets():
                ws.attachment = value

        async def close(self, code: Any, reason: Any) -> None:
            for ws in self.ctx.websockets():
                ws.close(code, reason)

        async def auto(self, request: Any, response: Any) -> None:
            self.ctx.set_websocket_auto_response(request, response)

    return Taker
