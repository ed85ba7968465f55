"""One client's WebSocket as the gateway sees it: its queue of outgoing frames, and how far it is in closing.

Pure; runs in the gateway's event loop.  Guarantees: frames leave in the order in which they came, a close
leaves last and once, nothing is queued behind it; the queue is bounded in frames and in bytes, though one
frame of any allowed size always fits into an empty one.  An idle socket holds no queue at all.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import NamedTuple, Protocol

from perdure.limits import Limits
from perdure.stub import Target

__all__ = ["ClientSocket", "Close", "Connection", "Frame", "State"]

_NUMBER_BYTES = 8


class State(IntEnum):
    """Only ever grows."""

    OPENING = 0
    """The object has not said yet whether it takes the socket; what it sends already waits."""
    OPEN = 1
    CLOSING = 2
    """A close is queued or was sent: nothing more goes in or out."""
    ENDED = 3
    """The connection is gone."""


class Frame:
    """A message to clients; many queues may hold the same one."""

    __slots__ = ("_wire", "data", "size")

    def __init__(self, data: str | bytes, size: int) -> None:
        self.data = data
        self.size = size
        """In bytes."""
        self._wire: bytes | None = None

    def wire(self) -> bytes:
        """As a server writes it (RFC 6455 §5.2); made once, for all sockets that get it."""
        if self._wire is None:
            is_text = isinstance(self.data, str)
            payload = self.data.encode() if isinstance(self.data, str) else self.data
            size = len(payload)
            if size < 126:
                head = bytes((0x81 if is_text else 0x82, size))
            elif size < 1 << 16:
                head = bytes((0x81 if is_text else 0x82, 126)) + size.to_bytes(2, "big")
            else:
                head = bytes((0x81 if is_text else 0x82, 127)) + size.to_bytes(8, "big")
            self._wire = head + payload
        return self._wire


class Close(NamedTuple):
    """The last thing that a client gets."""

    code: int
    reason: str


class Connection(Protocol):
    """The client's end, told by the core; none of these calls back into it."""

    def may_write(self) -> None:
        """`ClientSocket.take` has something."""

    def may_read(self) -> None:
        """The message that was given to `receive` last has ended: the next one may be given."""

    def cut(self) -> None:
        """The client has not taken its close in time: the connection ends now."""


class ClientSocket:
    """State of one socket; `Sockets` is the only one who changes it."""

    __slots__ = (
        "_bytes",
        "_close",
        "_queue",
        "auto",
        "connection",
        "frame",
        "frame_attempts",
        "frame_until",
        "gateway_id",
        "number",
        "seat",
        "state",
        "target",
        "told",
    )

    def __init__(
        self, gateway_id: bytes, number: int, target: Target, seat: int, connection: Connection
    ) -> None:
        self.gateway_id = gateway_id
        self.number = number
        self.target = target
        self.seat = seat
        """Index of the worker that has the object."""
        self.connection = connection
        self.state = State.OPENING
        self.auto: tuple[str, str] | None = None
        """What is answered here, and with what, without asking the object."""
        self.frame: str | bytes | None = None
        """The inbound message that is on its way to the object, or waits to be sent again."""
        self.frame_until = 0.0
        self.frame_attempts = 0
        self.told = False
        """Whether the object needs no `web.closed` any more: it was sent, or the object closed the socket."""
        self._queue: deque[Frame] | None = None
        self._bytes = 0
        self._close: Close | None = None

    @property
    def key(self) -> bytes:
        """What the object knows it by."""
        return self.gateway_id + self.number.to_bytes(_NUMBER_BYTES, "big")

    @property
    def queued(self) -> tuple[int, int]:
        """Frames and bytes that wait for the client."""
        return (len(self._queue) if self._queue is not None else 0), self._bytes

    def push(self, frame: Frame, limits: Limits) -> bool:
        """Queues a frame; whether there was room."""
        queue = self._queue
        if queue is None:
            self._queue = deque((frame,))
        elif (
            len(queue) >= limits.socket_queue_frames_max
            or self._bytes + frame.size > limits.socket_queue_bytes_max
        ):
            return False
        else:
            queue.append(frame)
        self._bytes += frame.size
        return True

    def close(self, close: Close, *, drop: bool = False) -> None:
        """Queues the close, behind what waits or, with `drop`, in its place; nothing follows it."""
        self.state = State.CLOSING
        self._close = close
        if drop:
            self._queue, self._bytes = None, 0

    def take(self) -> Frame | Close | None:
        """What goes to the client next; None while there is nothing, or the socket is not accepted."""
        if self.state in (State.OPENING, State.ENDED):
            return None
        queue = self._queue
        if queue is not None:
            frame = queue.popleft()
            self._bytes -= frame.size
            if not queue:
                self._queue = None
            return frame
        close, self._close = self._close, None
        return close

    def end(self) -> None:
        """The connection is gone, and with it what was queued."""
        self.state = State.ENDED
        self._queue, self._bytes, self._close, self.frame = None, 0, None, None
