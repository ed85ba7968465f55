"""Work of the host's own for tests: a handler of the test's, and what was told about its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure import DurableObject, durable
from perdure_worker.resident import Resident
from perdure_worker.system_turns import Body, SystemTurn
from worker.host_scene import Scene, key_of


class Worked(DurableObject):
    """An object that work is done on."""

    value: int = durable(0)

    def __init__(self) -> None:
        self.log: list[str] = []

    async def note(self, text: str) -> list[str]:
        self.log.append(text)
        return list(self.log)

    async def get(self) -> int:
        return self.value


class Work(SystemTurn):
    """Runs a function of the test on the object."""

    title = "work"

    def __init__(self, function: Callable[..., Any] | None, *, blocking: bool = False) -> None:
        self.function = function
        self.blocking = blocking
        self.request = (b"w" * 16, 1, b"", 0)
        self.told: list[Any] = []

    def begin(self, resident: Resident) -> Body | None:
        return None if self.function is None else (self.function, (), self.blocking)

    def commit(self, resident: Resident) -> None:
        self.told.append("commit")

    def ended(self, resident: Resident) -> None:
        self.told.append("ended")

    def failed(self, resident: Resident, error: BaseException) -> None:
        self.told.append(repr(error))

    def dropped(self) -> None:
        self.told.append("dropped")


def enqueue(scene: Scene, work: SystemTurn, name: str = "o", cls: Any = Worked) -> None:
    """The work comes in, as it does from the timetable."""

    def run() -> None:
        scene.host.in_turns(scene.host.enqueue, cls.__name__, key_of(cls, name), work)
        scene.host.run_waiting()

    scene.do(run)
