"""A class whose turns of every kind send to its sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from perdure import Alarm, DurableObject, interleaved
from worker.host_scene import take_time


class Turns(DurableObject):
    """Tells all of its sockets what it does."""

    def _tell(self, what: str) -> None:
        for ws in self.ctx.websockets():
            ws.send(what)

    async def on_start(self) -> None:
        self._tell("woken")

    async def fetch(self, request: Any) -> Any:
        return self.ctx.accept_websocket(request)

    async def nothing(self) -> None:
        """Wakes the object."""

    async def arm(self) -> None:
        self.storage.set_alarm(timedelta(seconds=1.5))

    async def alarm(self, alarm: Alarm) -> None:
        self._tell("alarm")

    async def send_self(self) -> None:
        self.ctx.send(Turns, "t").on_send()

    async def on_send(self) -> None:
        self._tell("sent")

    @interleaved
    async def beside(self, name: str) -> None:
        self._tell(f"{name} in")
        await take_time(1)
        self._tell(f"{name} out")

    @interleaved
    async def beside_and_fail(self) -> None:
        self._tell("before")
        await take_time(0.5)
        self._tell("lost")
        raise ValueError("no")

    async def stream(self) -> AsyncIterator[int]:
        for item in (1, 2):
            self._tell(f"item {item}")
            yield item
        self._tell("end")
