"""A turn that keeps the loop: when it is told, how often, and with which names."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from perdure import DurableObject, Limits
from perdure_worker.marks import NOTHING, Marks, describe
from perdure_worker.watchdog import Watch, Watchdog, stack_text
from worker.host_scene import Scene

KEY = bytes(range(32))
MakeScene = Callable[..., Scene]


def mark_of(method: str) -> bytes:
    marks = Marks()
    marks.begin(describe("Room", method), KEY)
    return marks.current()


STEP = mark_of("enter")


def looks(watch: Watch, *seen: tuple[float, int, bytes]) -> list[tuple[str, float]]:
    found = [watch.look(*look) for look in seen]
    return [(blockage.moment, round(blockage.seconds, 3)) for blockage in found if blockage is not None]


def test_a_step_is_told_when_it_is_over_the_limit_and_again_when_it_ends() -> None:
    watch = Watch(0.1, 1.5)
    told = looks(watch, (0.0, 1, STEP), (0.09, 1, STEP), (0.11, 1, STEP), (0.2, 1, STEP), (0.3, 2, STEP))
    assert told == [("begins", 0.11), ("ends", 0.3)]


def test_many_short_steps_of_one_method_are_no_blockage() -> None:
    assert looks(Watch(0.1, 1.5), *((number * 0.05, number, STEP) for number in range(100))) == []


def test_another_step_with_the_same_count_is_not_taken_for_the_one_before() -> None:
    other = mark_of("leave")
    assert looks(Watch(0.1, 1.5), (0.0, 1, STEP), (0.08, 1, other), (0.16, 1, other)) == []


def test_an_idle_loop_is_no_blockage() -> None:
    assert looks(Watch(0.1, 1.5), *((number * 0.5, 3, NOTHING) for number in range(10))) == []


def test_a_step_that_does_not_end_is_told_a_second_time_before_it_is_too_late() -> None:
    told = looks(Watch(0.1, 1.5), *((number * 0.1, 1, STEP) for number in range(30)))
    assert told == [("begins", 0.1), ("hangs", 1.5)]


class Room(DurableObject):
    """Something runs beside its method while that keeps the loop."""

    seen: Callable[[], None] = staticmethod(lambda: None)

    def enter(self) -> str:
        Room.seen()
        return "in"


def dog_of(scene: Scene) -> Watchdog:
    host = scene.host
    return Watchdog(
        host.marks,
        Limits(),
        lambda: host.turns + host.marks.steps,
        lambda key: host.live[key].label,
    )


def test_a_blocking_turn_is_logged_once_with_object_method_and_stack_and_counted(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = make_scene(Room)
    dog = dog_of(scene)
    monkeypatch.setattr(Room, "seen", lambda: [dog.look(now) for now in (1.0, 1.05, 1.15, 1.2)])
    with caplog.at_level(logging.WARNING):
        assert scene.call(Room, "one", "enter") == "in"
        dog.look(1.25)
        dog.look(1.3)
    (record,) = caplog.records
    facts: Any = record
    assert (facts.object, facts.method, facts.seconds) == ("Room/one", "enter", 0.25)
    assert "test_watchdog.py" in facts.stack
    assert "Room.enter" in facts.stack
    assert "execution.py" not in facts.stack
    figures = scene.call_worker("stats", [])
    assert (figures["blocked_turns"], figures["blocked_longest_ms"]) == (1, 250)


def test_a_turn_that_is_quick_is_not_logged(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = make_scene(Room)
    dog = dog_of(scene)
    monkeypatch.setattr(Room, "seen", lambda: [dog.look(now) for now in (1.0, 1.05, 1.09)])
    scene.call(Room, "one", "enter")
    dog.look(1.2)
    assert not caplog.records
    assert scene.call_worker("stats", [])["blocked_turns"] == 0


def test_the_thread_sees_the_stack_of_the_loop_and_ends_with_close(caplog: pytest.LogCaptureFixture) -> None:
    marks = Marks()
    dog = Watchdog(marks, Limits(turn_blocked_s=0.02), lambda: marks.steps, lambda key: "Room/one")
    dog.start()
    marks.begin(describe("Room", "enter"), KEY)
    blocked = threading.Event()
    marks.note_blocked = lambda mark: blocked.set()  # type: ignore[method-assign]
    assert blocked.wait(10)
    dog.close()
    assert marks.figures["blocked_turns"] == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "perdure-watchdog"]


def test_a_stack_is_told_innermost_first_and_bounded() -> None:
    def deep(left: int) -> str:
        return deep(left - 1) if left else stack_text(sys._getframe())

    assert stack_text(None) == ""
    text = deep(50)
    assert text.startswith("test_watchdog.py:")
    assert len(text.split(" < ")) == 16
