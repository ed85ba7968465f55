"""The application of `test_drain`: objects whose turns take time and call each other."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from perdure import DurableObject, blocking, durable

LOOK_S = 0.005


class Leaf(DurableObject):
    """Called by others in the middle of their turns."""

    count: int = durable(0)

    async def add(self, seconds: float = 0.0) -> int:
        """One more, at once or after a while."""
        if seconds:
            await asyncio.sleep(seconds)  # sleep: a turn that is running when the stop comes
        self.count += 1
        return self.count

    async def add_when(self, path: str) -> int:
        """One more when there is such a file."""
        await until_there(path)
        self.count += 1
        return self.count

    async def get(self) -> int:
        """How often it was called."""
        return self.count

    async def pad(self, size: int) -> bytes:
        """A result of that many bytes."""
        return bytes(size)


class Slow(DurableObject):
    """Writes, takes its time, calls another object, writes again."""

    begun: int = durable(0)
    ended: int = durable(0)

    async def pass_on(self, leaf: str, seconds: float, seconds_there: float = 0.0) -> int:
        """What the leaf counted."""
        self.begun += 1
        await asyncio.sleep(seconds)  # sleep: as above
        counted = await self.ctx.get(Leaf, leaf).add(seconds_there)
        self.ended += 1
        return counted

    async def pass_on_through(self, other: str, leaf: str, seconds: float) -> int:
        """The same by way of another `Slow`."""
        self.begun += 1
        counted: int = await self.ctx.get(Slow, other).pass_on(leaf, seconds)
        self.ended += 1
        return counted

    async def pass_on_when(self, path: str, leaf: str) -> int:
        """The same when there is such a file."""
        self.begun += 1
        await until_there(path)
        return await self.ctx.get(Leaf, leaf).add()

    async def get(self) -> tuple[int, int]:
        """Turns that began and turns that ended."""
        return self.begun, self.ended


class Stubborn(DurableObject):
    """Does not end."""

    async def refuse(self, path: str) -> None:
        """Not even when it is cancelled."""
        while True:
            try:
                await until_there(path)
            except asyncio.CancelledError:
                continue

    @blocking
    def block(self, path: str) -> None:
        """In a thread."""
        while not Path(path).exists():
            time.sleep(LOOK_S)  # sleep: stands for a library that blocks


async def until_there(path: str) -> None:
    """Waits for a file that the test makes."""
    while not Path(path).exists():
        await asyncio.sleep(LOOK_S)  # sleep: pause between two looks
