"""One end of one connection: it knows whether it stands, and what had arrived is read before it is given up.

Used by clients and workers, towards a router or a door.  ZeroMQ's own option for "send only while
connected" (IMMEDIATE) drops, when the connection breaks, what has arrived and was not read yet: of 20
replies of a process that was killed afterwards, none was left.  Without it ZeroMQ would hold messages
for whoever answers at the endpoint next.  So a monitor tells here when there is a connection, nothing
is sent without one, and whoever uses a connection that was lost opens another.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence

import zmq

from perdure.channel import Channel, WouldBlock, open_dealer

__all__ = ["Connection"]

# The monitor may tell of the end some microseconds before the last message can be read.
_LAST_MESSAGES_S = 0.01
_EVENT = struct.Struct("=Hi")
_CONNECTED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_LOST = int(zmq.EVENT_DISCONNECTED)


class Connection:
    """A DEALER to one endpoint, for one life: when it is lost it stays lost.

    `on_connected` and `on_lost` run in the loop, `on_lost` a moment after nothing is sent any more.
    Raises `zmq.ZMQError` when the endpoint is none, or no descriptor is left.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        *,
        on_message: Callable[[list[bytes]], None],
        on_drained: Callable[[], None],
        on_connected: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.connected = False
        """Whether messages are taken; `on_connected` runs before the first one."""
        self._stands = self._broken = False
        self._loop = loop
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._socket = socket = open_dealer(context, None)
        self._channel = Channel(loop, socket, on_message, on_drained)
        try:
            # The monitor has to be there before the connection is.
            self._monitor = Channel(loop, socket.get_monitor_socket(_CONNECTED | _LOST), self._on_event)
        except zmq.ZMQError:
            self._channel.close()
            raise
        try:
            socket.connect(endpoint)
        except zmq.ZMQError:
            self.close()
            raise

    def send(self, frames: Sequence[bytes]) -> None:
        """As `Channel.send`; raises `WouldBlock` while there is no connection."""
        # What is sent after the end and before the loop hears of it would be neither here nor there.
        self._monitor.read_rest()
        if not self.connected:
            raise WouldBlock("there is no connection to this peer")
        self._channel.send(frames, look_now=True)

    def read_rest(self) -> None:
        """Reads now what has arrived, without waiting for the loop's turn."""
        self._channel.read_rest()

    def close(self, linger_ms: int = 0) -> None:
        """Closes the connection; messages not yet sent get `linger_ms`.  A second call does nothing."""
        self.connected = self._stands = False
        if not self._channel.closed:
            self._socket.disable_monitor()  # before the socket that it belongs to is closed
            self._monitor.close()
            self._channel.close(linger_ms)

    def _on_event(self, frames: list[bytes]) -> None:
        event, _ = _EVENT.unpack_from(frames[0])
        if self._broken:  # ZeroMQ connects again by itself, perhaps to a successor
            return
        if event == _CONNECTED:
            self._stands = True
            # This may run within a send, which would come before what `on_connected` has to say.
            self._loop.call_soon(self._tell_connected)
        elif event == _LOST and self._stands:
            self.connected = self._stands = False
            self._broken = True
            self._loop.call_later(_LAST_MESSAGES_S, self._give_up)

    def _tell_connected(self) -> None:
        if self._stands:
            self.connected = True
            self._on_connected()

    def _give_up(self) -> None:
        if not self._channel.closed:
            self._channel.read_rest()
            self._on_lost()
