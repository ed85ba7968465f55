"""The class that the tests of commits look at: every way to write, and to write wrongly."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure import DurableObject, durable
from worker.host_scene import take_time

__all__ = ["Store"]


class Store(DurableObject):
    value: int = durable(0)
    items: list[int] = durable(default_factory=list)

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.log: list[Any] = []
        self.syncs: list[asyncio.Future[None]] = []

    async def set(self, value: int) -> int:
        self.value = value
        return self.value

    async def append(self, item: int) -> list[int]:
        self.items.append(item)
        return self.items

    async def get(self) -> tuple[int, list[int]]:
        return self.value, self.items

    async def put(self, key: str, value: Any) -> None:
        self.storage.put(key, value)

    async def put_twice(self, key: str) -> None:
        self.storage.put(key, 1)
        self.storage.delete(key)
        self.storage.put(key, 3)

    async def read(self, key: str) -> Any:
        return await self.storage.get(key, "missing")

    async def delete(self, key: str) -> bool:
        return self.storage.delete(key)

    async def bad_put(self, catch: bool) -> None:
        self.value = 1
        try:
            self.storage.put("bad", object())
        except Exception:
            if not catch:
                raise

    async def read_own_writes(self) -> list[Any]:
        self.storage.put("a", 1)
        self.storage.put("c", 3)
        log = [await self.storage.get("a"), await self.storage.list(), self.storage.delete("a")]
        await take_time(0)
        log.append(await self.storage.list(keys_only=True))
        log.append(await self.storage.list(reverse=True, limit=1))
        return log

    async def sync_steps(self) -> None:
        self.storage.put("first", 1)
        await self.storage.sync()
        self.log.append("first is durable")
        self.value = 2
        sync = asyncio.ensure_future(self.storage.sync())
        await take_time(0)
        self.storage.put("third", 3)
        await sync
        self.log.append("second is durable")
        await self.go.wait()
        raise ValueError("the third is lost")

    async def sync_when_clean(self) -> str:
        await self.storage.sync()
        await self.storage.sync()
        return "at once"

    async def two_syncs(self) -> None:
        self.storage.put("a", 1)
        await asyncio.gather(self.storage.sync(), self.storage.sync())

    async def look(self) -> list[Any]:
        return self.log

    async def delete_all(self, after: str) -> tuple[int, list[int], dict[str, Any]]:
        await self.storage.delete_all()
        seen = (self.value, self.items, await self.storage.list())
        if after == "raise":
            raise ValueError("undone")
        if after == "put":
            self.storage.put("later", 1)
        if after == "field":
            self.value = 8
        return seen

    async def put_and_delete_all(self, value: int) -> None:
        self.value = value
        self.storage.put("x", value)
        await self.storage.sync()
        await self.storage.delete_all()

    async def large_field(self, size: int) -> None:
        self.storage.put("beside", 1)
        self.items = [1] * size

    async def odd_field(self, what: str) -> None:
        self.storage.put("beside", 1)
        if what == "deleted":
            del self.value
        else:
            self.value = "text"  # type: ignore[assignment]

    async def change_fields_later(self) -> None:
        async def later() -> None:
            await self.go.wait()
            self.value += 1000
            self.items.append(1000)

        self.task = asyncio.create_task(later())

    async def spoil_fields_later(self) -> None:
        async def later() -> None:
            await self.go.wait()
            self.value = "text"  # type: ignore[assignment]

        self.task = asyncio.create_task(later())

    async def fail(self) -> None:
        raise ValueError("no")
