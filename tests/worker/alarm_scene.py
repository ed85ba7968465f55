"""What the tests of alarms share: classes with handlers, a worker that restarts, and time that passes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from perdure import Alarm, DurableObject, blocking, durable
from perdure_storage import keys
from perdure_storage.memory import MemoryDisk
from perdure_worker.alarm_rows import AlarmRow
from worker.host_scene import WALL_S, Scene, key_of, take_time


def at(seconds: float) -> datetime:
    """A time of a scene that began at 0."""
    return datetime.fromtimestamp(WALL_S, UTC) + timedelta(seconds=seconds)


class Bell(DurableObject):
    """Rings, and notes when it rang; what its handler does is set by calls before."""

    rung: list[Any] = durable(default_factory=list)
    value: int = durable(0)

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.plan: list[str] = []
        self.seen: list[Any] = []

    async def prepare(self, *plan: str) -> None:
        """For the next runs, one entry each."""
        self.plan = list(plan)

    async def set(self, seconds: float, name: str = "default") -> None:
        self.storage.set_alarm(at(seconds), name=name)

    async def set_many(self, seconds: float, count: int) -> None:
        for number in range(count):
            self.storage.set_alarm(at(seconds), name=f"{number:05}")

    async def set_and_put(self, seconds: float) -> None:
        self.value = 7
        self.storage.put("key", "value")
        self.storage.set_alarm(at(seconds))

    async def set_and_raise(self, seconds: float) -> None:
        self.storage.set_alarm(at(seconds))
        raise ValueError("no")

    async def get(self, name: str = "default") -> datetime | None:
        return await self.storage.get_alarm(name)

    async def delete(self, name: str = "default") -> bool:
        return self.storage.delete_alarm(name)

    async def delete_everything(self) -> None:
        await self.storage.delete_all()

    async def alarms(self) -> list[tuple[str, datetime, int, bool, str | None]]:
        return [
            (a.name, a.scheduled_at, a.attempt, a.dead, a.error) for a in await self.storage.list_alarms()
        ]

    async def history(self) -> list[Any]:
        return self.rung

    async def what_it_saw(self) -> list[Any]:
        return self.seen

    async def wait(self) -> None:
        await self.go.wait()

    async def abort(self) -> None:
        self.ctx.abort("enough")

    async def alarm(self, alarm: Alarm) -> None:
        self.rung.append([alarm.name, alarm.attempt])
        what = self.plan.pop(0) if self.plan else "ring"
        if what == "look":
            self.seen = [await self.storage.get_alarm(alarm.name), len(await self.storage.list_alarms())]
        elif what == "set":
            self.storage.set_alarm(at(1_000), name=alarm.name)
        elif what == "set same":
            self.storage.set_alarm(alarm.scheduled_at, name=alarm.name)
            assert await self.storage.get_alarm(alarm.name) == alarm.scheduled_at
        elif what == "delete":
            self.storage.set_alarm(at(1_000), name=alarm.name)
            self.seen = [self.storage.delete_alarm(alarm.name), self.storage.delete_alarm(alarm.name)]
        elif what in ("raise", "set and raise"):
            if what == "set and raise":
                self.storage.set_alarm(at(1_000), name=alarm.name)
            self.storage.put("key", "lost")
            raise ValueError(f"attempt {alarm.attempt}")
        elif what == "sync and wait":
            self.storage.put("key", "halfway")
            self.storage.set_alarm(at(1_000), name=alarm.name)
            await self.storage.sync()
            await self.go.wait()
        elif what == "wait":
            await self.go.wait()
        elif what == "abort":
            self.ctx.abort("enough")
        elif what == "empty":
            await self.storage.delete_all()


class Plain(DurableObject):
    """Has no handler."""

    def set(self) -> None:
        self.storage.set_alarm(timedelta(seconds=1))


class Thorny(DurableObject):
    """Cannot start once told so."""

    rung: int = durable(0)

    async def on_start(self) -> None:
        if await self.storage.get("broken"):
            raise OSError("cannot start")

    async def break_and_set(self, *names: str) -> None:
        self.storage.put("broken", True)
        for name in names:
            self.storage.set_alarm(at(1), name=name)

    def alarm(self, alarm: Alarm) -> None:
        self.rung += 1


class Slow(DurableObject):
    """Its handler takes ten minutes, or works in a thread."""

    async def set(self, name: str, seconds: float = 1) -> None:
        self.storage.set_alarm(at(seconds), name=name)

    async def alarm(self, alarm: Alarm) -> None:
        await take_time(600)


class Threaded(DurableObject):
    rung: str = durable("")

    def set(self) -> None:
        self.storage.set_alarm(at(1))

    def get(self) -> str:
        return self.rung

    @blocking
    def alarm(self, alarm: Alarm) -> None:
        self.rung = alarm.name


class Named(DurableObject):
    seen: str = durable("nothing")

    def set(self) -> None:
        self.storage.set_alarm(at(1))

    def get(self) -> str:
        return self.seen

    def alarm(self, alarm: Alarm) -> None:
        self.seen = f"{self.id.name}"


class Caller(DurableObject):
    async def set(self) -> None:
        self.storage.set_alarm(at(1))

    async def alarm(self, alarm: Alarm) -> None:
        await self.ctx.get(Bell, "other").wait()


ALARM_CLASSES = (Bell, Plain, Thorny, Slow, Threaded, Named, Caller)


def restart(make_scene: Any, old: Scene, *, disk: MemoryDisk | None = None) -> Scene:
    """A new incarnation on what the old one's disk holds now, at the same time."""
    scene: Scene = make_scene(*ALARM_CLASSES, disk=(disk or old.disk).copy(), limits=old.limits)
    scene.wall_step_s = old.wall_clock() - scene.wall_clock()
    return scene


def run(scene: Scene, seconds: float) -> None:
    """Time passes, the worker looks at its clock every 50 ms, and the disk keeps up."""
    steps = max(1, round(seconds / 0.05))
    for _ in range(steps):
        scene.advance(seconds / steps)
        scene.commit()


def due_rows(scene: Scene) -> list[keys.DueRow]:
    between = scene.disk.between(keys.DUE_REGION, keys.prefix_end(keys.DUE_REGION))
    return [keys.parse_due_row(row) for row, _ in between]


def stored(scene: Scene, cls: Any, name: str) -> dict[str, AlarmRow]:
    """The object's alarms on disk."""
    rows = scene.rows(cls, name, keys.ALARM)
    return {name: AlarmRow(*values) for name, values in rows.items() if name}


def left_of(scene: Scene, cls: Any, name: str) -> list[bytes]:
    """Keys on disk that hold something of the object, but for replies that are kept for retries."""
    rows = [key for key, _ in scene.disk.between(keys.OBJECTS_REGION, b"\xff")]
    mine = [key for key in rows if key_of(cls, name) in key or key.endswith(name.encode())]
    is_object_row = keys.OBJECTS_REGION
    return [
        key
        for key in mine
        if not key.startswith(is_object_row) or keys.parse_object_row(key).kind != keys.REPLY
    ]
