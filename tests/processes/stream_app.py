"""The application of the stream tests: producers that count what they made, and readers that are objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from perdure import DurableObject, durable


class Feed(DurableObject):
    """Streams numbers, and knows what became of it."""

    made: int = durable(0)
    ended: str = durable("")

    async def count(self, items: int) -> AsyncIterator[int]:
        """Plain numbers."""
        for number in range(items):
            yield number

    async def record(self, items: int) -> AsyncIterator[int]:
        """Numbers, each of them stored before it leaves."""
        try:
            for number in range(self.made, items):
                self.made = number + 1
                yield number
            self.ended = "end"
        except BaseException as error:
            self.ended = type(error).__name__
            raise

    async def quiet(self) -> AsyncIterator[int]:
        """One number, then nothing."""
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            self.ended = "cleaned up"

    async def fail(self) -> AsyncIterator[int]:
        """Two numbers, then an error, with a write in between that must not stay."""
        self.made = 1
        yield 0
        yield 1
        self.made = 99
        raise LookupError("no more")

    async def state(self) -> tuple[int, str]:
        """How many numbers were made, and how the last stream ended."""
        return self.made, self.ended


class Reader(DurableObject):
    """Reads streams of other objects."""

    async def total(self, feed: str, items: int) -> tuple[int, int]:
        """How many numbers came, and their sum."""
        count = total = 0
        async for number in self.ctx.get(Feed, feed).count(items):
            count, total = count + 1, total + number
        return count, total

    async def first(self, feed: str) -> int:
        """One number of an endless stream."""
        async for number in self.ctx.get(Feed, feed).record(10**9):
            return number
        return -1
