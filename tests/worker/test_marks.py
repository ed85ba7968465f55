"""What a worker runs, as another process reads it from the memory that both have."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from perdure_worker.marks import NOTHING, Marked, Marks, describe, new_memory, read_memory

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
    os.pwrite(memory, b"\x01" + os.urandom(10) + bytes(150), 0)
    assert read_memory(memory).running is None


def test_the_text_of_the_dying_lies_behind_the_marks(memory: int) -> None:
    marks = Marks(memory)
    os.write(memory, b"an old text that is longer")
    marks.clear_stacks()
    os.write(memory, b"Fatal")
    assert read_memory(memory).stacks == "Fatal"
    assert read_memory(memory).running is None
