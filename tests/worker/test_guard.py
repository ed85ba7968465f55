"""What is put together for one incarnation: from what the supervisor says to what the host is given."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable

import pytest

from perdure import DurableObject, Limits, NotExecuted
from perdure.ids import id_from_name
from perdure_storage.memory import MemoryDisk, MemoryEngine
from perdure_worker.child_tasks import ChildTasks
from perdure_worker.config import WorkerConfig
from perdure_worker.guard import Guard
from perdure_worker.marks import Marked, describe, new_memory, read_memory
from perdure_worker.quarantine import Blame
from worker.host_scene import Scene

MakeScene = Callable[..., Scene]
KEY = id_from_name("Room", "bad").key
CONFIG = WorkerConfig(
    app="app.py",
    index=0,
    epoch=1,
    shard="",
    door="",
    control="",
    slots=(0, 8),
    slot_count=8,
    engine="memory",
    parent=1,
    log_json=False,
    log_level="INFO",
    dev=False,
    idle_evict_s=10.0,
    live_objects_max=100,
)


class Room(DurableObject):
    async def enter(self) -> str:
        return "in"


def test_the_supervisors_verdicts_reach_the_shard_through_the_workers_configuration() -> None:
    disk = MemoryDisk()
    for epoch in (1, 2, 3):
        blame = dataclasses.asdict(Blame(KEY.hex(), "Room", "enter", "SIGSEGV", epoch))
        told = dataclasses.replace(CONFIG, epoch=epoch + 1, blame=blame, first=False)
        config = WorkerConfig.from_json(told.to_json())  # as it travels
        guard = Guard(config, MemoryEngine(disk), Limits())
    with pytest.raises(NotExecuted, match="SIGSEGV"):
        guard.quarantine.check(KEY, "Room/bad")


def test_marks_go_to_the_memory_that_the_supervisor_made() -> None:
    memory = new_memory("perdure-test")
    guard = Guard(dataclasses.replace(CONFIG, marks=memory), MemoryEngine(), Limits())
    guard.marks.begin(describe("Room", "enter"), KEY)
    assert read_memory(memory).running == Marked("Room", "enter", KEY)
    os.close(memory)


def test_a_watched_loop_has_a_watchdog_until_the_guard_is_closed(make_scene: MakeScene) -> None:
    scene = make_scene(Room)
    guard = Guard(CONFIG, MemoryEngine(), Limits())
    guard.watch(scene.host, scene.loop)
    assert isinstance(scene.loop.get_task_factory(), ChildTasks)
    assert "perdure-watchdog" in {thread.name for thread in threading.enumerate()}
    assert scene.call(Room, "one", "enter") == "in"
    guard.close()
    assert "perdure-watchdog" not in {thread.name for thread in threading.enumerate()}
