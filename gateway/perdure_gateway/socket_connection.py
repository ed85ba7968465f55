"""One WebSocket connection of the gateway's server: uvicorn's protocol, mended.  Runs in the gateway process.

Guarantees: a connection that ends without a close from the client is told as 1006; one that does not answer
a ping, or does not take its close, is gone a moment later, however full its buffers are; a client that waits
for its object is not taken for dead; a stop says 1001, and is over when all objects know.

As it comes, uvicorn says 1005 for a lost connection, waits for ever for a client that takes nothing, reads no
pong while a message waits for the application, and stops with 1012.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from perdure_gateway.admission import Admission
from perdure_gateway.websocket import ABORT, STOPPING

__all__ = ["SocketConnection"]

_ABNORMAL, _GOING_AWAY = 1006, 1001
_STOP_CLOSE_S = 2.0
"""How long a client may take to answer the close of a gateway that stops."""


class SocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket connection, which counts as a connection of its client until it ends."""

    _admission: Admission | None = None
    _address: str | None = None
    _cutting: asyncio.TimerHandle | None = None
    """Ends the connection when its application has returned and it still stands."""

    def counted(self, admission: Admission, address: str | None) -> None:
        """It is counted there, and leaves at its end."""
        self._admission, self._address = admission, address

    def handle_connect(self, event: Request) -> None:
        """The client asks for an upgrade."""
        super().handle_connect(event)
        if not self.close_sent:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[ABORT] = self.transport.abort

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self.queue.put_nowait({"type": "websocket.disconnect", "code": _ABNORMAL, "reason": ""})
        super().connection_lost(exc)
        if self._cutting is not None:
            self._cutting.cancel()
        if self._admission is not None:
            admission, self._admission = self._admission, None
            admission.leave(self._address)

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The application has returned."""
        super().on_task_complete(task)
        if not self.disconnected:
            self._cut_after(self.close_timeout)

    def keepalive_timeout(self) -> None:
        """A ping was not answered in time."""
        if self.read_paused and not self.close_sent:
            # The answer may lie unread behind a message that the object has not handled yet.
            self.pong_timer = None
            self.schedule_ping()
            return
        super().keepalive_timeout()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def shutdown(self) -> None:
        """The server stops."""
        if not self.handshake_complete or self.close_sent or self.transport.is_closing():
            super().shutdown()
            return
        self.stop_keepalive()
        reason = "the server is stopping"
        message: Any = {"type": "websocket.disconnect", "code": _GOING_AWAY, "reason": reason, STOPPING: True}
        self.queue.put_nowait(message)
        self.conn.send_close(_GOING_AWAY, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self._cut_after(_STOP_CLOSE_S)

    def handle_close(self, event: Any) -> None:
        """The client has closed, or answered our close."""
        if self.close_sent and self.close_timer is None:
            self.transport.close()
        super().handle_close(event)

    def _cut_after(self, seconds: float) -> None:
        if self._cutting is not None:
            self._cutting.cancel()
        self._cutting = self.loop.call_later(seconds, self.transport.abort)
