"""Objects with WebSockets, for the tests of them: a room that does what its members ask for."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import PlainTextResponse

from perdure import DurableObject, Request, WebSocket, durable


class Room(DurableObject):
    """Echoes, counts and broadcasts; the path and the query of the upgrade say what to do with it."""

    messages: int = durable(0)
    ends: list[Any] = durable(default_factory=list)

    async def on_start(self) -> None:
        self.woken_with = len(self.ctx.websockets())

    async def fetch(self, request: Request) -> Any:
        if request.url.path.endswith("/raise"):
            raise ValueError("no upgrades today")
        if request.url.path.endswith("/denied"):
            return PlainTextResponse("members only", 403)
        query = request.query_params
        protocol = query.get("protocol")
        response = self.ctx.accept_websocket(
            request, tags=query.getlist("tag"), attachment={"name": query.get("name")}, protocol=protocol
        )
        if "greet" in query:
            response.websocket.send("welcome")
        return response

    async def websocket_message(self, ws: WebSocket, message: str | bytes) -> None:
        if isinstance(message, bytes):
            ws.send(message)
            return
        word, _, rest = message.partition(" ")
        self.messages += 1
        if word == "echo":
            ws.send(rest)
        elif word == "count":
            ws.send(json.dumps([self.messages, int(rest)]))
        elif word == "all":
            for member in self.ctx.websockets():
                member.send(rest)
        elif word == "tag":
            tag, _, text = rest.partition(" ")
            for member in self.ctx.websockets(tag):
                member.send(text)
        elif word == "who":
            ws.send_json([list(ws.tags), ws.attachment, self.woken_with])
        elif word == "close":
            code, _, reason = rest.partition(" ")
            ws.send("closing")
            ws.close(int(code), reason)
        elif word == "raise":
            raise ValueError(rest)
        elif word == "large":
            ws.send("x" * int(rest))

    async def websocket_close(self, ws: WebSocket, code: int, reason: str, was_clean: bool) -> None:
        name = (ws.attachment or {}).get("name")
        self.ends = [*self.ends, [name, code, reason, was_clean]]
        if name == "fails":
            raise RuntimeError("the handler of the end fails")

    def state(self) -> dict[str, Any]:
        """What the object knows."""
        return {"messages": self.messages, "ends": self.ends, "open": len(self.ctx.websockets())}

    def answer_by_itself(self, request: str, response: str) -> None:
        """From now on the gateway answers that."""
        self.ctx.set_websocket_auto_response(request, response)

    def tell(self, text: str, times: int = 1) -> int:
        """Sends to all members."""
        members = self.ctx.websockets()
        for _ in range(times):
            for member in members:
                member.send(text)
        return len(members)
