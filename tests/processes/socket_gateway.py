"""A gateway of the tests, as docs/PROTOCOL.md asks for one: a DEALER at the router and one at the door.

It does what it does inside of `until`, which waits for a condition: reads, tells its marks, asks the router
for news, sends again what a dead worker has not answered.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack
import zmq

from perdure import protocol
from perdure.ids import id_from_name

DEADLINE_S = 60.0
_POLL_MS = 10
_PING_S, _SAY_S = 0.3, 0.5
_BATCH_CALLS = 100


class Gateway:
    """For the sockets of the objects of a cluster with one worker."""

    def __init__(self, url: str) -> None:
        self.id = os.urandom(16)
        self.client = os.urandom(16)
        self.mark = (0, 0)
        self.got: dict[int, list[str]] = {}
        self.told_lost = 0
        self.repeated = 0
        self.epochs: set[int] = set()
        self.silent = False
        """Whether it says nothing to the worker."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._router = self._dealer(url)
        self._door: zmq.Socket[bytes] | None = None
        self._epoch = self._version = 0
        self._sequence = self._sockets = 0
        self._open: dict[int, tuple[list[Any], Callable[[list[Any]], None]]] = {}
        self._unsent: deque[int] = deque()
        self._said_at = self._asked_at = 0.0
        self._router.send_multipart([protocol.header(protocol.HELLO), msgpack.packb({"client": self.client})])
        self.until("there is a map", lambda: self._door is not None)

    def close(self) -> None:
        for socket in (self._router, self._door):
            if socket is not None:
                socket.close()
        self._context.term()

    def _dealer(self, url: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(url)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    # --- clients

    def upgrade(self, name: str, path: str = "/") -> int:
        """A socket of the room; its number."""
        self._sockets += 1
        number = self._sockets
        request = {
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query": b"",
            "headers": [[b"upgrade", b"websocket"]],
            "scheme": "http",
            "client": None,
            "root_path": "",
            "body": b"",
            "more": False,
            "length": None,
            "socket": self._key(number),
        }
        replies: list[list[Any]] = []
        self.call(name, "web.fetch", [request], replies.append)
        self.until("the upgrade is answered", lambda: replies)
        assert replies[0][1:3] == [0, [101, [], b"", {"auto": None, "protocol": None}]], replies
        return number

    def talk(self, name: str, number: int, messages: int) -> deque[int]:
        """Sends messages one after the other, each after the outcome of the last; what is left of them."""
        left = deque(range(messages))

        def on_reply(reply: list[Any]) -> None:
            assert reply[1] in (protocol.STATUS_RESULT, protocol.STATUS_ERROR), reply
            if reply[1] == protocol.STATUS_ERROR:
                assert reply[2][0] in ("ShardUnavailable", "Overloaded"), reply
            else:
                assert reply[2] == 0
                left.popleft()
            if left:
                send()

        def send() -> None:
            self.call(name, "web.frame", [self._key(number), f"{number}:{left[0]}"], on_reply)

        send()
        return left

    def _key(self, number: int) -> bytes:
        return self.id + number.to_bytes(8, "big")

    def call(self, name: str, method: str, args: list[Any], on_reply: Callable[[list[Any]], None]) -> None:
        self._sequence += 1
        item = [
            self._sequence,
            "Room",
            id_from_name("Room", name).key,
            name,
            method,
            args,
            None,
            60_000,
            None,
        ]
        self._open[self._sequence] = item, on_reply
        self._unsent.append(self._sequence)

    # --- what happens

    def until(self, what: str, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"did not happen: {what}"
            self.step()

    def step(self) -> None:
        now = time.monotonic()
        if now - self._asked_at > _PING_S:
            self._asked_at = now
            self._router.send_multipart([protocol.header(protocol.PING, 0, self._version), b""])
        if now - self._said_at > _SAY_S:
            self._say()
        self._send_calls()
        for socket, _ in self._poller.poll(_POLL_MS):
            while not socket.closed:  # a message may say that this door is no more
                try:
                    header, body = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._on_message(protocol.read_header(header), body)

    def _send_calls(self) -> None:
        while self._unsent and self._door is not None:
            items = [
                self._open[self._unsent.popleft()][0] for _ in range(min(_BATCH_CALLS, len(self._unsent)))
            ]
            header = protocol.header(protocol.BATCH, 0, self._version)
            self._door.send_multipart([header, msgpack.packb([self.client, *items])])

    def _say(self) -> None:
        self._said_at = time.monotonic()
        if self._door is not None and not self.silent:
            header = protocol.header(protocol.SOCKETS, 0, self._epoch)
            self._door.send_multipart([header, msgpack.packb([self.id, *self.mark])])

    def _on_message(self, head: protocol.Header, body: bytes) -> None:
        if head.kind == protocol.MAP:
            self._on_map(msgpack.unpackb(body))
        elif head.kind == protocol.REPLIES and head.number == self._epoch:
            for reply in msgpack.unpackb(body):
                _, on_reply = self._open.pop(reply[0], (None, None))
                if on_reply is not None:
                    on_reply(reply)
        elif head.kind == protocol.FRAMES:
            self._on_frames(head.number, msgpack.unpackb(body))

    def _on_map(self, wire: dict[str, Any]) -> None:
        if wire["version"] <= self._version:
            return
        self._version = wire["version"]
        ((epoch, endpoint),) = wire["workers"]
        if epoch == self._epoch and endpoint:
            return
        if self._door is not None:
            self._poller.unregister(self._door)
            self._door.close()
            self._door = None
        if endpoint:
            self._epoch = epoch
            self.epochs.add(epoch)
            self._door = self._dealer(endpoint)
            self._unsent = deque(sorted(self._open))  # nobody knows of these: the same ids again
            self._say()

    def _on_frames(self, epoch: int, message: list[Any]) -> None:
        assert message[0] == self.id
        for record in message[1:]:
            if record is None:
                self.told_lost += 1
                continue
            counter, entries, *earlier = record
            position = (earlier[0] if earlier else epoch, counter)
            if position <= self.mark:
                self.repeated += 1
                continue
            self.mark = position
            for _, payload, numbers in entries:
                for number in numbers:
                    self.got.setdefault(number, []).append(payload)
        self._say()
