"""Connections from one caller to the workers' doors, following the slot map.  Clients and workers.

Guarantees: a message goes only to the incarnation it was addressed to (a door's endpoint carries its
epoch, and a link is never reused for another); the death of an incarnation is told at once, when the
kernel closes its socket, without waiting for the map; replies that had arrived are read first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import zmq

from perdure import protocol
from perdure.channel import PeerGone, WouldBlock
from perdure.connection import Connection
from perdure.errors import PerdureError
from perdure.slotmap import SlotMap

__all__ = ["DoorLinks"]

log = logging.getLogger("perdure.links")


class _Link:
    """The connection to one incarnation."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.closing = False
        """The door said GOODBYE: nothing more is sent to it."""


class DoorLinks:
    """Links to all live doors of the current slot map."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        on_message: Callable[[int, int, protocol.Header, bytes], None],
        on_death: Callable[[int, int], None],
        on_drained: Callable[[], None],
    ) -> None:
        self.on_up: Callable[[int, int], None] | None = None
        """Told of each link once it stands and takes messages: its worker and epoch."""
        self._loop = loop
        self._context = context
        self._on_message = on_message
        self._on_death = on_death
        self._on_drained = on_drained
        self._links: dict[tuple[int, int], _Link] = {}

    def follow(self, slot_map: SlotMap, skip: int | None = None) -> None:
        """Opens links to new incarnations and closes those of gone ones; `skip` is this worker itself."""
        wanted = {
            (index, seat.epoch): seat.endpoint
            for index, seat in enumerate(slot_map.seats)
            if seat.endpoint and index != skip
        }
        for address in [address for address in self._links if address not in wanted]:
            self._links.pop(address).connection.close()
        for address, endpoint in wanted.items():
            if address not in self._links:
                try:
                    self._links[address] = self._open(address, endpoint)
                except zmq.ZMQError as error:  # say no more descriptors; the next call tries again
                    log.warning("no link to the door %s: %s", endpoint, error)

    def read_gone(self, slot_map: SlotMap) -> None:
        """Reads what incarnations still said that a new map does not have any more.

        For whoever gives up their calls because of that map, before it does.
        """
        for (index, epoch), link in list(self._links.items()):
            if index >= len(slot_map.seats) or slot_map.seats[index].epoch != epoch:
                link.connection.read_rest()

    def send(self, worker: int, epoch: int, header: bytes, body: bytes) -> bool:
        """Whether the message left; if not, the link is not ready (yet, or any more)."""
        link = self._links.get((worker, epoch))
        if link is None or link.closing:
            return False
        try:
            link.connection.send((header, body))
        except (WouldBlock, PeerGone):
            return False
        return True

    def close(self, linger_ms: int = 0) -> None:
        """Closes all links; messages not yet sent get `linger_ms`."""
        for link in self._links.values():
            link.connection.close(linger_ms)
        self._links.clear()

    def _open(self, address: tuple[int, int], endpoint: str) -> _Link:
        return _Link(
            Connection(
                self._loop,
                self._context,
                endpoint,
                on_message=lambda frames: self._receive(address, frames),
                on_drained=self._on_drained,
                on_connected=lambda: self._up(address),
                on_lost=lambda: self._lost(address),
            )
        )

    def _up(self, address: tuple[int, int]) -> None:
        if self.on_up is not None:
            self.on_up(*address)
        self._on_drained()

    def _receive(self, address: tuple[int, int], frames: list[bytes]) -> None:
        try:
            head = protocol.read_header(frames[0])
            if head.kind == protocol.GOODBYE:
                self._goodbye(address)
            elif len(frames) == 2:
                self._on_message(*address, head, frames[1])
        except PerdureError as error:
            log.warning("a message from a worker was not understood: %s", error)

    def _goodbye(self, address: tuple[int, int]) -> None:
        link = self._links.get(address)
        if link is None or link.closing:
            return
        try:
            link.connection.send((protocol.header(protocol.GOODBYE_ACK, *address), b""))
            link.closing = True
        except (WouldBlock, PeerGone):
            log.debug("a closing door could not be acknowledged")

    def _lost(self, address: tuple[int, int]) -> None:
        link = self._links.pop(address, None)
        if link is not None:
            link.connection.close()
            self._on_death(*address)
