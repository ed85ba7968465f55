"""Chat rooms: one object for each room, one for each visitor's address.  With a page, `pages/chat.html`.

Run it with `perdure run examples/chat.py` and open http://127.0.0.1:8080/ in two browsers.

A room keeps its last 100 messages and gives each a timestamp that is later than all before, also after a
restart and when the clock goes back.  Its sockets stay open while it is out of memory: a silent room costs
nothing.  A message that is sent again after a lost connection is taken once.  A room with a name is public;
one made by `ChatLobby.private_room` has an id that nobody can guess.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from perdure import DurableObject, Request, Response, durable, public
from perdure.ids import new_unique_id
from perdure.websocket import WebSocket
from serving import site

HISTORY = 100
NAME_CHARS_MAX = 32
MESSAGE_CHARS_MAX = 256
PAUSE_S = float(os.environ.get("CHAT_PAUSE_S", "5"))
"""After the free messages, one in this many seconds."""
FREE_MESSAGES = 4


class ChatRoom(DurableObject):
    """Everybody in one room."""

    latest: int = durable(0)
    """Timestamp of the latest message, in ms."""
    kept: int = durable(0)
    """How many messages are stored."""

    async def fetch(self, request: Request) -> Response:
        if request.path_params["path"] != "/socket":
            return Response("a chat room has a WebSocket at /socket\n", 404)
        since = request.query_params.get("since", "")
        visitor = {
            "name": None,
            "address": request.client.host if request.client else "unknown",
            "since": int(since) if since.isdecimal() else 0,
        }
        return self.ctx.accept_websocket(request, attachment=visitor)

    async def websocket_message(self, ws: WebSocket, message: str | bytes) -> None:
        try:
            said = json.loads(message)
        except ValueError:
            said = None
        match said:
            case {"name": str(name)} if ws.attachment["name"] is None:
                await self._join(ws, name.strip())
            case {"message": str(text)} if ws.attachment["name"] is not None:
                await self._say(ws, text, said.get("id"), again=bool(said.get("again")))
            case _:
                ws.send_json({"error": 'say {"name": ...} once, then {"message": ...}'})

    def websocket_close(self, ws: WebSocket, code: int, reason: str, was_clean: bool) -> None:
        if ws.attachment["name"] is not None:
            self._tell({"quit": ws.attachment["name"]})

    async def _join(self, ws: WebSocket, name: str) -> None:
        if not 0 < len(name) <= NAME_CHARS_MAX:  # nobody has joined yet, so nobody quits: try another one
            ws.send_json({"error": f"a name has 1 to {NAME_CHARS_MAX} characters", "field": "name"})
            return
        for other in self._named():
            ws.send_json({"joined": other.attachment["name"]})
        ws.attachment = {**ws.attachment, "name": name}
        self._tell({"joined": name})
        seen = f"message/{ws.attachment['since']:016d}"
        for entry in (await self.storage.list(prefix="message/", start_after=seen)).values():
            ws.send_json(entry)
        ws.send_json({"ready": True})

    async def _say(self, ws: WebSocket, text: str, message_id: Any, *, again: bool) -> None:
        if not 0 < len(text) <= MESSAGE_CHARS_MAX:
            ws.send_json({"error": f"a message has 1 to {MESSAGE_CHARS_MAX} characters", "id": message_id})
            return
        history = await self.storage.list(prefix="message/") if again else {}
        if any(entry["id"] == message_id for entry in history.values()):
            ws.send_json({"taken": message_id})  # the connection broke before its sender heard of it
            return
        wait_s = await self.ctx.get(ChatLimiter, ws.attachment["address"]).take()
        if wait_s > 0:
            error = "you write faster than people read; your message was not sent"
            ws.send_json({"error": error, "retry_after": wait_s, "id": message_id})
            return
        self.latest = timestamp = max(time.time_ns() // 1_000_000, self.latest + 1)
        name = ws.attachment["name"]
        entry = {"name": name, "message": text, "timestamp": timestamp, "id": message_id}
        self.storage.put(f"message/{timestamp:016d}", entry)
        await self._forget_old()
        self._tell(entry)

    async def _forget_old(self) -> None:
        self.kept += 1
        if self.kept > HISTORY:
            for key in await self.storage.list(prefix="message/", limit=self.kept - HISTORY, keys_only=True):
                self.storage.delete(key)
            self.kept = HISTORY

    def _named(self) -> list[WebSocket]:
        return [ws for ws in self.ctx.websockets() if ws.attachment["name"] is not None]

    def _tell(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry)
        for ws in self._named():
            ws.send(text)


class ChatLimiter(DurableObject):
    """How fast one address may write, in all rooms together."""

    next_allowed: float = durable(0.0)
    """When the free messages are used up, this is when the next one is due: seconds since the epoch."""

    async def take(self) -> float:
        """Takes a place and gives 0, or takes none and gives the seconds until there is one."""
        self.next_allowed, wait_s = admit(self.next_allowed, time.time())
        return wait_s


def admit(next_allowed: float, now: float) -> tuple[float, float]:
    """``(next allowed, seconds to wait)`` of a message at `now`."""
    ahead_s = max(next_allowed, now) - now
    wait_s = ahead_s - (FREE_MESSAGES - 1) * PAUSE_S
    return (next_allowed, wait_s) if wait_s > 0 else (now + ahead_s + PAUSE_S, 0.0)


class ChatLobby(DurableObject):
    """Makes rooms that are not found by their name."""

    @public
    def private_room(self) -> str:
        """The id of a new room: whoever has it may enter."""
        return str(new_unique_id("ChatRoom"))


app = site("chat", ChatRoom, ChatLobby)
