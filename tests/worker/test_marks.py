"""What a worker runs, as another process reads it from the memory that both have."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from perdure import DurableObject, blocking
from perdure_worker.marks import NOTHING, Marked, Marks, describe, new_memory, read_memory
from worker.host_scene import Scene, key_of, take_time

MakeScene = Callable[..., Scene]
KEY = bytes(range(32))
OTHER = bytes(32)
STEP = Marked("Room", "enter", KEY)


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = new_memory("perdure-test")
    yield descriptor
    os.close(descriptor)


def test_a_step_is_seen_from_its_begin_to_its_end(memory: int) -> None:
    marks = Marks(memory)
    assert read_memory(memory).running is None
    marks.begin(describe("Room", "enter"), KEY)
    assert read_memory(memory).running == STEP
    marks.end()
    assert read_memory(memory).running is None


def test_a_step_that_goes_on_is_marked_as_the_one_that_was_suspended(memory: int) -> None:
    marks = Marks(memory)
    marks.begin(describe("Room", "enter"), KEY)
    mark = marks.current()
    marks.begin(describe("Room", "leave"), OTHER)
    marks.end()
    marks.resume(mark)
    assert read_memory(memory).running == STEP
    assert marks.steps == 3


def test_what_blocked_the_loop_is_told_apart_from_what_runs(memory: int) -> None:
    marks = Marks(memory)
    marks.begin(describe("Room", "enter"), KEY)
    marks.note_blocked(marks.current())
    marks.begin(describe("Room", "leave"), KEY)
    seen = read_memory(memory)
    assert (seen.running, seen.blocked) == (Marked("Room", "leave", KEY), STEP)
    marks.note_blocked(NOTHING)
    assert read_memory(memory).blocked is None


def test_methods_in_threads_have_marks_of_their_own_while_they_run(memory: int) -> None:
    marks = Marks(memory)
    marks.begin(describe("Room", "enter"), KEY)
    mark = marks.current()

    def look() -> tuple[int, dict[int, Marked]]:
        return threading.get_ident(), read_memory(memory).threads

    ident, threads = marks.in_thread(mark, look)
    assert threads == {ident: STEP}
    assert read_memory(memory).threads == {}


def test_more_threads_than_there_is_room_for_run_without_marks(memory: int) -> None:
    marks = Marks(memory)

    def nest(depth: int) -> int:
        return marks.in_thread(NOTHING, nest, depth - 1) if depth else 7

    assert nest(100) == 7


def test_long_names_are_cut_and_nonsense_is_no_mark(memory: int) -> None:
    marks = Marks(memory)
    marks.begin(describe("é" * 64, "m" * 300), KEY)
    running = read_memory(memory).running
    assert running is not None
    assert (running.namespace, running.method, running.key) == ("é" * 32, "m" * 60, KEY)
    os.pwrite(memory, b"\x01" + b"\xff" * 10 + bytes(150), 0)
    assert read_memory(memory).running is None


def test_the_text_of_the_dying_lies_behind_the_marks(memory: int) -> None:
    marks = Marks(memory)
    os.write(memory, b"an old text that is longer")
    marks.clear_stacks()
    os.write(memory, b"Fatal")
    assert read_memory(memory).stacks == "Fatal"
    assert read_memory(memory).running is None


# --- what the host marks


class Hall(DurableObject):
    """Looks at the marks from inside of its steps."""

    look: Callable[[], Any] = staticmethod(lambda: None)

    async def on_start(self) -> None:
        self.at_start = Hall.look()

    def started(self) -> Any:
        return self.at_start

    def plain(self) -> Any:
        return Hall.look()

    async def twice(self) -> Any:
        before = Hall.look()
        await take_time(1.0)
        return [before, Hall.look()]

    @blocking
    def threaded(self) -> Any:
        return Hall.look()


@pytest.fixture
def scene(make_scene: MakeScene, memory: int, monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = make_scene(Hall)
    marks = Marks(memory)
    scene.host.marks = marks
    scene.host._page = marks.page
    scene.host._threads._marks = marks
    monkeypatch.setattr(Hall, "look", lambda: running(memory))
    return scene


def running(memory: int) -> str:
    seen = read_memory(memory)
    steps = [seen.running, *seen.threads.values()]
    return " ".join(f"{step.namespace}.{step.method}" for step in steps if step is not None) or "nothing"


def test_each_kind_of_step_is_marked_while_it_runs_and_nothing_is_afterwards(
    scene: Scene, memory: int
) -> None:
    assert scene.call(Hall, "one", "started") == "Hall.on_start"
    assert scene.call(Hall, "one", "plain") == "Hall.plain"
    assert running(memory) == "nothing"
    call = scene.start(Hall, "one", "twice")
    assert running(memory) == "nothing"
    scene.advance(1.0)
    assert call.result() == ["Hall.twice", "Hall.twice"]
    assert running(memory) == "nothing"
    call = scene.start(Hall, "one", "threaded")
    scene.wait(lambda: call.answered)
    assert set(call.result().split()) == {"Hall.threaded"}  # of the loop's step too, while that lasts
    assert running(memory) == "nothing"


def test_the_mark_names_the_object(scene: Scene, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> Any:
        step = read_memory(memory).running
        return step and step.key

    monkeypatch.setattr(Hall, "look", key)
    assert scene.call(Hall, "one", "plain") == key_of(Hall, "one")
    call = scene.start(Hall, "two", "twice")
    scene.call(Hall, "one", "plain")
    scene.advance(1.0)
    assert call.result() == [key_of(Hall, "two")] * 2
