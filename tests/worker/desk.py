"""The class that the tests of interleaving look at, and the stage that it shares with them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import Any

from perdure import DurableObject, durable, interleaved
from worker.host_scene import Scene, take_time


class Stage:
    """What the objects of one test share with it: events to wait for, by name, and what happened."""

    def __init__(self) -> None:
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.log: list[str] = []
        self.incarnations = 0

    def open(self, scene: Scene, *names: str) -> None:
        for name in names:
            scene.do(self.gates[name].set)


STAGES: list[Stage] = []


async def wait_for(gate: str) -> None:
    await STAGES[0].gates[gate].wait()


class Desk(DurableObject):
    value: int = durable(0)
    items: list[Any] = durable(default_factory=list)

    def __init__(self) -> None:
        STAGES[0].incarnations += 1

    def note(self, text: str) -> None:
        STAGES[0].log.append(text)

    @interleaved
    async def beside(self, tag: str, gate: str = "") -> str:
        self.note(f"in {tag}")
        await wait_for(gate or tag)
        self.note(f"out {tag}")
        return tag

    async def alone(self, tag: str, gate: str = "") -> str:
        self.note(f"in {tag}")
        if gate:
            await wait_for(gate)
        self.note(f"out {tag}")
        return tag

    async def look(self) -> tuple[int, list[Any]]:
        return self.value, self.items

    # --- what spans write

    @interleaved
    async def write(self, tag: str, before: int, end: str, after: int = 0) -> int:
        self.value += before
        self.items.append(f"{tag} before")
        self.storage.put(f"{tag} before", 1)
        await wait_for(tag)
        if end == "call":
            await self.ctx.get(Desk, "other").look()
        self.value += after
        self.items.append(f"{tag} after")
        self.storage.put(f"{tag} after", 1)
        if end == "raise":
            raise LookupError("the second span")
        if end == "abort":
            self.ctx.abort("enough")
        return self.value

    @interleaved
    def plain(self, by: int) -> int:
        self.value += by
        if self.value > 100:
            raise OverflowError("too much")
        return self.value

    @interleaved
    async def no_wait(self, key: str) -> Any:
        """Storage is nothing that others get in at."""
        before = await self.storage.get(key, 0)
        self.storage.put(key, before + 1)
        await self.storage.get_many([key])
        await self.storage.list(prefix=key)
        return await self.storage.get(key)

    @interleaved
    async def read(self, key: str, gate: str) -> tuple[Any, Any]:
        first = await self.storage.get(key, "nothing")
        await wait_for(gate)
        return first, await self.storage.get(key, "nothing")

    @interleaved
    async def put(self, key: str, value: Any) -> None:
        self.storage.put(key, value)

    @interleaved
    async def spoil(self, gate: str, later: str) -> None:
        self.storage.put("spoilt", 1)
        self.value = "text"  # type: ignore[assignment]
        await wait_for(gate)
        self.storage.put(later, 1)

    @interleaved
    async def keep_list(self, gate: str) -> None:
        items = self.items
        items.append("one")
        await wait_for(gate)
        items.append("two")

    @interleaved
    async def append_and_raise(self, gate: str) -> None:
        await wait_for(gate)
        self.value = 99
        raise LookupError("no")

    @interleaved
    async def raise_at_once(self) -> None:
        self.value = 99
        raise LookupError("no")

    @interleaved
    async def with_task(self, gate: str, end: str, spoil: bool = False) -> None:
        async def child() -> None:
            await wait_for(gate)
            self.storage.put("of a task", 1)
            self.value = "text" if spoil else self.value + 7  # type: ignore[assignment]

        task = asyncio.create_task(child())
        await wait_for(end)
        await task

    @interleaved
    async def outlive(self, gate: str) -> None:
        async def child() -> None:
            await wait_for(gate)
            try:
                self.storage.put("late", 1)
            except Exception as error:
                self.note(type(error).__name__)

        self.task = asyncio.create_task(child())
        await take_time(0)

    @interleaved
    async def swallow_with_task(self, gate: str, end: str) -> None:
        async def child() -> None:
            await wait_for(gate)
            try:
                self.storage.put("late", 1)
            except Exception as error:
                self.note(type(error).__name__)

        self.task = asyncio.create_task(child())
        with contextlib.suppress(asyncio.CancelledError):
            await wait_for("never")
        await wait_for(end)

    @interleaved
    async def commit_in_task(self, gate: str) -> None:
        async def child() -> None:
            self.value += 1
            await self.storage.sync()

        await asyncio.gather(child(), child())
        await wait_for(gate)

    @interleaved
    async def clear(self, gate: str, end: str) -> None:
        await self.storage.delete_all()
        if end == "at once":
            raise LookupError("no")
        await wait_for(gate)
        raise LookupError("no")

    # --- calls

    @interleaved
    async def ask_self(self, method: str, *args: Any) -> Any:
        return await getattr(self.ctx.get(Desk, str(self.id.name)), method)(*args)

    @interleaved
    async def ask_self_when(self, gate: str, method: str, *args: Any) -> Any:
        await wait_for(gate)
        return await getattr(self.ctx.get(Desk, str(self.id.name)), method)(*args)

    @interleaved
    async def ask_through(self, other: str, method: str, *args: Any) -> Any:
        return await self.ctx.get(Desk, other).pass_on(str(self.id.name), method, *args)

    async def pass_on(self, other: str, method: str, *args: Any) -> Any:
        return await getattr(self.ctx.get(Desk, other), method)(*args)

    # --- endings

    @interleaved
    async def abort(self, how: str) -> None:
        if how == "in a task":
            task = asyncio.create_task(self._abort())
            try:
                await asyncio.wait([task])
            finally:
                task.exception()
                self.value = 99
        await self._abort()

    async def _abort(self) -> None:
        self.value = 99
        self.storage.put("lost", 1)
        self.ctx.abort("enough")

    @interleaved
    async def clean_up(self, tag: str, swallow: bool = False) -> str:
        self.value += 1
        try:
            await wait_for(tag)
        except asyncio.CancelledError:
            self.note(f"cancelled {tag}")
            self.value = 55
            self.storage.put("clean up", 1)
            if not swallow:
                raise
            await wait_for(f"cleaned {tag}")
            self.storage.put("clean up", 2)
        return tag

    @interleaved
    async def own_error(self) -> None:
        raise KeyError("mine")
