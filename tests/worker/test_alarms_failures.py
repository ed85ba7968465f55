"""Alarms that fail: tried again after growing pauses, with everything undone, and dead in sight at last."""

from __future__ import annotations

import itertools
from typing import Any

from perdure import Alarm, DurableObject, Limits
from perdure_storage import keys
from worker.alarm_scene import (
    Bell,
    Slow,
    Thorny,
    at,
    due_rows,
    restart,
    run,
    stored,
)
from worker.host_scene import WALL_S, Scene, take_time

PAUSES = [2, 4, 8, 16, 32, 64]


def ringing_times(scene: Scene, name: str, seconds: float) -> list[float]:
    """When the object rang, in seconds from now, observed in steps of 50 ms; its runs leave no trace."""
    found: list[float] = []
    began = scene.wall_clock()
    while scene.wall_clock() - began < seconds:
        before = scene.host.turns
        run(scene, 0.05)
        if scene.host.turns > before:
            found.append(scene.wall_clock() - began)
    return found


def test_a_raising_handler_runs_again_after_doubling_pauses_and_is_dead_in_the_end(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", *["raise"] * 7)
    scene.call(Bell, "b", "set", 1)
    times = ringing_times(scene, "b", 200)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(pauses) == len(PAUSES)
    for pause, expected in zip(pauses, PAUSES, strict=True):
        assert expected <= pause <= expected * 1.25 + 0.15
    assert len({round(pause / expected, 2) for pause, expected in zip(pauses, PAUSES, strict=True)}) > 2
    assert scene.call(Bell, "b", "alarms") == [("default", at(1), 7, True, "ValueError: attempt 7")]
    assert scene.call(Bell, "b", "get") is None
    assert due_rows(scene) == []
    assert scene.values(Bell, "b") == {}
    assert scene.host.stats()["alarms_dead"] == 1


def test_between_attempts_the_alarm_keeps_its_time_and_shows_why_it_failed(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", "raise", "look")
    scene.call(Bell, "b", "set", 1)
    run(scene, 2)
    assert scene.call(Bell, "b", "alarms") == [("default", at(1), 2, False, "ValueError: attempt 1")]
    assert scene.call(Bell, "b", "get") == at(1)
    run(scene, 3)
    assert scene.call(Bell, "b", "history") == [["default", 2]]
    assert scene.call(Bell, "b", "alarms") == []


def test_a_dead_alarm_is_armed_again_or_deleted(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", *["raise"] * 7)
    for name in ("x", "default"):
        scene.call(Bell, "b", "set", 1, name)
        ringing_times(scene, "b", 200)
        scene.call(Bell, "b", "prepare", *["raise"] * 7)
    assert [alarm[3] for alarm in scene.call(Bell, "b", "alarms")] == [True, True]
    scene.call(Bell, "b", "prepare")
    scene.call(Bell, "b", "set", 1)  # the time that it had
    assert scene.call(Bell, "b", "delete", "x") is True
    run(scene, 0.1)
    assert scene.call(Bell, "b", "history") == [["default", 1]]
    assert scene.rows(Bell, "b", keys.ALARM) == {}


def test_setting_a_failing_alarm_to_its_own_time_begins_its_attempts_anew(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", "raise", "ring")
    scene.call(Bell, "b", "set", 1)
    run(scene, 1.5)
    scene.call(Bell, "b", "set", 1)
    run(scene, 0.1)
    assert scene.call(Bell, "b", "history") == [["default", 1]]
    assert due_rows(scene) == []


def test_attempts_survive_a_restart_and_wait_for_their_time(scene: Scene, make_scene: Any) -> None:
    scene.call(Bell, "b", "prepare", "raise", "raise")
    scene.call(Bell, "b", "set", 1)
    run(scene, 5)
    later = restart(make_scene, scene)
    run(later, 1)
    assert later.call(Bell, "b", "history") == []
    run(later, 4)
    assert later.call(Bell, "b", "history") == [["default", 3]]


def test_an_alarm_set_in_a_run_that_fails_is_rolled_back_and_the_retry_stays(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", "set and raise", "ring")
    scene.call(Bell, "b", "set", 1)
    run(scene, 2)
    assert scene.call(Bell, "b", "get") == at(1)
    run(scene, 3)
    assert scene.call(Bell, "b", "history") == [["default", 2]]
    assert scene.call(Bell, "b", "get") is None
    assert due_rows(scene) == []


def test_an_object_that_cannot_start_fails_its_alarm(scene: Scene, make_scene: Any) -> None:
    scene.call(Thorny, "t", "break_and_set", "a")
    later = restart(make_scene, scene)
    run(later, 2)
    (alarm,) = stored(later, Thorny, "t").values()
    assert (alarm.attempt, alarm.error) == (2, "OSError: cannot start")
    run(later, 2 + sum(PAUSES) * 1.25)
    (alarm,) = stored(later, Thorny, "t").values()
    assert (alarm.attempt, alarm.next_ms) == (8, None)


def test_an_object_that_cannot_start_loses_none_of_its_alarms(make_scene: Any) -> None:
    scene = make_scene(Thorny)
    scene.call(Thorny, "t", "break_and_set", "a", "b", "c")
    later: Scene = make_scene(Thorny, disk=scene.disk.copy())
    run(later, 1.5)
    assert [alarm.attempt for alarm in stored(later, Thorny, "t").values()] == [2, 2, 2]
    assert later.host.stats()["alarms_running"] == 0


def test_alarms_that_line_up_behind_a_start_that_fails_in_the_end_are_not_lost(make_scene: Any) -> None:
    class Hesitant(DurableObject):
        async def set(self, *names: str) -> None:
            self.storage.put("broken", True)
            for name in names:
                self.storage.set_alarm(at(1), name=name)

        async def on_start(self) -> None:
            if await self.storage.get("broken"):
                await take_time(1)
                raise OSError("cannot start")

        def alarm(self, alarm: Alarm) -> None:
            """Never runs."""

    scene: Scene = make_scene(Hesitant)
    scene.call(Hesitant, "h", "set", "a", "b", "c", "d")
    later: Scene = make_scene(Hesitant, disk=scene.disk.copy())
    run(later, 1.5)
    assert later.host.stats()["alarms_waiting"] == 3
    run(later, 2)
    assert later.host.stats()["alarms_waiting"] == 0
    run(later, 4)
    assert all(alarm.attempt > 1 for alarm in stored(later, Hesitant, "h").values())


def test_a_failed_start_that_had_set_the_alarm_again_leaves_the_new_one(make_scene: Any) -> None:
    class Stubborn(DurableObject):
        async def set(self) -> None:
            self.storage.set_alarm(at(1))
            self.storage.put("set", True)

        async def on_start(self) -> None:
            if self.storage.delete("set"):
                self.storage.set_alarm(at(1_000))
                self.ctx.get(Bell, "other").history()  # a commit point, and the disk is slower than the start
                raise OSError("cannot start")

        def alarm(self, alarm: Alarm) -> None:
            """Never runs."""

    scene: Scene = make_scene(Stubborn, Bell)
    scene.call(Stubborn, "s", "set")
    later: Scene = make_scene(Stubborn, Bell, disk=scene.disk.copy())
    later.advance(1.5)
    later.commit()
    (alarm,) = stored(later, Stubborn, "s").values()
    assert (alarm.at_us, alarm.attempt) == ((WALL_S + 1_000) * 1_000_000, 1)
    assert [row.at_ms for row in due_rows(later)] == [(WALL_S + 1_000) * 1_000]


def test_a_failure_is_seen_before_it_is_durable_and_keeps_its_object_in_memory_until_then(
    scene: Scene,
) -> None:
    scene.call(Bell, "b", "prepare", "raise")
    scene.call(Bell, "b", "set", 1)
    scene.advance(1.5)
    listing = scene.start(Bell, "b", "alarms")
    scene.advance(15)
    scene.host.evict_idle()
    assert scene.is_live(Bell, "b")
    assert not listing.answered
    scene.commit_one()
    assert listing.result() == [("default", at(1), 2, False, "ValueError: attempt 1")]


def test_a_run_over_the_turn_limit_fails(make_scene: Any) -> None:
    scene = make_scene(Slow, limits=Limits(turn_max_s=5.0))
    scene.call(Slow, "s", "set", "x")
    run(scene, 7)
    (alarm,) = stored(scene, Slow, "s").values()
    assert alarm.attempt == 2
    assert alarm.error is not None
    assert "TurnLimit" in alarm.error


def test_an_aborting_handler_fails_and_the_next_run_has_a_fresh_instance(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", "abort", "raise")
    scene.call(Bell, "b", "set", 1)
    run(scene, 5)
    assert scene.call(Bell, "b", "history") == [["default", 2]]


def test_an_alarm_behind_a_call_that_aborts_the_object_is_no_failure(scene: Scene) -> None:
    scene.call(Bell, "b", "set", 1)
    scene.start(Bell, "b", "wait")
    abort = scene.start(Bell, "b", "abort")
    run(scene, 2)
    scene.resident(Bell, "b").instance.go.set()
    run(scene, 0.2)
    assert abort.answered
    assert scene.call(Bell, "b", "history") == [["default", 1]]


def test_an_error_that_cannot_be_shown_or_stored_fails_its_alarm_as_any(make_scene: Any) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    class Prickly(DurableObject):
        async def set(self) -> None:
            self.storage.set_alarm(at(0), name="odd")
            self.storage.set_alarm(at(0), name="surrogate")
            self.storage.set_alarm(at(0), name="long")

        async def alarm(self, alarm: Alarm) -> None:
            raise {"odd": Odd(), "surrogate": ValueError("\ud800"), "long": ValueError("x" * 9_999)}[
                alarm.name
            ]

    scene = make_scene(Prickly)
    scene.call(Prickly, "p", "set")
    run(scene, 0.2)
    alarms = stored(scene, Prickly, "p")
    assert [alarm.attempt for alarm in alarms.values()] == [2, 2, 2]
    assert (alarms["odd"].error or "").endswith("Odd: its message cannot be shown")
    assert alarms["surrogate"].error == "ValueError: ?"
    assert len(alarms["long"].error or "") == Limits().alarm_error_chars
