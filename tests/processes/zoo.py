"""The application of the process tests: one class for each kind of behaviour they look at."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from dataclasses import dataclass

from perdure import DurableObject, blocking, durable, interleaved, register_exception


@register_exception
class TooPoor(Exception):
    """A user's own exception, which arrives as itself."""

    def __init__(self, missing: int) -> None:
        super().__init__(f"{missing} are missing")
        self.missing = missing


@dataclass
class Point:
    """A user's own value."""

    x: int
    y: int


class Counter(DurableObject):
    """One durable number."""

    value: int = durable(0)

    async def increment(self, by: int = 1) -> int:
        """Adds and returns the new value."""
        self.value += by
        return self.value

    async def get(self) -> int:
        """The value."""
        return self.value


class Twins(DurableObject):
    """Two rows that must always be equal, and a pad that makes batches large."""

    async def step(self, pad: bytes = b"") -> int:
        """Both rows get the next number in one turn."""
        number = await self.storage.get("left", 0) + 1
        self.storage.put("left", number)
        self.storage.put("pad", pad)
        self.storage.put("right", number)
        return number

    async def both(self) -> tuple[int, int]:
        """The two rows."""
        return await self.storage.get("left", 0), await self.storage.get("right", 0)


class Caller(DurableObject):
    """Calls other objects."""

    steps: int = durable(0)

    async def through(self, names: list[str]) -> list[str]:
        """Passes the call on along the names; the names that were reached."""
        self.steps += 1
        if not names:
            return [str(self.id.name)]
        rest: list[str] = await self.ctx.get(Caller, names[0]).through(names[1:])
        return [str(self.id.name), *rest]

    async def add_to(self, counter: str, by: int) -> int:
        """Increments a counter elsewhere."""
        self.steps += 1
        return await self.ctx.get(Counter, counter).increment(by)

    async def add_to_and_linger(self, counter: str, seconds: float) -> int:
        """Increments a counter elsewhere, and answers later."""
        value: int = await self.ctx.get(Counter, counter).increment()
        await asyncio.sleep(seconds)  # sleep: the test kills the worker meanwhile
        self.steps += 1
        return value

    async def get(self) -> int:
        """How often it was stepped through."""
        return self.steps


class Gate(DurableObject):
    """Others wait here until it is open."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    @interleaved
    async def wait(self) -> None:
        """Returns when it is open."""
        await self.opened.wait()

    @interleaved
    async def open(self) -> None:
        """Lets all pass."""
        self.opened.set()


class Odd(DurableObject):
    """Everything else."""

    memory: int = 0
    inside: int = 0
    kept: int = durable(0)

    async def nap(self, seconds: float) -> str:
        """Sleeps in the loop."""
        await asyncio.sleep(seconds)  # sleep: stands for a slow service
        return "rested"

    async def wait_at(self, gate: str) -> str:
        """Keeps its turn until that gate is open."""
        await self.ctx.get(Gate, gate).wait()
        return "passed"

    async def meet(self, seconds: float) -> int:
        """The largest number of turns that were inside of this method during this one."""
        self.inside += 1
        met = self.inside
        await asyncio.sleep(seconds)  # sleep: gives another turn the opportunity
        met = max(met, self.inside)
        self.inside -= 1
        return met

    @blocking
    def work(self, seconds: float) -> str:
        """Holds a thread."""
        time.sleep(seconds)  # sleep: stands for a library that blocks
        return threading.current_thread().name

    async def pay(self, price: int) -> None:
        """Raises the registered exception after a write."""
        self.kept = price
        raise TooPoor(price - 10)

    async def fail(self) -> None:
        """Raises an exception that no client knows."""
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise LookupError("outer") from error

    async def move(self, point: Point) -> Point:
        """A dataclass both ways."""
        return Point(point.x + 1, point.y + 1)

    async def remember(self, value: int) -> tuple[int, int]:
        """Sets a plain and a durable attribute; what both were before."""
        before = (self.memory, self.kept)
        self.memory, self.kept = value, value
        return before

    async def leave(self) -> None:
        """Raises what must not stop a worker."""
        raise SystemExit(3)

    async def forget(self) -> None:
        """Deletes everything that is stored."""
        await self.storage.delete_all()

    async def echo(self, value: object) -> object:
        """Gives back what came."""
        return value

    async def blob(self, size: int) -> bytes:
        """That many bytes."""
        return bytes(size)


class Poison(DurableObject):
    """Ends its worker, or keeps it from everybody else."""

    async def fine(self) -> str:
        """Nothing bad."""
        return "fine"

    async def crash(self) -> None:
        """A segmentation fault."""
        ctypes.string_at(0)

    async def crash_later(self) -> None:
        """The same after a suspension."""
        await asyncio.sleep(0.01)  # sleep: the step that crashes is not the first one
        ctypes.string_at(0)

    @blocking
    def crash_in_thread(self) -> None:
        """The same in a thread."""
        ctypes.string_at(0)

    async def abort(self) -> None:
        """SIGABRT."""
        os.abort()

    async def leave(self, code: int) -> None:
        """Ends the process without a word."""
        os._exit(code)

    async def spin(self, seconds: float = 1e9) -> None:
        """Keeps the loop, in Python."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass

    async def hold(self) -> int:
        """Keeps the interpreter's lock, in C, for hours."""
        return len(str(pow(3, 10**9)))

    async def leave_in_task(self) -> None:
        """A task of the turn raises what ends loops."""

        async def child() -> None:
            raise SystemExit(3)

        await asyncio.create_task(child())

    async def large(self, size: int) -> bytes:
        """A result of that size."""
        return bytes(size)
