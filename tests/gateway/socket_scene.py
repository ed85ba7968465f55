"""The core of the sockets with a clock, clients and workers whose parts the test plays."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from perdure import codec
from perdure.limits import Limits
from perdure.stub import Target, make_target
from perdure_gateway.client_socket import ClientSocket, Close, Frame
from perdure_gateway.sockets import Sockets

GATEWAY = b"g" * 16
ROOM = make_target("Room", "lobby", None, {})
OTHER_ROOM = make_target("Room", "attic", None, {})


@dataclass
class Call:
    """A call that the core has started."""

    target: Target
    method: str
    args: list[Any]
    timeout_s: float
    ended: Callable[[Any, BaseException | None], None]

    def returns(self, result: Any = 0) -> None:
        self.ended(result, None)

    def fails(self, error: BaseException) -> None:
        self.ended(None, error)


@dataclass
class Client:
    """A client's connection: what it was given, and when its next message may come."""

    reads: bool = True
    """Whether it takes what is queued for it at once."""
    got: list[str | bytes | Close] = field(default_factory=list)
    may_read_count: int = 0
    was_cut: bool = False
    socket: ClientSocket = field(init=False)

    def may_write(self) -> None:
        if self.reads:
            self.read_all()

    def read_all(self) -> None:
        while (item := self.socket.take()) is not None:
            self.got.append(item.data if isinstance(item, Frame) else item)

    def may_read(self) -> None:
        self.may_read_count += 1

    def cut(self) -> None:
        self.was_cut = True


class Scene:
    """One gateway incarnation."""

    def __init__(self, **limits: Any) -> None:
        self.now = 1_000.0
        self.calls: deque[Call] = deque()
        self.told: list[tuple[int, list[Any]]] = []
        """SOCKETS: worker and body."""
        self.reachable = True
        self.lost = 0
        self.limits = replace(Limits(), **limits)
        self.sockets = Sockets(
            GATEWAY, self, clock=lambda: self.now, random_source=random.Random(1), limits=self.limits
        )

    # --- hands

    def call(
        self,
        target: Target,
        method: str,
        args: list[Any],
        timeout_s: float,
        ended: Callable[[Any, BaseException | None], None],
    ) -> None:
        self.calls.append(Call(target, method, args, timeout_s, ended))

    def tell(self, worker: int, body: bytes) -> bool:
        if self.reachable:
            self.told.append((worker, codec.decode(body)))
        return self.reachable

    def on_lost(self) -> None:
        self.lost += 1

    # --- what tests do

    def open(self, target: Target = ROOM, seat: int = 0, *, reads: bool = True, auto: Any = None) -> Client:
        client = self.opening(target, seat, reads=reads)
        self.sockets.accepted(client.socket, auto)
        return client

    def opening(self, target: Target = ROOM, seat: int = 0, *, reads: bool = True) -> Client:
        client = Client(reads)
        client.socket = self.sockets.open(target, seat, client)
        return client

    def take(self, method: str) -> Call:
        """The only call that was started, which must be of this method."""
        assert [call.method for call in self.calls] == [method]
        return self.calls.popleft()

    def after(self, seconds: float) -> None:
        """Time passes, in as many ticks as are asked for."""
        until = self.now + seconds
        while self.sockets.wake_at <= until:
            self.now = max(self.now, self.sockets.wake_at)
            self.sockets.tick()
        self.now = until

    def frames(self, counter: int, *entries: Any, worker: int = 0, epoch: int = 1) -> None:
        """A record of frames comes, as from a real worker."""
        message = codec.decode(codec.encode([[counter, list(entries)]]))
        self.sockets.on_frames(worker, epoch, message)


def text(data: str, *clients: Client) -> list[Any]:
    return [0, data, [client.socket.number for client in clients]]


def binary(data: bytes, *clients: Client) -> list[Any]:
    return [1, data, [client.socket.number for client in clients]]


def close(code: int, reason: str, *clients: Client) -> list[Any]:
    return [2, [code, reason], [client.socket.number for client in clients]]


def auto(pair: Any, *clients: Client) -> list[Any]:
    return [3, pair, [client.socket.number for client in clients]]
