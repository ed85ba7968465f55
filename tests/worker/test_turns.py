"""`TurnTask`: what asyncio and its users find as the current task of a turn, before and after it suspends."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from perdure import DurableObject, RemoteError
from worker.host_scene import Scene, take_time
from worker.stepped_loop import SteppedLoop

PAUSE_S = 0.001


class CancelScope:
    """A cancel scope as anyio makes them: it delivers a cancellation to the task it was entered in."""

    def __enter__(self) -> CancelScope:
        self.task: Any = asyncio.current_task()
        assert inspect.getcoroutinestate(self.task.get_coro())
        self.cancelled = False
        self.caught = False
        return self

    def cancel(self) -> None:
        self.cancelled = True
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        waiter = self.task._fut_waiter
        if not self.task._must_cancel and (waiter is None or not waiter.done()):
            self.task.cancel("of the scope")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        self.caught = self.cancelled and isinstance(error, asyncio.CancelledError)
        if self.caught:
            self.task.uncancel()
        return self.caught


class Thing(DurableObject):
    def __init__(self) -> None:
        self.log: list[str] = []
        self.tasks: list[Any] = []
        self.finished: asyncio.Future[Any] | None = None

    async def same_task(self) -> bool:
        before = asyncio.current_task()
        await take_time(PAUSE_S)
        between = asyncio.current_task()
        await take_time(0)
        self.tasks.append(before)
        return before is between is asyncio.current_task() and before in asyncio.all_tasks()

    def plain_task(self) -> bool:
        return asyncio.current_task() is not None

    async def timeout(self, later: bool) -> str:
        if later:
            await take_time(0)
        try:
            async with asyncio.timeout(PAUSE_S):
                await asyncio.Event().wait()
        except TimeoutError:
            await take_time(0)
            return f"timed out, {asyncio.current_task().cancelling()} left"  # type: ignore[union-attr]
        return "no timeout"

    async def timeout_in_time(self) -> str:
        async with asyncio.timeout(PAUSE_S):
            pass
        await take_time(3 * PAUSE_S)
        return "in time"

    async def nested_timeouts(self) -> list[str]:
        log = []
        async with asyncio.timeout(1_000):
            try:
                async with asyncio.timeout(PAUSE_S):
                    await asyncio.wait_for(asyncio.Event().wait(), 1_000)
            except TimeoutError:
                log.append("inner")
            await take_time(0)
        return log

    async def group(self, later: bool, fail: bool) -> list[int]:
        if later:
            await take_time(0)

        async def child(number: int) -> int:
            await take_time(PAUSE_S * number)
            if fail and number == 1:
                raise ValueError("of a child")
            return number

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(child(number)) for number in range(3)]
                if fail:
                    await take_time(1_000)
        except* ValueError:
            await take_time(0)
        return [-1] if fail else [task.result() for task in tasks]

    async def scope(self, later: bool) -> str:
        if later:
            await take_time(0)
        with CancelScope() as scope:
            asyncio.get_running_loop().call_later(PAUSE_S, scope.cancel)
            await take_time(1_000)
        await take_time(0)
        return f"caught {scope.caught}"

    async def scope_before_waiting(self) -> str:
        with CancelScope() as scope:
            scope.task.cancel("of the scope")
            scope.cancelled = True
            await take_time(1_000)
        return f"caught {scope.caught}"

    async def cancel_me_later(self) -> None:
        # Nothing of this turn suspends, so the task goes on to serve other turns.
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]

    async def cancel_me_now(self) -> str:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        return "ended first"

    async def wait_a_little(self) -> str:
        await take_time(PAUSE_S)
        return "rested"

    async def wait_for_my_task(self) -> None:
        task: Any = asyncio.current_task()

        async def watch() -> None:
            await asyncio.wait([task])
            self.log.append("ended")

        self.watcher = asyncio.create_task(watch())

    async def callback_on_my_task(self) -> None:
        task: Any = asyncio.current_task()
        task.add_done_callback(lambda _: self.log.append("called back"))

    async def look(self) -> list[str]:
        return self.log

    async def rest(self) -> None:
        await asyncio.Event().wait()

    async def keep_my_task(self) -> None:
        self.tasks.append(asyncio.current_task())

    async def await_nonsense(self, what: str) -> str:
        try:
            if what == "not asyncio's":
                await _Yielding(object())
            elif what == "itself":
                await asyncio.current_task()  # type: ignore[misc]
            elif what == "a future taken by yield":
                await _Yielding(asyncio.get_running_loop().create_future())
            else:
                other = asyncio.new_event_loop()
                try:
                    await other.create_future()
                finally:
                    other.close()
        except RuntimeError as error:
            return str(error)
        return "nothing happened"

    async def await_finished(self) -> str:
        future = asyncio.get_running_loop().create_future()
        future.set_result("was there")
        return str(await future)


class _Yielding:
    def __init__(self, what: object) -> None:
        self._what = what

    def __await__(self) -> Iterator[Any]:
        yield self._what


@pytest.fixture(params=["asyncio", "uvloop"])
def scene(request: pytest.FixtureRequest, make_scene: Callable[..., Scene]) -> Scene:
    """On the loop that workers use, in real time, and on asyncio's own, in the test's time."""
    return make_scene(Thing, loop=SteppedLoop() if request.param == "asyncio" else uvloop.new_event_loop())


def outcome(scene: Scene, method: str, *args: Any) -> Any:
    sent = scene.start(Thing, "a", method, *args)
    if isinstance(scene.loop, SteppedLoop):
        scene.advance(100 * PAUSE_S)
    scene.wait(lambda: sent.answered)
    return sent.result()


def test_the_current_task_is_the_same_before_and_after_every_suspension(scene: Scene) -> None:
    assert outcome(scene, "same_task") is True
    (task,) = scene.resident(Thing, "a").instance.tasks
    assert task.done()
    assert task not in asyncio.all_tasks(scene.loop)


def test_a_plain_method_has_a_current_task_too(scene: Scene) -> None:
    assert outcome(scene, "plain_task") is True


@pytest.mark.parametrize("later", [False, True])
def test_a_timeout_works_in_a_method_before_and_after_its_first_suspension(scene: Scene, later: bool) -> None:
    assert outcome(scene, "timeout", later) == "timed out, 0 left"


def test_a_timeout_that_was_left_in_time_cancels_nothing(scene: Scene) -> None:
    assert outcome(scene, "timeout_in_time") == "in time"


def test_an_inner_timeout_leaves_the_outer_one_and_the_turn_alone(scene: Scene) -> None:
    assert outcome(scene, "nested_timeouts") == ["inner"]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(("fail", "result"), [(False, [0, 1, 2]), (True, [-1])])
def test_a_task_group_works_in_a_method_before_and_after_its_first_suspension(
    scene: Scene, later: bool, fail: bool, result: list[int]
) -> None:
    assert outcome(scene, "group", later, fail) == result


@pytest.mark.parametrize("later", [False, True])
def test_a_cancel_scope_like_anyios_works_before_and_after_the_first_suspension(
    scene: Scene, later: bool
) -> None:
    assert outcome(scene, "scope", later) == "caught True"


def test_a_cancellation_before_the_first_suspension_is_raised_at_it(scene: Scene) -> None:
    assert outcome(scene, "scope_before_waiting") == "caught True"


@pytest.mark.parametrize("method", ["cancel_me_later", "cancel_me_now"])
def test_a_cancellation_that_a_turn_left_behind_reaches_no_other_turn(scene: Scene, method: str) -> None:
    with scene.one_message():
        scene.start(Thing, "a", method)
        beside = scene.start(Thing, "b", "wait_a_little")
    assert outcome(scene, "wait_a_little") == "rested"
    scene.wait(lambda: beside.answered)
    assert beside.result() == "rested"


def test_a_task_that_somebody_kept_never_serves_another_turn(scene: Scene) -> None:
    with scene.one_message():
        scene.start(Thing, "a", "keep_my_task")
        beside = scene.start(Thing, "b", "rest")
    (kept,) = scene.resident(Thing, "a").instance.tasks
    assert kept.done()
    assert kept.cancel() is False
    scene.settle()
    assert not beside.answered


def test_who_waits_for_the_task_of_a_turn_that_never_suspended_is_told_of_its_end(scene: Scene) -> None:
    outcome(scene, "callback_on_my_task")
    outcome(scene, "wait_for_my_task")
    outcome(scene, "plain_task")
    scene.wait(lambda: sorted(outcome(scene, "look")) == ["called back", "ended"])


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("not asyncio's", "not asyncio's"),
        ("itself", "awaited itself"),
        ("a future taken by yield", "not asyncio's"),
        ("of another loop", "another loop"),
    ],
)
def test_an_await_that_could_never_end_is_an_error_in_the_method(scene: Scene, what: str, text: str) -> None:
    assert text in outcome(scene, "await_nonsense", what)


def test_a_method_that_awaits_what_is_done_goes_on_at_once(scene: Scene) -> None:
    sent = scene.start(Thing, "a", "await_finished")
    assert sent.result() == "was there"


def test_the_loop_can_cancel_all_its_tasks_at_its_end(scene: Scene) -> None:
    sent = scene.start(Thing, "a", "rest")
    (task,) = asyncio.all_tasks(scene.loop)
    assert task.get_name() == "perdure-turn"
    assert task.get_coro().__qualname__ == "Thing.rest"  # type: ignore[union-attr]
    task.cancel()
    scene.wait(lambda: sent.answered)
    with pytest.raises(RemoteError, match="CancelledError"):
        sent.result()
    assert task.done()
    assert task.exception() is None
