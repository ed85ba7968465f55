"""The bare pipeline's bytes and its non-blocking socket, shared by its client, router and workers.

A request is one byte, the worker's number, then msgpack `[sequence numbers, keys]`; a reply is msgpack
`[sequence numbers, values]`. One message carries everything that was ready for one destination in one
loop tick. Between router and worker each message is preceded by a frame with the client's ZeroMQ
identity, and one multipart message carries as many of these pairs as were ready.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import zmq

__all__ = ["MESSAGES_PER_DRAIN", "bind", "connect", "exit_when_parent_ends", "watch"]

# Messages read before the loop gets its turn again. Batches are large, so this is a bound, not a tuning
# knob: 1,024 outstanding calls never make more than a few dozen messages.
MESSAGES_PER_DRAIN = 256


def bind(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A ROUTER socket at `endpoint` without high-water marks: the load is bounded by its callers."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    _unbounded(socket)
    socket.bind(endpoint)
    return socket


def connect(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    """A DEALER socket connected to `endpoint`."""
    socket = context.socket(zmq.DEALER)
    _unbounded(socket)
    socket.connect(endpoint)
    return socket


def _unbounded(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)


def watch(
    loop: asyncio.AbstractEventLoop, socket: zmq.Socket[bytes], drain: Callable[[], None]
) -> Callable[[], None]:
    """Call `drain` whenever `socket` can be read; returns the check that must follow every send.

    ZeroMQ's descriptor signals an edge, and a send may consume that signal. Whoever sends outside
    `drain` calls the returned function afterwards, and a `drain` whose budget is spent calls it too.
    """
    events, pollin, get = zmq.EVENTS, zmq.POLLIN, socket.getsockopt
    pending = False

    def run() -> None:
        nonlocal pending
        pending = False
        drain()

    def recheck() -> None:
        nonlocal pending
        if not pending and get(events) & pollin:  # type: ignore[operator]
            pending = True
            loop.call_soon(run)

    loop.add_reader(socket.getsockopt(zmq.FD), drain)
    recheck()
    return recheck


def exit_when_parent_ends(loop: asyncio.AbstractEventLoop) -> None:
    """Stop `loop` when standard input closes: the benchmark's end, in whatever way it comes."""

    def on_input() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            loop.stop()

    loop.add_reader(sys.stdin.fileno(), on_input)
