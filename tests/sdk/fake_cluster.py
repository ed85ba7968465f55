"""A router and workers' doors on real ipc sockets, whose part the test plays, inside the test's own loop.

They are made with zmq.asyncio, not with `perdure.channel`, which is under test.  Whatever comes waits in
`received` until the test takes it; `answer` lets a door serve calls by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
import zmq
import zmq.asyncio

from perdure import codec, protocol
from perdure.errors import PerdureError, to_wire
from perdure.locate import boot_id
from perdure.protocol import Header, Item
from perdure.slotmap import Seat, SlotMap, contiguous_ranges

PATIENCE_S = 10.0
SLOTS = 64
BATCH_HEADER = protocol.header(protocol.BATCH)
Serve = Callable[[Item], Any]
Test = Callable[..., Coroutine[Any, Any, None]]


def in_loop(test: Test) -> Callable[..., None]:
    """Runs an async test, and fails it when the loop met an error that nobody handled."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        _run_watched(asyncio.new_event_loop, functools.partial(test, *args, **kwargs))

    return run


def in_both_loops(test: Test) -> Callable[..., None]:
    """As `in_loop`, in asyncio's own loop and in uvloop."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
            _run_watched(loop_factory, functools.partial(test, *args, **kwargs))

    return run


def _run_watched(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], test: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    problems: list[Any] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: problems.append(context))
        await test()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(watched())
        gc.collect()  # asyncio reports errors that nobody looked at when their futures are gone
    assert not problems


async def soon(awaitable: Awaitable[Any]) -> Any:
    """What must happen within `PATIENCE_S`."""
    return await asyncio.wait_for(awaitable, PATIENCE_S)


def end_context(context: zmq.Context[Any]) -> None:
    """Fails when a socket was left open: ending the context would wait for it for ever."""
    left_open = [thing for thing in gc.get_objects() if is_open_socket(thing, context)]
    context.destroy(linger=0)
    assert not left_open


def is_open_socket(thing: object, context: zmq.Context[Any]) -> bool:
    return isinstance(thing, zmq.Socket) and not thing.closed and thing.context is context


@dataclass(frozen=True)
class Message:
    """What a peer sent."""

    identity: bytes
    header: Header
    body: bytes

    @property
    def items(self) -> list[Item]:
        """The calls of a BATCH."""
        return [Item(*item) for item in codec.decode(self.body)[1:]]


class Endpoint:
    """A bound ROUTER socket."""

    def __init__(self, path: Path) -> None:
        self.endpoint = f"ipc://{path}"
        self.received: asyncio.Queue[Message] = asyncio.Queue()
        self.seen: list[int] = []
        """Kinds of all messages that came, in their order."""
        self._context = zmq.asyncio.Context()
        self.socket: zmq.asyncio.Socket = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.bind(self.endpoint)
        self._pump = asyncio.ensure_future(self._receive())

    async def _receive(self) -> None:
        while True:
            identity, header, body = await self.socket.recv_multipart()
            message = Message(identity, protocol.read_header(header), body)
            self.seen.append(message.header.kind)
            if not await self.handled(message):
                self.received.put_nowait(message)

    async def handled(self, message: Message) -> bool:
        """Whether the message was answered here, so that the test does not see it."""
        return False

    async def send(self, identity: bytes, header: bytes, body: bytes = b"") -> None:
        """To a peer that may be gone already."""
        try:
            await self.socket.send_multipart((identity, header, body))
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise

    async def take(self, kind: int = protocol.BATCH) -> Message:
        """The next message of a kind; others are passed over."""
        while True:
            message: Message = await soon(self.received.get())
            if message.header.kind == kind:
                return message

    async def close(self, linger_ms: int = 0) -> None:
        """Closes the socket, as the kernel does for a process that dies; what it sent may still arrive."""
        if not self._context.closed:
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pump
            # Returns when ZeroMQ's thread has unlinked the path, so that a successor does not lose its own.
            self._context.destroy(linger=linger_ms)


class Door(Endpoint):
    """One incarnation of a worker."""

    def __init__(self, folder: Path, worker: int, epoch: int) -> None:
        super().__init__(folder / f"w{worker}.e{epoch}")
        self.worker = worker
        self.epoch = epoch
        self.serve: Serve | None = None

    def answer(self, serve: Serve) -> None:
        """From now on every call gets what `serve` returns for it, or the error that it raises."""
        self.serve = serve

    async def handled(self, message: Message) -> bool:
        if self.serve is None or message.header.kind != protocol.BATCH:
            return False
        await self.reply(message, self.serve)
        return True

    async def reply(self, message: Message, serve: Serve) -> None:
        await self.send_replies(message.identity, [self._reply(item, serve) for item in message.items])

    def _reply(self, item: Item, serve: Serve) -> list[Any]:
        try:
            return [item.sequence, protocol.STATUS_RESULT, serve(item)]
        except PerdureError as error:
            return [item.sequence, protocol.STATUS_ERROR, to_wire(error)]

    async def send_replies(self, identity: bytes, replies: list[list[Any]]) -> None:
        header = protocol.header(protocol.REPLIES, self.worker, self.epoch)
        await self.send(identity, header, codec.encode(replies))

    async def goodbye(self, identity: bytes) -> None:
        await self.send(identity, protocol.header(protocol.GOODBYE, self.worker, self.epoch))


class BusyDoor:
    """A door at epoch 1 that does all it does without a turn of the loop, as if the loop was busy."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/w0.e1"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(self.endpoint)

    def take(self) -> tuple[bytes, bytes]:
        """Who sent the next message, and its body."""
        assert self._socket.poll(int(PATIENCE_S * 1000)), "nothing was sent"
        identity, _, body = self._socket.recv_multipart()
        return identity, body

    def send(self, identity: bytes, body: bytes, header: bytes = BATCH_HEADER) -> None:
        self._socket.send_multipart((identity, header, body))

    def close(self) -> None:
        """What was sent may still arrive, as from a process that died with it in the kernel."""
        self._context.destroy(linger=int(PATIENCE_S * 1000))


class FakeRouter(Endpoint):
    """Hands out the slot map; `carry` also passes batches to doors and their replies back."""

    def __init__(self, path: Path, slot_map: SlotMap | None) -> None:
        self.slot_map = slot_map
        self.clients: list[bytes] = []
        self.stopping = False
        """It said GOODBYE, and says nothing else to who greets."""
        self.serve: Serve | None = None
        super().__init__(path)

    async def handled(self, message: Message) -> bool:
        kind = message.header.kind
        if kind in (protocol.HELLO, protocol.PING):
            if message.identity not in self.clients:
                self.clients.append(message.identity)
            if self.stopping:
                await self.send(message.identity, protocol.header(protocol.GOODBYE))
                return True
            if self.slot_map is None:
                return True
            if kind == protocol.PING and message.header.number == self.slot_map.version:
                await self.send(message.identity, protocol.header(protocol.PONG, 0, message.header.number))
            else:
                await self._send_map(message.identity)
            return True
        if kind == protocol.BATCH and self.serve is not None and self.slot_map is not None:
            seat = self.slot_map.seats[message.header.worker]
            replies = [[item.sequence, protocol.STATUS_RESULT, self.serve(item)] for item in message.items]
            header = protocol.header(protocol.REPLIES, message.header.worker, seat.epoch)
            await self.send(message.identity, header, codec.encode(replies))
            return True
        return False

    async def _send_map(self, identity: bytes) -> None:
        assert self.slot_map is not None
        body = codec.encode(self.slot_map.to_wire())
        await self.send(identity, protocol.header(protocol.MAP, 0, self.slot_map.version), body)

    async def publish(self, slot_map: SlotMap) -> None:
        """A new map goes to every client that ever said hello."""
        self.slot_map = slot_map
        for identity in self.clients:
            await self._send_map(identity)

    async def goodbye(self) -> None:
        self.stopping = True
        for identity in self.clients:
            await self.send(identity, protocol.header(protocol.GOODBYE))


class FakeCluster:
    """A router and some doors."""

    def __init__(self, folder: Path, *, boot: str) -> None:
        self.folder = folder
        self.boot = boot
        self.doors: list[Door] = []
        self.version = 0
        self.router: FakeRouter

    @property
    def url(self) -> str:
        return f"ipc://{self.folder / 'router'}"

    @property
    def slot_map(self) -> SlotMap:
        """The next version of the map, with the doors as they are."""
        self.version += 1
        seats = tuple(Seat(door.epoch, door.endpoint) for door in self.doors)
        return SlotMap(self.version, tuple(contiguous_ranges(SLOTS, len(seats))), seats, self.boot)

    def open_door(self, worker: int, epoch: int) -> Door:
        return Door(self.folder, worker, epoch)

    def open_router(self, slot_map: SlotMap | None) -> FakeRouter:
        self.router = FakeRouter(self.folder / "router", slot_map)
        return self.router

    async def restart(self, worker: int) -> Door:
        """The worker dies and its successor opens a door; nobody was told the map yet."""
        dead = self.doors[worker]
        await dead.close()
        self.doors[worker] = self.open_door(worker, dead.epoch + 1)
        return self.doors[worker]

    async def close(self) -> None:
        for endpoint in (self.router, *self.doors):
            await endpoint.close()


@contextlib.asynccontextmanager
async def fake_cluster(
    folder: Path, workers: int = 1, *, boot: str | None = None
) -> AsyncIterator[FakeCluster]:
    """A cluster whose doors a client on this machine talks to; with another `boot` only to the router."""
    cluster = FakeCluster(folder, boot=boot_id() if boot is None else boot)
    cluster.doors = [cluster.open_door(worker, 1) for worker in range(workers)]
    cluster.open_router(cluster.slot_map)
    try:
        yield cluster
    finally:
        await cluster.close()
