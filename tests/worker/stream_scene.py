"""What the tests of streams share: objects that stream in many ways, readers of them, a small window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from perdure import DurableObject, Limits, durable
from worker.host_scene import take_time

WINDOW = 4
LIMITS = Limits(stream_window_items=WINDOW, stream_window_bytes=1_000)


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int


class Feed(DurableObject):
    made: int = durable(0)
    cleaned: str = durable("")

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.log: list[str] = []

    async def numbers(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def written(self, count: int) -> AsyncIterator[int]:
        """Writes before each item, and says how it was ended."""
        try:
            for number in range(count):
                self.made += 1
                yield number
            self.cleaned = "end"
        except BaseException as error:
            self.cleaned = type(error).__name__
            raise

    async def pads(self, size: int) -> AsyncIterator[bytes]:
        while True:
            yield bytes(size)

    async def late_tail(self) -> AsyncIterator[int]:
        yield 1
        await self.go.wait()
        self.made += 1

    async def waiting(self) -> AsyncIterator[str]:
        try:
            yield "first"
            self.made = 99
            await self.go.wait()
            yield "second"
        finally:
            self.cleaned = f"made {self.made}"

    async def stubborn(self) -> AsyncIterator[str]:
        yield "first"
        self.made = 99
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
        self.cleaned = "went on"
        try:
            yield "second"
        finally:
            self.log.append("ended")

    async def slow(self, *pauses: float) -> AsyncIterator[float]:
        for pause in pauses:
            await take_time(pause)
            self.made += 1
            yield pause

    async def broken(self) -> AsyncIterator[int]:
        self.made = 1
        yield 1
        self.made = 2
        raise LookupError("no more")

    async def tail(self) -> AsyncIterator[int]:
        yield 1
        self.made += 1

    async def odd(self, what: str) -> AsyncIterator[Any]:
        try:
            yield 1
            self.made = 7
            yield {"lock": asyncio.Lock, "large": bytes(33 * 1024 * 1024)}[what]
        finally:
            self.log.append("ended")

    async def typed(self) -> AsyncIterator[Point | Colour]:
        yield Point(1)
        yield Colour.RED

    async def wrong(self) -> AsyncIterator[int]:
        yield "text"  # type: ignore[misc]

    async def timed(self) -> AsyncIterator[str]:
        try:
            async with asyncio.timeout(5):
                while True:
                    yield "item"
        except TimeoutError:
            yield "too late"

    async def aborted(self) -> AsyncIterator[int]:
        self.made = 5
        yield 1
        self.made = 6
        self.ctx.abort("enough")

    async def silent(self) -> AsyncIterator[int]:
        for number in range(0):
            yield number

    async def get(self) -> tuple[int, str]:
        return self.made, self.cleaned

    async def nap(self, seconds: float) -> str:
        await take_time(seconds)
        return "rested"


class Hub(DurableObject):
    total: int = durable(0)

    async def gather(self, feed: str, method: str, *args: Any) -> list[Any]:
        return [item async for item in getattr(self.ctx.get(Feed, feed), method)(*args)]

    async def kinds(self, feed: str) -> list[str]:
        return [type(item).__name__ async for item in self.ctx.get(Feed, feed).typed()]

    async def first(self, feed: str, method: str, *args: Any) -> Any:
        async for item in getattr(self.ctx.get("Feed", feed), method)(*args):
            return item
        return None

    async def awaited(self, feed: str) -> Any:
        return await self.ctx.get(Feed, feed).numbers(3)

    async def through(self, feed: str) -> AsyncIterator[Any]:
        async for item in self.ctx.get(Feed, feed).numbers(3):
            await take_time(25.0)
            yield item * 10
        yield await self.ctx.get(Feed, feed).nap(5.0)
