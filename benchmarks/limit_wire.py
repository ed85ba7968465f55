"""The bare pipeline's bytes and its non-blocking sockets, shared by its client, router and workers.

A request is one byte, the worker's number, then msgpack `[[sequence, key, method, arguments], ...]`; a
reply is msgpack `[[sequence, result], ...]`: one record a call, as calls that differ need it. (A pipeline
that can only increment could send columns, `[[sequences], [keys]]`: 7 % faster.) One message carries
everything that was ready for one destination in one loop tick. Between router and worker each message is
preceded by a frame with the client's ZeroMQ identity, and one multipart message carries as many of these
pairs as were ready.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence

import zmq

__all__ = [
    "MESSAGES_PER_DRAIN",
    "NOBLOCK",
    "Socket",
    "bind",
    "connect",
    "descriptor",
    "exit_when_parent_ends",
    "readable",
    "send_frames",
    "watch",
]

Socket = zmq.Socket[bytes]

# Plain integers: with the enum members `events & POLLIN` takes 0.6 us and every `|` of flags as much.
NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)

# Messages read before the loop gets its turn again. A bound, not a tuning knob: batches are large, and
# 1,024 outstanding calls never make more than a few dozen messages.
MESSAGES_PER_DRAIN = 256


def bind(context: zmq.Context[Socket], endpoint: str) -> Socket:
    """A ROUTER socket at `endpoint` without high-water marks: the load is bounded by its callers."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    _unbounded(socket)
    socket.bind(endpoint)
    return socket


def connect(context: zmq.Context[Socket], endpoint: str) -> Socket:
    """A DEALER socket connected to `endpoint`."""
    socket = context.socket(zmq.DEALER)
    _unbounded(socket)
    socket.connect(endpoint)
    return socket


def _unbounded(socket: Socket) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)


def descriptor(socket: Socket) -> int:
    """The file descriptor that tells of the socket's events."""
    number: int = socket.getsockopt(zmq.FD)  # type: ignore[assignment]
    return number


def readable(socket: Socket) -> Callable[[], bool]:
    """A function that says whether a message waits; 1.1 us, where a `recv` that finds none takes 2.5."""
    get = socket.getsockopt
    return lambda: bool(get(_EVENTS) & _POLLIN)  # type: ignore[operator]


def send_frames(socket: Socket, frames: Sequence[bytes]) -> None:
    """Send one multipart message; `send_multipart` would check and combine its flags for each frame."""
    send = socket.send
    for frame in frames[:-1]:
        send(frame, _NOBLOCK_MORE)
    send(frames[-1], NOBLOCK)


def watch(loop: asyncio.AbstractEventLoop, socket: Socket, drain: Callable[[], None]) -> Callable[[], None]:
    """Call `drain` whenever `socket` can be read; returns the check that must follow every send.

    ZeroMQ's descriptor signals an edge, and a send may consume that signal. Whoever sends calls the
    returned function afterwards, and so does a `drain` whose budget is spent.
    """
    waits = readable(socket)
    due = False

    def run() -> None:
        nonlocal due
        due = False
        drain()

    def recheck() -> None:
        nonlocal due
        if not due and waits():
            due = True
            loop.call_soon(run)

    loop.add_reader(descriptor(socket), drain)
    recheck()
    return recheck


def exit_when_parent_ends(loop: asyncio.AbstractEventLoop) -> None:
    """Stop `loop` when standard input closes: the benchmark's end, in whatever way it comes."""

    def on_input() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            loop.stop()

    loop.add_reader(sys.stdin.fileno(), on_input)
