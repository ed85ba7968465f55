"""Messages at a worker's door that mean something to this incarnation only.  Pure; worker's event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from perdure import protocol

if TYPE_CHECKING:
    from perdure_worker.host import Host

__all__ = ["Taker", "takers"]

Taker = Callable[[bytes, bytes | None, bytes], None]
"""Gets the identity at the door, the client behind the router if there is one, and the body."""


def takers(host: Host) -> Mapping[int, Taker]:
    """By kind, who takes a message whose header names the epoch of this incarnation; others are dropped."""
    return {
        protocol.STREAM: host.streams.on_message,
        protocol.PART: host.streams.bodies.on_message,
        protocol.SOCKETS: host.gateways.on_message,
    }
