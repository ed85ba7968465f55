"""Objects that send and write down what arrives, and a host for them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

from perdure import (
    DurableObject,
    InvalidArgument,
    blocking,
    durable,
)
from perdure_storage import keys
from worker.host_scene import Scene, take_time


class Ledger(DurableObject):
    """Writes down what arrives, with the time of the loop."""

    count: int = durable(0)

    async def note(self, what: Any) -> None:
        self.storage.put(f"{self.count:06}", what)
        self.count += 1

    async def add(self, by: int) -> None:
        self.count += by

    async def fail(self) -> None:
        raise ValueError("never")

    async def nap(self) -> None:
        await take_time(1.0)
        self.count += 1

    async def all(self) -> list[Any]:
        return list((await self.storage.list()).values())


class Sender(DurableObject):
    state: int = durable(0)

    def __init__(self) -> None:
        self.leftover: Any = None
        self.heard: list[Any] = []

    async def say(self, to: str, *what: Any) -> None:
        self.state += 1
        for word in what:
            assert self.ctx.send(Ledger, to).note(word) is None

    async def say_and_raise(self, to: str, what: Any) -> None:
        self.ctx.send(Ledger, to).note(what)
        self.state += 1
        raise RuntimeError("rolled back")

    async def say_sync_and_raise(self, to: str) -> None:
        self.ctx.send(Ledger, to).note("before the commit point")
        await self.storage.sync()
        self.ctx.send(Ledger, to).note("after it")
        raise RuntimeError("rolled back")

    async def only_say(self, to: str, what: Any) -> None:
        self.ctx.send(Ledger, to).note(what)

    async def say_and_wait(self, to: str, what: Any) -> None:
        self.ctx.send(Ledger, to).note(what)
        await take_time(1.0)

    async def later(self, to: str, what: Any, seconds: float) -> None:
        self.ctx.send(Ledger, to, delay=seconds).note(what)

    async def at(self, to: str, what: Any, when: datetime) -> None:
        self.ctx.send(Ledger, to, at=when).note(what)

    async def call(self, namespace: str, method: str, *args: Any) -> None:
        getattr(self.ctx.send(namespace, "t"), method)(*args)

    async def misuse(self, to: str) -> None:
        self.ctx.send(Ledger, to).note("good")
        self.ctx.send(Ledger, to).add("not a number")  # caught by nobody

    async def go_on_after_misuse(self, to: str) -> str:
        self.ctx.send(Ledger, to).note("good")
        try:
            self.ctx.send(Ledger, to).add("not a number")
        except InvalidArgument as error:
            return str(error)
        return ""

    async def to_itself(self, what: Any) -> None:
        self.ctx.send(Sender, str(self.id.name)).hear(what)
        self.heard.append("turn")

    async def hear(self, what: Any) -> None:
        self.heard.append(what)
        self.state += 1

    async def have_heard(self) -> list[Any]:
        return self.heard

    async def farewell(self, to: str) -> None:
        self.ctx.send(Ledger, to).note("gone")
        await self.storage.delete_all()

    async def leave_a_task(self, to: str) -> None:
        async def late() -> None:
            await take_time(1.0)
            self.ctx.send(Ledger, to).note("late")

        self.leftover = asyncio.get_running_loop().create_task(late())

    async def error_of_the_task(self) -> str:
        return repr(self.leftover.exception())

    async def plan_and_roll_back(self, to: str) -> None:
        self.ctx.send(Ledger, to).note("kept")
        storage: Any = self.storage
        before = dict(storage._writes)
        self.ctx.send(Ledger, to).note("rolled back")
        storage._writes = before  # the write-set says what a turn wrote, and nothing else

    async def keep_changing(self, to: str) -> None:
        words = ["as sent"]
        self.ctx.send(Ledger, to).note(words)
        words.append("changed afterwards")

    @blocking
    def from_a_thread(self, to: str) -> None:
        self.ctx.send(Ledger, to).note("thread")

    async def outbox(self) -> list[list[Any]]:
        return [[m.method, m.args, m.dead] for m in await self.ctx.outbox.list()]


def scene_of(**options: Any) -> Scene:
    return Scene(Ledger, Sender, **options)


def arrived(scene: Scene, name: str = "t") -> list[Any]:
    return list(scene.values(Ledger, name).values())


def later(scene: Scene, seconds: float) -> None:
    """Time passes in ticks, and the disk follows."""
    for _ in range(round(seconds / 0.05)):
        scene.advance(0.05)
        scene.commit()


def outbox_rows(scene: Scene) -> list[bytes]:
    """What is left of sends on disk: rows of outboxes and of the due index."""
    rows = [key for key, _ in scene.disk.between(keys.OBJECTS_REGION, keys.NAMES_REGION)]
    rows = [key for key in rows if keys.parse_object_row(key).kind == keys.OUTBOX]
    return rows + [key for key, _ in scene.disk.between(keys.DUE_REGION, keys.RESERVED_REGION)]


def restarted(scene: Scene) -> Scene:
    """The next incarnation on what is durable."""
    scene.close()
    return scene_of(disk=scene.disk)
