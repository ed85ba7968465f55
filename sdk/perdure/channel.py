"""A ZeroMQ socket on an asyncio loop, read by its file descriptor.  Used by every process.

Guarantees that nothing waits for a lost wake-up: ZeroMQ's descriptor is edge-triggered and its state
may change on a send too, so the events are looked at again after every drain and every send
(RELIABILITY §2.2).  Reading this way costs 3.6 µs a message, through zmq.asyncio 16-20 µs.
Sends never block: a full pipe raises `WouldBlock`, an unknown peer `PeerGone`.  A pipe is full when it
holds `pipe_messages_max` messages or `pipe_bytes_max` bytes of large ones, which ZeroMQ sends without a
copy and tells about when the kernel has them (0.01 ms each).  Contexts and sockets are made here only, so
that all of them have the same limits and options.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Final

import zmq

from perdure.errors import PerdureError
from perdure.limits import Limits
from perdure.unsent import Unsent

__all__ = ["Channel", "PeerGone", "TooOld", "WouldBlock", "open_context", "open_dealer", "open_router"]

_LIMITS = Limits()
_BACKLOG_CONNECTIONS = 1_024
_HANDSHAKE_MS = 3_000
# Plain integers: with the enum's members every `&` and `|` takes 0.6 µs.
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_RCVMORE = int(zmq.RCVMORE)
_LIBZMQ_VERSION_MIN: Final = (4, 3, 5)
"""Older ones have faults that a peer can exploit."""
_SOCKETS_MAX: Final = 4_096
"""A link to each of 1,024 workers is a socket and its monitor's, and closed ones hold their place a while."""
_LARGE_BYTES: Final = _LIMITS.large_message_bytes


class WouldBlock(PerdureError):
    """The pipe to this peer is full; try again when it has drained."""


class PeerGone(PerdureError):
    """The peer's connection is closed; nothing was sent."""


class TooOld(PerdureError):
    """The installed libzmq has faults that peers can exploit; install a newer pyzmq."""


class Channel:
    """One socket; `on_message(frames)` runs in the loop for each message, `on_drained()` after each drain."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: zmq.Socket[bytes],
        on_message: Callable[[list[bytes]], None],
        on_drained: Callable[[], None] | None = None,
        may_read: Callable[[], bool] = lambda: True,
    ) -> None:
        """Messages stay in the socket, and then with their senders, while `may_read()` is false."""
        self.socket = socket
        self._may_read = may_read
        self._loop = loop
        self._on_message = on_message
        self._on_drained = on_drained
        self._descriptor: int = socket.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._scheduled = False
        self._closed = False
        self._addressed = socket.getsockopt(zmq.TYPE) == zmq.ROUTER
        self._unsent = Unsent(_LIMITS.pipe_bytes_max, _LIMITS.pipes_bytes_max)
        self.messages_received = 0
        self._receive = socket.recv
        self._send = socket.send
        self._option: Callable[[int], int] = socket.getsockopt  # type: ignore[assignment]
        loop.add_reader(self._descriptor, self._drain)
        self._schedule()

    def send(self, frames: Sequence[bytes], *, look_now: bool = False) -> None:
        """Sends or raises `WouldBlock` / `PeerGone`; never blocks, never drops silently.

        `look_now` is for senders of one message in a turn of the loop; see below.
        """
        # A send may swallow the descriptor's edge for messages that came meanwhile, also when it fails:
        # look once a tick.  With `look_now` at once, 1.1 µs, where the loop's next turn costs an epoll_wait.
        if not look_now and not self._scheduled:
            self._schedule()
        send, body = self._send, frames[-1]
        large = len(body) >= _LARGE_BYTES
        if large:
            peer = frames[0] if self._addressed else b""
            if not self._unsent.takes(peer, len(body)):
                raise WouldBlock("large messages to this peer have not left yet")
        try:
            for frame in frames[:-1]:
                send(frame, _NOBLOCK_MORE)
            if large:
                tracker = self.socket.send(body, _NOBLOCK, copy=False, track=True)
                self._unsent.add(peer, len(body), partial(_is_done, tracker))
            else:
                send(body, _NOBLOCK)
        except zmq.Again:
            raise WouldBlock("the pipe to this peer is full") from None
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.ENOTSOCK):
                raise PeerGone("the peer's connection is closed") from None
            raise
        finally:
            if look_now and not self._scheduled and not self._closed and self._option(_EVENTS) & _POLLIN:
                self._schedule()

    @property
    def unsent_bytes(self) -> int:
        """Of large messages that were sent and had not left the process when it was looked at last."""
        return self._unsent.total_bytes

    def read_rest(self) -> None:
        """Reads all that has arrived, now; for a peer that is gone, as its messages are not endless."""
        while not self._closed and self._option(_EVENTS) & _POLLIN:
            self._drain()

    def close(self, linger_ms: int = 0) -> None:
        """Stops reading and closes the socket; messages not yet sent get `linger_ms`."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._descriptor)
            self.socket.close(linger_ms)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._drain_again)

    def _drain_again(self) -> None:
        self._scheduled = False
        # Asking takes 1.1 µs, a receive that finds nothing 2.5.
        if not self._closed and self._option(_EVENTS) & _POLLIN:
            self._drain()

    def _drain(self) -> None:
        receive, option, on_message = self._receive, self._option, self._on_message
        may_read = self._may_read
        count = 0
        more = True
        try:
            # Not loop.time(): uvloop's stands still within a callback.
            until = monotonic() + _LIMITS.read_budget_s
            while count < _LIMITS.read_budget_messages and not self._closed and monotonic() < until:
                if not option(_EVENTS) & _POLLIN:
                    more = False
                    break
                if not may_read():
                    break
                frames = [receive(_NOBLOCK)]
                while option(_RCVMORE):
                    frames.append(receive(_NOBLOCK))
                count += 1
                on_message(frames)
        finally:
            self.messages_received += count
            if more and not self._closed and not self._scheduled:
                self._schedule()
            if self._on_drained is not None:
                self._on_drained()


def _is_done(tracker: zmq.MessageTracker) -> bool:
    return tracker.done


def open_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context with room for the sockets of the largest cluster.

    Raises `TooOld`.
    """
    if zmq.zmq_version_info() < _LIBZMQ_VERSION_MIN:
        needed = ".".join(map(str, _LIBZMQ_VERSION_MIN))
        raise TooOld(f"libzmq {zmq.zmq_version()} is too old; {needed} or newer is needed")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, _SOCKETS_MAX)
    return context


def _common(socket: zmq.Socket[bytes]) -> None:
    socket.copy_threshold = _LARGE_BYTES
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _LIMITS.pipe_messages_max)
    socket.setsockopt(zmq.MAXMSGSIZE, _LIMITS.message_bytes_max + _LIMITS.wire_overhead_bytes)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    for option, value in (
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, 30),
        (zmq.TCP_KEEPALIVE_INTVL, 10),
        (zmq.TCP_KEEPALIVE_CNT, 3),
    ):
        socket.setsockopt(option, value)


def open_router(context: zmq.Context[zmq.Socket[bytes]], endpoints: Sequence[str]) -> zmq.Socket[bytes]:
    """A ROUTER bound to the endpoints; sending to an unknown peer is an error, not a silent drop."""
    socket = context.socket(zmq.ROUTER)
    _common(socket)
    socket.setsockopt(zmq.RCVHWM, _LIMITS.pipe_messages_max)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.BACKLOG, _BACKLOG_CONNECTIONS)
    try:
        for endpoint in endpoints:
            socket.bind(endpoint)
    except zmq.ZMQError:
        socket.close()  # one that is left open lets the context's end wait for ever
        raise
    return socket


def open_dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str | None) -> zmq.Socket[bytes]:
    """A DEALER connected to one endpoint; it takes messages only while the connection stands.

    When the connection breaks, messages that have arrived and were not read are lost; see
    `perdure.connection`, which connects by itself (`endpoint` is None).
    """
    socket = context.socket(zmq.DEALER)
    _common(socket)
    socket.setsockopt(zmq.RCVHWM, _LIMITS.pipe_messages_received_max)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    if endpoint is None:
        return socket
    # Without IMMEDIATE messages would queue for a peer that is not there, or reach its successor.
    socket.setsockopt(zmq.IMMEDIATE, 1)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError:
        socket.close()
        raise
    return socket
