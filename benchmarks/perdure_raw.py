"""A client of Perdure without its client: pyzmq alone, one message a call, as docs/PROTOCOL.md tells.

Runs in the client process. One DEALER at the router, read by its file descriptor; each call leaves at once
as a CALL of two frames, and each reply comes as a REPLY. What it costs against the batches of our own
client is what a client in another language pays for being a page of code.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import msgpack
import zmq

from benchmarks import limit_wire
from benchmarks.contender import object_name
from perdure import ids, protocol

__all__ = ["RawClient", "connect_raw"]

METHOD = "increment"
TIMEOUT_MS = 30_000
# A worker that is not up yet is told at once; docs/PROTOCOL.md asks for a pause before the call is repeated.
PAUSE_S = 0.05
_KIND_AT = 1
"""Where a header has its kind: all that a raw client needs of an answer's header."""


class RawClient:
    """Calls that are each a message, and their futures."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: limit_wire.Socket,
        namespace: str,
        objects: int,
        client_id: bytes,
    ) -> None:
        self._loop = loop
        self._socket = socket
        self._namespace = namespace
        self._client_id = client_id
        names = [object_name(index) for index in range(objects)]
        self._objects = [(ids.id_from_name(namespace, name).key, name) for name in names]
        self._sequence = 0
        self._waiting: dict[int, tuple[asyncio.Future[Any], int]] = {}
        self._pack = msgpack.Packer(autoreset=True).pack
        self._readable = limit_wire.readable(socket)
        self._recheck = limit_wire.watch(loop, socket, self._on_readable)

    def increment(self, index: int) -> asyncio.Future[Any]:
        """A future of the counter's new value; a call that fails gives it a RuntimeError."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._send(future, index)
        return future

    def call(self, sequence: int, index: int) -> tuple[bytes, bytes]:
        """Header and body of one call."""
        key, name = self._objects[index]
        item = (sequence, self._namespace, key, name, METHOD, (), None, TIMEOUT_MS, None)
        return protocol.call_header(key, sequence), self._pack((self._client_id, item))

    def _send(self, future: asyncio.Future[Any], index: int) -> None:
        self._sequence = sequence = self._sequence + 1
        self._waiting[sequence] = (future, index)
        limit_wire.send_frames(self._socket, self.call(sequence, index))
        self._recheck()

    def _on_readable(self) -> None:
        readable, receive = self._readable, self._socket.recv
        # Bounded by the calls outstanding: nothing new is asked before this returns.
        while readable():
            header, body = receive(limit_wire.NOBLOCK), receive(limit_wire.NOBLOCK)
            kind = header[_KIND_AT]
            if kind == protocol.REPLY:
                self._on_reply(*msgpack.unpackb(body))
            elif kind == protocol.REFUSED:
                self._fail_all(msgpack.unpackb(body))

    def _on_reply(self, sequence: int, status: int, payload: Any) -> None:
        future, index = self._waiting.pop(sequence)
        if status == protocol.STATUS_RESULT:
            future.set_result(payload)
        elif status == protocol.STATUS_ERROR and payload[0] == "ShardUnavailable":  # it did not run
            self._loop.call_later(PAUSE_S, self._send, future, index)
        else:
            future.set_exception(RuntimeError(f"a raw call failed: {payload}"))

    def _fail_all(self, refusal: Any) -> None:
        # A message that could not be understood: its sequence is not told, and the others are like it.
        waiting, self._waiting = self._waiting, {}
        for future, _ in waiting.values():
            future.set_exception(RuntimeError(f"a raw call was refused: {refusal}"))


@contextlib.contextmanager
def connect_raw(url: str, namespace: str, objects: int) -> Iterator[RawClient]:
    """A raw client at the router, in the running event loop."""
    loop = asyncio.get_running_loop()
    context: zmq.Context[limit_wire.Socket] = zmq.Context()
    socket = limit_wire.connect(context, url)
    try:
        yield RawClient(loop, socket, namespace, objects, os.urandom(16))
    finally:
        loop.remove_reader(limit_wire.descriptor(socket))
        socket.close()
        context.term()
