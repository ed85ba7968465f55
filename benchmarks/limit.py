"""The limit: a bare pyzmq + msgpack + plyvel pipeline in the shape of Perdure's processes.

Two workers, a router, tick batching, group commit, an answer only after fdatasync. No semantics: no
request ids, deadlines, mailboxes, checks, turns or recovery. What it reaches is the ceiling of this
architecture in Python on this machine, and Perdure is measured as a share of it. A call still has its
own sequence number and its own future, since no system could answer calls one by one without them.
"""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import zmq

from benchmarks import limit_wire
from benchmarks.contender import Child, Handle, Increment, object_name, stop_all

__all__ = ["connect", "system"]

WORKERS = 2


class LimitSystem:
    """The router and worker processes of the bare pipeline; all forms use the same ones."""

    forms = ("router", "direct")
    raw_form = "raw"

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    def start(self, directory: Path) -> Handle:
        """Start workers and router and wait until they are ready."""
        # Not in `directory`: the kernel takes no path over 107 characters for a socket.
        self._sockets = tempfile.TemporaryDirectory(prefix="perdure-limit-", dir="/tmp")
        router = f"ipc://{self._sockets.name}/router"
        workers = [f"ipc://{self._sockets.name}/worker{number}" for number in range(WORKERS)]
        for number, endpoint in enumerate(workers):
            database = directory / f"database{number}"
            self._children.append(Child("benchmarks.limit_worker", endpoint, os.fspath(database)))
        self._children.append(Child("benchmarks.limit_router", router, *workers))
        for child in self._children:
            child.wait_ready()
        return {"router": router, "workers": workers}

    def pids(self) -> list[int]:
        """Workers first, then the router."""
        return [child.process.pid for child in self._children]

    def stop(self) -> None:
        """End the processes, the router first."""
        stop_all(self._children)
        if self._sockets is not None:
            self._sockets.cleanup()


def system() -> LimitSystem:
    """The servers, not started."""
    return LimitSystem()


class LimitClient:
    """Client whose calls of one loop tick leave as one message for each worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: list[limit_wire.Socket],
        targets: list[limit_wire.Socket],
        keys: list[bytes],
    ) -> None:
        self._loop = loop
        self._keys = keys
        self._targets = targets
        # A key's worker is computed once, as a library computes it once for each stub.
        self._owners = [zlib.crc32(key) % WORKERS for key in keys]
        self._sequence = 0
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._outgoing: list[list[tuple[int, bytes, str, tuple[()]]]] = [[] for _ in range(WORKERS)]
        self._flush_is_due = False
        self._pack = msgpack.Packer(autoreset=True).pack
        self._rechecks = [
            limit_wire.watch(
                loop, socket, functools.partial(self._on_readable, limit_wire.readable(socket), socket.recv)
            )
            for socket in sockets
        ]

    def increment(self, index: int) -> asyncio.Future[int]:
        """A future of the counter's new value."""
        future: asyncio.Future[int] = self._loop.create_future()
        self._sequence = sequence = self._sequence + 1
        self._waiting[sequence] = future
        self._outgoing[self._owners[index]].append((sequence, self._keys[index], "increment", ()))
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)
        return future

    def increment_alone(self, index: int) -> asyncio.Future[int]:
        """The same as one message at once, which is what a raw client without batching sends."""
        future: asyncio.Future[int] = self._loop.create_future()
        self._sequence = sequence = self._sequence + 1
        self._waiting[sequence] = future
        number = self._owners[index]
        message = bytes((number,)) + self._pack(((sequence, self._keys[index], "increment", ()),))
        self._targets[number].send(message, limit_wire.NOBLOCK)
        for recheck in self._rechecks:
            recheck()
        return future

    def _flush(self) -> None:
        self._flush_is_due = False
        for number, outgoing in enumerate(self._outgoing):
            if outgoing:
                self._outgoing[number] = []
                message = bytes((number,)) + self._pack(outgoing)
                self._targets[number].send(message, limit_wire.NOBLOCK)
        for recheck in self._rechecks:
            recheck()

    def _on_readable(self, readable: Callable[[], bool], receive: Callable[[int], bytes]) -> None:
        take = self._waiting.pop
        # Bounded by the calls outstanding: nothing new is asked before this returns.
        while readable():
            for sequence, value in msgpack.unpackb(receive(limit_wire.NOBLOCK)):
                take(sequence).set_result(value)


@asynccontextmanager
async def connect(handle: Handle, form: str, objects: int, outstanding: int) -> AsyncIterator[Increment]:
    """A client with one socket for each worker (`direct`), or one to the router (`router`, `raw`)."""
    loop = asyncio.get_running_loop()
    keys = [object_name(index).encode() for index in range(objects)]
    context = zmq.Context()
    if form == "direct":
        sockets = [limit_wire.connect(context, endpoint) for endpoint in handle["workers"]]
        targets = sockets
    else:
        sockets = [limit_wire.connect(context, handle["router"])]
        targets = sockets * WORKERS
    client = LimitClient(loop, sockets, targets, keys)
    try:
        yield client.increment_alone if form == "raw" else client.increment
    finally:
        for socket in sockets:
            loop.remove_reader(limit_wire.descriptor(socket))
            socket.close()
        context.term()
