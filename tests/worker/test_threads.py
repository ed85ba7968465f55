"""`@blocking` methods: in a thread of their own, and still one turn at a time."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest

from perdure import DurableObject, Limits, RemoteError, blocking, durable
from worker.host_scene import Scene, results

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
WAIT_S = 20


class Box(DurableObject):
    value: int = durable(0)

    def __init__(self) -> None:
        self.log: list[str] = []
        self.entered = threading.Event()
        self.go = threading.Event()

    @blocking
    def thread_id(self) -> int:
        return threading.get_ident()

    @blocking
    def work(self, tag: str) -> str:
        self.log.append(f"in {tag}")
        self.entered.set()
        assert self.go.wait(WAIT_S)
        self.log.append(f"out {tag}")
        return tag

    @blocking
    def write(self, value: int, fail: bool) -> int:
        self.value = value
        self.storage.put("key", value)
        if fail:
            raise ValueError("of the thread")
        return value

    @blocking
    def raise_oddly(self, what: str) -> None:
        if what == "stop":
            next(iter([]))
        raise {"exit": SystemExit, "keyboard": KeyboardInterrupt}[what]("odd")

    @blocking
    def with_keywords(self, function: int, *, args: int, job: int) -> int:
        return function + args + job

    @blocking
    def variables(self) -> str:
        before = VARIABLE.get()
        VARIABLE.set("of a thread")
        return before

    async def note(self, tag: str) -> None:
        self.log.append(tag)

    async def get(self) -> int:
        return self.value


@pytest.fixture
def scene(make_scene: Any) -> Scene:
    made: Scene = make_scene(Box, limits=Limits(turn_max_s=5))
    return made


def box(scene: Scene, name: str = "a") -> Any:
    return scene.resident(Box, name).instance


def finished(scene: Scene, method: str, *args: Any, **options: Any) -> Any:
    call = scene.start(Box, "a", method, *args, **options)
    scene.wait(lambda: call.answered or bool(scene.jobs))
    scene.commit()
    return call.result()


def test_a_blocking_method_runs_in_another_thread(scene: Scene) -> None:
    assert finished(scene, "thread_id") != threading.get_ident()


def test_calls_beside_a_blocking_method_wait_and_other_objects_do_not(scene: Scene) -> None:
    calls = [scene.start(Box, "a", "work", "1"), scene.start(Box, "a", "note", "between")]
    calls.append(scene.start(Box, "a", "work", "2"))
    assert box(scene).entered.wait(WAIT_S)
    assert scene.call(Box, "b", "get") == 0
    assert not any(call.answered for call in calls)
    box(scene).go.set()
    scene.wait(lambda: calls[-1].answered)
    assert results(calls) == ["1", None, "2"]
    assert box(scene).log == ["in 1", "out 1", "between", "in 2", "out 2"]


def test_what_a_thread_writes_is_committed_with_its_turn_or_discarded_with_it(scene: Scene) -> None:
    assert finished(scene, "write", 5, False) == 5
    assert scene.fields(Box, "a") == {"value": 5}
    with pytest.raises(RemoteError, match="of the thread"):
        finished(scene, "write", 6, True)
    assert scene.call(Box, "a", "get") == 5
    assert scene.values(Box, "a") == {"key": 5}


@pytest.mark.parametrize(
    ("what", "name"), [("stop", "RuntimeError"), ("exit", "SystemExit"), ("keyboard", "KeyboardInterrupt")]
)
def test_whatever_a_thread_raises_ends_its_turn_and_not_the_worker(
    scene: Scene, what: str, name: str
) -> None:
    with pytest.raises(RemoteError) as caught:
        finished(scene, "raise_oddly", what)
    assert caught.value.type_name == name
    assert scene.call(Box, "a", "get") == 0


def test_keywords_reach_the_method_whatever_they_are_called(scene: Scene) -> None:
    assert finished(scene, "with_keywords", kwargs={"function": 1, "args": 2, "job": 3}) == 6


def test_a_thread_has_the_context_variables_of_its_turn_and_leaks_none(scene: Scene) -> None:
    assert [finished(scene, "variables") for _ in range(3)] == ["nothing"] * 3


def test_a_cancelled_turn_lasts_as_long_as_its_thread_and_then_fails(scene: Scene) -> None:
    cut = scene.start(Box, "a", "work", "long", timeout_ms=1_000)
    follower = scene.start(Box, "a", "note", "follower")
    assert box(scene).entered.wait(WAIT_S)
    scene.advance(8)
    assert not cut.answered
    assert not follower.answered
    box(scene).go.set()
    scene.wait(lambda: follower.answered)
    assert isinstance(cut.error(), RemoteError)
    assert "TurnLimit" in str(cut.error())
    assert box(scene).log == ["in long", "out long", "follower"]


def test_threads_are_bounded_and_more_calls_wait_for_one(scene: Scene) -> None:
    names = [str(number) for number in range(Limits().blocking_threads_max + 1)]
    calls = [scene.start(Box, name, "work", name) for name in names]
    for name in names[: Limits().blocking_threads_max]:
        assert box(scene, name).entered.wait(WAIT_S)
    scene.settle()
    assert not box(scene, names[-1]).entered.is_set()
    for name in names:
        box(scene, name).go.set()
    scene.wait(lambda: all(call.answered for call in calls))
    assert results(calls) == names


def test_work_that_has_no_thread_yet_when_the_worker_ends_does_not_run(make_scene: Any) -> None:
    scene: Scene = make_scene(Box)
    names = [str(number) for number in range(Limits().blocking_threads_max + 1)]
    for name in names:
        scene.start(Box, name, "work", name)
    for name in names[: Limits().blocking_threads_max]:
        assert box(scene, name).entered.wait(WAIT_S)
    scene.host.close()
    for name in names:
        box(scene, name).go.set()
    scene.settle()
    assert not box(scene, names[-1]).entered.is_set()
