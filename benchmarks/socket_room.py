"""The application of the socket benchmark: rooms that pass each message on to all their members."""

from __future__ import annotations

from perdure import DurableObject, Request, WebSocket, WebSocketResponse


class Room(DurableObject):
    """A chat room that stores nothing but its members."""

    async def fetch(self, request: Request) -> WebSocketResponse:
        """A new member."""
        return self.ctx.accept_websocket(request)

    async def websocket_message(self, ws: WebSocket, message: str | bytes) -> None:
        """Text goes to everybody, bytes back to the sender."""
        if isinstance(message, bytes):
            ws.send(message)
        else:
            for member in self.ctx.websockets():
                member.send(message)

    def nothing(self) -> None:
        """A call beside the sockets."""
