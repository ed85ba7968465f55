"""The host's own work waits in the order of an object's mailbox, wakes it, and stops with the worker."""

from __future__ import annotations

from typing import Any

from perdure import DurableObject, Limits
from worker.host_scene import Scene, take_time
from worker.system_scene import Work, Worked, enqueue


def note(text: str) -> Any:
    return lambda instance: instance.log.append(text)


class Busy(DurableObject):
    """Its calls take a second."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def note(self, text: str) -> list[str]:
        await take_time(1)
        self.log.append(text)
        return list(self.log)


class Broken(DurableObject):
    def on_start(self) -> None:
        raise OSError("cannot start")


def test_it_runs_behind_the_calls_that_came_before_and_ahead_of_those_that_came_later(
    make_scene: Any,
) -> None:
    scene: Scene = make_scene(Busy)
    scene.start(Busy, "o", "note", "first")
    scene.start(Busy, "o", "note", "second")
    enqueue(scene, Work(note("work")), cls=Busy)
    last = scene.start(Busy, "o", "note", "third")
    for _ in range(3):
        scene.advance(1)
    scene.commit()
    assert last.result() == ["first", "second", "work", "third"]


def test_an_object_is_woken_for_it_and_leaves_memory_again(make_scene: Any) -> None:
    scene: Scene = make_scene(Worked)
    work = Work(note("work"))
    enqueue(scene, work)
    assert work.told == ["commit", "ended"]
    assert scene.is_live(Worked, "o")
    scene.advance(20)
    scene.host.evict_idle()
    assert not scene.is_live(Worked, "o")


def test_a_full_mailbox_does_not_keep_it_out_and_its_end_finds_it_counted(make_scene: Any) -> None:
    scene: Scene = make_scene(Busy, limits=Limits(mailbox_calls_max=2))
    for text in "abc":
        scene.start(Busy, "o", "note", text)
    work = Work(note("work"))
    enqueue(scene, work, cls=Busy)
    refused = scene.start(Busy, "o", "note", "too much")
    assert "wait at this object" in str(refused.error())
    for _ in range(4):
        scene.advance(1)
    assert work.told == ["commit", "ended"]
    assert scene.host.busy == 0


def test_it_fails_with_an_object_that_cannot_start(make_scene: Any) -> None:
    scene: Scene = make_scene(Broken)
    first, second = Work(note("a")), Work(note("b"))
    enqueue(scene, first, cls=Broken)
    enqueue(scene, second, cls=Broken)
    assert first.told == second.told == ["OSError('cannot start')"]


def test_a_stopping_worker_drops_what_waits_and_ends_what_runs(make_scene: Any) -> None:
    async def take_a_second(instance: Any) -> None:
        await take_time(1)

    scene: Scene = make_scene(Worked)
    running, waiting = Work(take_a_second), Work(note("work"))
    enqueue(scene, running)
    enqueue(scene, waiting)
    scene.do(scene.host.drain)
    assert (running.told, waiting.told, scene.host.busy) == ([], ["dropped"], 1)
    scene.advance(1)
    assert (running.told, scene.host.busy) == (["commit", "ended"], 0)
