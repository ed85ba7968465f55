"""The sockets of one gateway incarnation: what happens to them, in and out.  Pure; the gateway's event loop.

The gateway holds clients' connections while their objects sleep, move or die with their worker.  Guarantees:

- inbound: one message of a socket is on its way at a time, and the next only after its outcome, so order and
  exactly-once are those of the call `web.frame` that carries it; what did not run is sent again for
  `socket_frame_wait_s`, then the client is closed with 1013; an unknown outcome closes it with 1011;
- outbound: records of frames are taken once and in order (seats.py) and queued for each client; who does not
  read is closed with 1013 when its queue is full, and nobody waits for it;
- each object hears of each end once (endings.py), unless it closed the socket itself.

Calls, messages to workers, clock and randomness are handed in.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any, Protocol

from perdure import codec
from perdure.errors import (
    DeadlineExceeded,
    MessageTooLarge,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
)
from perdure.limits import Limits
from perdure.stub import Target
from perdure.web_wire import FRAME
from perdure_gateway.client_socket import ClientSocket, Close, Connection, Frame, State
from perdure_gateway.endings import Calls, Ending, Endings
from perdure_gateway.seats import Seats
from perdure_gateway.timers import Timers

__all__ = ["Hands", "Sockets"]

log = logging.getLogger("perdure.gateway")

HANDLED, NO_SOCKET = 0, 1
"""Results of `web.frame`."""
TEXT, BINARY, CLOSE, AUTO = range(4)
"""Kinds of entry in a record of frames."""

GOING_AWAY, ABNORMAL, TOO_BIG, FAILED, TRY_LATER = 1001, 1006, 1009, 1011, 1013
"""Close codes of RFC 6455 and the IANA registry."""
_PASSING = (Overloaded, ShardUnavailable, DeadlineExceeded)
_FIRST_PAUSE_S = 0.05
_PAUSE_MAX_S = 1.0
_DOUBLINGS_MAX = 5
_STOPPING, _LOST = "the server is stopping", "the connection to the object was lost"


class Hands(Protocol):
    """What the core does to the world."""

    @property
    def call(self) -> Calls:
        """Starts a call."""

    def tell(self, worker: int, body: bytes) -> bool:
        """Sends SOCKETS to the worker's present door; whether it left."""

    def on_lost(self) -> None:
        """A worker has declared this gateway id dead: new sockets need another one."""


class Sockets:
    """One incarnation; its sockets' numbers grow and are never used again."""

    def __init__(
        self,
        gateway_id: bytes,
        hands: Hands,
        *,
        clock: Callable[[], float],
        random_source: random.Random,
        limits: Limits | None = None,
    ) -> None:
        self.gateway_id = gateway_id
        self._hands = hands
        self._clock = clock
        self._random = random_source
        self._limits = limits = limits if limits is not None else Limits()
        self._timers = Timers()
        self._endings = Endings(
            hands.call, self._timers, clock=clock, random_source=random_source, limits=limits
        )
        self._seats = Seats(self._tell, limits)
        self._sockets: dict[int, ClientSocket] = {}
        self._numbers = 0
        self._stopping = False
        self.was_lost = False
        """A worker has counted this id as dead."""
        self.dropped_slow = 0
        """Clients closed because they did not read."""

    def __len__(self) -> int:
        """Sockets that are open or opening."""
        return len(self._sockets)

    @property
    def ends_open(self) -> int:
        """Ends of sockets that their objects have not answered yet."""
        return self._endings.open

    @property
    def wake_at(self) -> float:
        """When `tick` is needed next."""
        return min(self._timers.wake_at, self._seats.wake_at)

    def tick(self) -> None:
        """Does what is due."""
        now = self._clock()
        self._timers.tick(now)
        self._seats.tick(now)

    # --- the life of a socket

    def open(self, target: Target, seat: int, connection: Connection) -> ClientSocket:
        """A client asks for a socket of this object; its key is what the upgrade carries."""
        self._seats.join(seat, self._clock())
        self._numbers += 1
        socket = ClientSocket(self.gateway_id, self._numbers, target, seat, connection)
        self._sockets[socket.number] = socket
        return socket

    def accepted(self, socket: ClientSocket, auto: tuple[str, str] | None) -> None:
        """The object took the socket, and so did the client: what was sent meanwhile may leave."""
        if socket.state is State.CLOSING:  # the object accepted and closed it in one go
            socket.connection.may_write()
            return
        if socket.auto is None:  # else it was set while the answer was on its way
            socket.auto = auto
        if self._stopping or self._seats.is_lost(socket.seat):
            self._tell_end(socket, GOING_AWAY, "", False, None)
            socket.state = State.OPEN
            self._close(socket, Close(GOING_AWAY, _STOPPING if self._stopping else _LOST))
            return
        socket.state = State.OPEN
        if socket.queued[0]:
            socket.connection.may_write()

    def refused(self, socket: ClientSocket, *, perhaps_accepted: bool) -> None:
        """The client gets no socket; the object is told if it may have one."""
        if perhaps_accepted:
            self._tell_end(socket, ABNORMAL, "", False, None)
        socket.told = True
        self._forget(socket)

    def disconnected(self, socket: ClientSocket, code: int, reason: str, was_clean: bool) -> None:
        """The client closed the connection, or it is gone.  A second call does nothing."""
        if socket.state is not State.ENDED:
            self._tell_end(socket, code, reason, was_clean, None)
            self._forget(socket)

    def stop(self) -> None:
        """The gateway stops: all clients are sent away, and all objects told."""
        self._stopping = True
        for socket in list(self._sockets.values()):
            if socket.state is State.OPEN:
                self._fail(socket, Close(GOING_AWAY, _STOPPING))

    def _forget(self, socket: ClientSocket) -> None:
        socket.end()
        self._sockets.pop(socket.number, None)

    def _tell_end(
        self, socket: ClientSocket, code: int, reason: str, was_clean: bool, error: str | None
    ) -> None:
        if not socket.told:
            socket.told = True
            if not self._seats.is_lost(socket.seat) or socket.state is State.OPENING:
                self._endings.add(Ending(socket.target, socket.key, code, reason, was_clean, error))

    def _close(self, socket: ClientSocket, close: Close, *, drop: bool = False) -> None:
        """The client gets a close; if it does not take it, the connection is cut."""
        opening = socket.state is State.OPENING
        socket.close(close, drop=drop)
        socket.told = True
        self._timers.at(self._clock() + self._limits.socket_close_wait_s, lambda: self._cut(socket))
        if not opening:
            socket.connection.may_write()

    def _fail(
        self, socket: ClientSocket, close: Close, error: str | None = None, *, drop: bool = False
    ) -> None:
        """The gateway ends a socket by itself, and tells its object."""
        self._tell_end(socket, close.code, close.reason, False, error)
        self._close(socket, close, drop=drop)

    def _cut(self, socket: ClientSocket) -> None:
        if socket.state is not State.ENDED:
            socket.connection.cut()

    # --- from the client

    def receive(self, socket: ClientSocket, data: str | bytes) -> bool:
        """A message of the client; whether the next one may be given at once, else `may_read` says when."""
        if socket.state is not State.OPEN:
            return True
        if socket.auto is not None and data == socket.auto[0]:
            self._push(socket, _frame(socket.auto[1]))
            return True
        if _too_big(data, self._limits.socket_frame_bytes_max):
            self._fail(socket, Close(TOO_BIG, "the message is too big"))
            return True
        socket.frame = data
        socket.frame_until = self._clock() + self._limits.socket_frame_wait_s
        socket.frame_attempts = 0
        self._send_frame(socket)
        return False

    def _send_frame(self, socket: ClientSocket) -> None:
        if socket.state is not State.OPEN or socket.frame is None:
            self._read_on(socket)
            return
        left = socket.frame_until - self._clock()
        self._hands.call(
            socket.target,
            FRAME,
            [socket.key, socket.frame],
            max(left, _FIRST_PAUSE_S),
            lambda result, error: self._on_outcome(socket, result, error),
        )

    def _read_on(self, socket: ClientSocket) -> None:
        socket.frame = None
        socket.connection.may_read()

    def _on_outcome(self, socket: ClientSocket, result: Any, error: BaseException | None) -> None:
        if socket.state is not State.OPEN:
            self._read_on(socket)
        elif error is None:
            if result == NO_SOCKET:
                self._close(socket, Close(FAILED, "the object does not know this socket"))
            self._read_on(socket)
        elif isinstance(error, _PASSING):
            self._retry_frame(socket, error)
        elif isinstance(error, OutcomeUnknown):
            text = "it is not known whether the last message was handled"
            self._fail(socket, Close(FAILED, text), error=str(error))
            self._read_on(socket)
        elif isinstance(error, NotExecuted):
            code = TOO_BIG if isinstance(error, MessageTooLarge) else FAILED
            self._fail(socket, Close(code, "the message cannot be handled"), error=str(error))
            self._read_on(socket)
        else:  # the handler raised: its turn left no trace, and the worker has logged it
            self._read_on(socket)

    def _retry_frame(self, socket: ClientSocket, error: NotExecuted) -> None:
        pause = min(_PAUSE_MAX_S, _FIRST_PAUSE_S * 2 ** min(socket.frame_attempts, _DOUBLINGS_MAX))
        pause *= 0.5 + self._random.random()
        if isinstance(error, Overloaded):
            pause = max(pause, error.retry_after)
        socket.frame_attempts += 1
        when = self._clock() + pause
        if when >= socket.frame_until:
            self._fail(socket, Close(TRY_LATER, "the object is not available"), error=str(error))
            self._read_on(socket)
        else:
            self._timers.at(when, lambda: self._send_frame(socket))

    # --- from the objects

    def on_link(self, worker: int) -> None:
        """A door of this worker was connected to."""
        self._seats.on_link(worker, self._clock())

    def on_map(self, worker_of: Callable[[bytes], int]) -> None:
        """Objects may have another worker now (after a restart with another number of workers)."""
        now = self._clock()
        for socket in self._sockets.values():
            seat = worker_of(socket.target.object_id)
            if seat != socket.seat:
                socket.seat = seat
                self._seats.join(seat, now)

    def on_frames(self, worker: int, epoch: int, records: list[Any]) -> None:
        """FRAMES for this gateway, without the id in front; raises `BadMessage` for what is none."""
        try:
            for record in records:
                if record is None:
                    self._on_dead(worker)
                    continue
                counter, entries, *earlier = record
                written = earlier[0] if earlier else epoch
                if type(counter) is not int or type(written) is not int:
                    raise TypeError("a record has numbers")
                if self._seats.take(worker, written, counter):
                    for kind, payload, numbers in (
                        codec.decode(entries) if type(entries) is bytes else entries
                    ):
                        self._on_entry(kind, payload, numbers)
                else:
                    self._seats.repeat(worker, self._clock())
        except (TypeError, ValueError, IndexError) as error:
            raise codec.BadMessage(f"a worker sent what are no frames: {error}") from error
        finally:
            self._seats.taken(worker, self._clock())

    def _on_entry(self, kind: int, payload: Any, numbers: list[int]) -> None:
        sockets = self._sockets
        if kind in (TEXT, BINARY):
            frame = _frame(payload)
            for number in numbers:
                socket = sockets.get(number)
                if socket is not None and socket.state <= State.OPEN:
                    self._push(socket, frame)
        elif kind == CLOSE:
            code, reason = payload
            for number in numbers:
                socket = sockets.get(number)
                if socket is not None and socket.state <= State.OPEN:
                    self._close(socket, Close(code, reason))
        elif kind == AUTO:
            auto = None if payload is None else (payload[0], payload[1])
            for number in numbers:
                socket = sockets.get(number)
                if socket is not None:
                    socket.auto = auto

    def _push(self, socket: ClientSocket, frame: Frame) -> None:
        if socket.push(frame, self._limits):
            if socket.state is State.OPEN:
                socket.connection.may_write()
            return
        self.dropped_slow += 1
        frames, size = socket.queued
        error = f"the client does not read: {frames} frames of {size} bytes waited for it"
        self._fail(socket, Close(TRY_LATER, "too slow"), error=error, drop=True)

    def _on_dead(self, worker: int) -> None:
        """The worker has not heard this gateway for too long, and has ended its sockets."""
        log.warning("worker %d has counted this gateway as dead: its sockets are closed", worker)
        self._seats.lose(worker)
        self.was_lost = True
        self._hands.on_lost()
        for socket in list(self._sockets.values()):
            if socket.seat == worker and socket.state is State.OPEN:
                self._fail(socket, Close(GOING_AWAY, _LOST))

    def _tell(self, worker: int, mark: tuple[int, int]) -> bool:
        return self._hands.tell(worker, codec.encode([self.gateway_id, *mark]))


def _frame(data: Any) -> Frame:
    if isinstance(data, str):
        return Frame(data, len(data) if data.isascii() else len(data.encode()))
    if isinstance(data, bytes):
        return Frame(data, len(data))
    raise TypeError(f"a frame is str or bytes, not {type(data).__name__}")


def _too_big(data: str | bytes, limit: int) -> bool:
    if isinstance(data, bytes) or data.isascii():
        return len(data) > limit
    return len(data) > limit or len(data.encode()) > limit
