"""Comments below any article, with one script tag: one object for each thread.  Page: `pages/comments.html`.

Run it with `perdure run examples/comments.py` and open http://127.0.0.1:8080/.  On a page of your own:

    <script type="module" src="http://127.0.0.1:8080/pages/comments.js" data-thread="my-article"></script>

The widget speaks over one WebSocket, so that a page of another site may hold it: allow that site where the
gateway is made, `Gateway(classes=..., allow_origins=["https://site.example"])` in serving.py.  A thread
wakes when somebody writes; its readers' sockets stay open meanwhile.  Who writes again
after a lost connection is taken once.
"""

from __future__ import annotations

import json
import time
from typing import Any

from perdure import DurableObject, Request, Response, durable
from perdure.websocket import WebSocket
from serving import site

NAME_CHARS_MAX = 40
TEXT_CHARS_MAX = 2_000
SHOWN = 50
"""Comments that a reader gets at once; earlier ones on demand."""


class Thread(DurableObject):
    """The comments on one article."""

    count: int = durable(0)

    async def fetch(self, request: Request) -> Response:
        if request.path_params["path"] != "/socket":
            return Response("a thread has a WebSocket at /socket\n", 404)
        return self.ctx.accept_websocket(request)

    async def websocket_message(self, ws: WebSocket, message: str | bytes) -> None:
        try:
            said = json.loads(message)
        except ValueError:
            said = None
        match said:
            case {"before": int(number)}:
                await self._show(ws, number)
            case {"name": str(name), "text": str(text), "key": str(key)}:
                await self._write(ws, name.strip(), text.strip(), key)
            case _:
                ws.send_json({"error": 'say {"before": number} or {"name": ..., "text": ..., "key": ...}'})

    async def _show(self, ws: WebSocket, before: int) -> None:
        """The last comments before that number; 0 means the latest ones."""
        end = f"comment/{before:010d}" if before > 0 else "comment0"  # the sign after the slash
        page = await self.storage.list(start="comment/", end=end, reverse=True, limit=SHOWN)
        ws.send_json({"comments": list(page.values())[::-1], "count": self.count})

    async def _write(self, ws: WebSocket, name: str, text: str, key: str) -> None:
        if not (0 < len(name) <= NAME_CHARS_MAX and 0 < len(text) <= TEXT_CHARS_MAX and len(key) <= 64):
            limits = f"a name has 1 to {NAME_CHARS_MAX} characters, a comment 1 to {TEXT_CHARS_MAX}"
            ws.send_json({"error": limits, "key": key})
            return
        comment = await self.storage.get(f"key/{key}")
        if comment is None:
            self.count += 1
            comment = {"number": self.count, "name": name, "text": text, "at": time.time_ns() // 1_000_000}
            self.storage.put(f"comment/{self.count:010d}", comment)
            self.storage.put(f"key/{key}", comment)
            self._tell({"comment": comment, "count": self.count})
        ws.send_json({"taken": key, "comment": comment})

    def _tell(self, news: dict[str, Any]) -> None:
        for ws in self.ctx.websockets():
            ws.send(json.dumps(news))


app = site("comments", Thread)
