"""Tasks that a turn starts: what they raise, what asyncio sees of them, and under which mark they run."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from perdure import DurableObject, RemoteError, durable
from perdure_worker.child_tasks import ChildCoroutine, ChildTasks
from perdure_worker.marks import Marks
from worker.host_scene import Scene, take_time

MakeScene = Callable[..., Scene]


async def leave(error: BaseException) -> None:
    await asyncio.sleep(0)  # sleep: the task's second step
    raise error


class Parent(DurableObject):
    """Starts tasks."""

    steps: int = durable(0)

    async def wait_for(self, kind: str) -> None:
        await asyncio.create_task(leave(KeyboardInterrupt() if kind == "interrupt" else SystemExit(3)))

    async def forget(self) -> str:
        self.kept = asyncio.create_task(leave(SystemExit(3)))
        return "gone on"

    async def group(self) -> list[Any]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.child(number)) for number in range(3)]
        return [task.result() for task in tasks]

    async def child(self, number: int) -> tuple[int, str]:
        await take_time(0.1)
        task = asyncio.current_task()
        assert task is not None
        coro: Any = task.get_coro()
        return number, f"{coro.__qualname__} {inspect.getcoroutinestate(coro)}"

    async def cancels(self) -> str:
        task = asyncio.create_task(take_time(60))
        await asyncio.sleep(0)  # sleep: the task begins
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return "cancelled"
        return "not cancelled"


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    scene = make_scene(Parent)
    scene.loop.set_task_factory(ChildTasks(scene.host.marks))
    return scene


@pytest.mark.parametrize(("kind", "name"), [("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt")])
def test_what_would_end_the_loop_is_an_error_of_the_turn_that_awaits_the_task(
    scene: Scene, kind: str, name: str
) -> None:
    with pytest.raises(RemoteError, match=f"a task raised {name}") as caught:
        scene.call(Parent, "one", "wait_for", kind)
    assert caught.value.causes[0][0] == name
    assert scene.call(Parent, "one", "forget") == "gone on"


def test_a_task_that_nobody_awaits_does_not_end_the_loop_either(scene: Scene) -> None:
    assert scene.call(Parent, "one", "forget") == "gone on"
    assert scene.call(Parent, "two", "forget") == "gone on"
    for name in ("one", "two"):
        kept = scene.resident(Parent, name).instance.kept
        assert isinstance(kept.exception(), RuntimeError)


def test_groups_results_and_cancellation_work_as_with_any_task(scene: Scene) -> None:
    call = scene.start(Parent, "one", "group")
    scene.advance(0.2)
    assert call.result() == [(number, "Parent.child CORO_RUNNING") for number in range(3)]
    assert scene.call(Parent, "one", "cancels") == "cancelled"


def test_tasks_of_nobodys_turn_are_left_as_they_are(scene: Scene) -> None:
    async def outside() -> type:
        task = asyncio.current_task()
        assert task is not None
        return type(task.get_coro())

    assert scene.loop.run_until_complete(outside()).__name__ == "coroutine"


def test_a_step_of_a_task_runs_under_the_mark_of_the_turn_that_started_it() -> None:
    marks, seen = Marks(), []

    async def body() -> None:
        seen.append(marks.current())
        try:
            await asyncio.sleep(0)  # sleep: one suspension
        finally:
            seen.append(marks.current())

    marks.begin(b"\x01Room\0enter", bytes(32))
    mark = marks.current()
    coroutine = ChildCoroutine(body(), marks)
    marks.end()
    coroutine.send(None)
    assert coroutine.cr_suspended
    assert marks.current()[0] == 0
    with pytest.raises(ValueError, match="thrown"):
        coroutine.throw(ValueError("thrown"))
    assert seen == [mark, mark]
    assert coroutine.cr_frame is None
