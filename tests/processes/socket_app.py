"""The application of the socket tests: rooms that number what they are told."""

from __future__ import annotations

from typing import Any

from perdure import DurableObject, Request, WebSocket, WebSocketResponse, durable


class Room(DurableObject):
    """Tells everybody each message under its number."""

    count: int = durable(0)
    ended: list[Any] = durable(default_factory=list)

    async def fetch(self, request: Request) -> WebSocketResponse:
        """A socket."""
        return self.ctx.accept_websocket(request, attachment=request.path_params["path"])

    async def websocket_message(self, ws: WebSocket, message: str | bytes) -> None:
        self.count += 1
        for other in self.ctx.websockets():
            other.send(f"{self.count} {message!s}")

    async def websocket_close(self, ws: WebSocket, code: int, reason: str, was_clean: bool) -> None:
        self.ended.append([ws.attachment, code, reason, was_clean])

    async def ends(self) -> list[Any]:
        """What sockets have ended with."""
        return self.ended

    async def total(self) -> int:
        """How many messages there were."""
        return self.count
