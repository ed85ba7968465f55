"""Alarms: set by name, run once at their time and not before, and what their handler does to them counts."""

from __future__ import annotations

from typing import Any

import pytest

from perdure_storage import keys
from worker.alarm_scene import (
    Bell,
    Plain,
    at,
    due_rows,
    left_of,
    restart,
    run,
    stored,
)
from worker.host_scene import WALL_S, Scene

# --- 55: setting


def test_alarms_are_set_read_replaced_and_deleted_by_name(scene: Scene) -> None:
    assert scene.call(Bell, "b", "get") is None
    scene.call(Bell, "b", "set", 100)
    scene.call(Bell, "b", "set", 50, "tea")
    assert (scene.call(Bell, "b", "get"), scene.call(Bell, "b", "get", "tea")) == (at(100), at(50))
    scene.call(Bell, "b", "set", 70)
    assert [alarm[:2] for alarm in scene.call(Bell, "b", "alarms")] == [("tea", at(50)), ("default", at(70))]
    assert [row.at_ms for row in due_rows(scene)] == [(WALL_S + 50) * 1000, (WALL_S + 70) * 1000]
    assert (scene.call(Bell, "b", "delete"), scene.call(Bell, "b", "delete")) == (True, False)
    assert scene.call(Bell, "b", "get") is None
    assert [row.key for row in due_rows(scene)] == [b"tea"]
    scene.call(Bell, "b", "delete", "tea")
    assert due_rows(scene) == []
    assert scene.rows(Bell, "b", keys.ALARM) == {}


def test_the_same_value_twice_is_no_write(scene: Scene) -> None:
    scene.call(Bell, "b", "set", 100)
    before = scene.committer.sequence
    scene.call(Bell, "b", "set", 100)
    assert scene.committer.sequence == before
    scene.call(Bell, "b", "set", 101)
    assert scene.committer.sequence == before + 1


def test_an_alarm_that_a_raising_turn_set_is_not_set(scene: Scene) -> None:
    with pytest.raises(Exception, match="no"):
        scene.call(Bell, "b", "set_and_raise", 1)
    run(scene, 3)
    assert scene.call(Bell, "b", "history") == []


def test_a_class_without_the_handler_cannot_set_one(scene: Scene) -> None:
    with pytest.raises(Exception, match="no alarm handler"):
        scene.call(Plain, "p", "set")
    assert len(scene.disk) == 0


def test_deleting_everything_deletes_alarms_and_what_was_due_for_them(scene: Scene) -> None:
    scene.call(Bell, "b", "set", 5)
    scene.call(Bell, "b", "set", 7, "tea")
    scene.call(Bell, "b", "delete_everything")
    assert left_of(scene, Bell, "b") == []
    run(scene, 10)
    assert scene.call(Bell, "b", "history") == []


# --- 56: when


def test_an_alarm_runs_once_within_milliseconds_of_its_time_and_not_before(scene: Scene) -> None:
    scene.call(Bell, "b", "set", 3.3337)
    run(scene, 3.33)
    assert scene.call(Bell, "b", "history") == []
    scene.advance(0.0036)
    assert scene.call(Bell, "b", "history") == []
    scene.advance(0.002)
    scene.commit()
    assert scene.call(Bell, "b", "history") == [["default", 1]]
    run(scene, 5)
    assert scene.call(Bell, "b", "history") == [["default", 1]]
    assert scene.call(Bell, "b", "alarms") == []
    assert due_rows(scene) == []


def test_a_clock_set_back_makes_it_later_and_never_early(scene: Scene) -> None:
    scene.call(Bell, "b", "set", 5)
    run(scene, 4.9)
    scene.wall_step_s -= 60
    run(scene, 59)
    assert scene.call(Bell, "b", "history") == []
    run(scene, 2)
    assert scene.call(Bell, "b", "history") == [["default", 1]]


def test_a_clock_set_back_while_it_waits_for_its_turn_sends_it_back(scene: Scene) -> None:
    scene.call(Bell, "b", "set", 5)
    call = scene.start(Bell, "b", "wait")
    run(scene, 6)
    scene.wall_step_s -= 60
    scene.resident(Bell, "b").instance.go.set()
    scene.commit()
    assert call.answered
    assert scene.call(Bell, "b", "history") == []
    run(scene, 60)
    assert scene.call(Bell, "b", "history") == [["default", 1]]


def test_a_clock_set_forward_runs_it_once(scene: Scene) -> None:
    scene.call(Bell, "b", "set", 3_600)
    scene.wall_step_s += 7_200
    run(scene, 0.1)
    scene.wall_step_s -= 7_200
    run(scene, 1)
    scene.wall_step_s += 7_200
    run(scene, 1)
    assert scene.call(Bell, "b", "history") == [["default", 1]]


def test_overdue_alarms_run_when_the_worker_starts(scene: Scene, make_scene: Any) -> None:
    for name in ("a", "b", "c"):
        scene.call(Bell, name, "set", 5 if name != "c" else 500)
    later = restart(make_scene, scene)
    later.wall_step_s += 60
    run(later, 0.05)
    assert [later.is_live(Bell, name) for name in ("a", "b", "c")] == [True, True, False]
    assert later.call(Bell, "a", "history") == [["default", 1]]


def test_an_alarm_set_to_a_past_time_runs_at_once(scene: Scene) -> None:
    scene.call(Bell, "b", "set", -1_000)
    scene.commit()
    assert scene.call(Bell, "b", "history") == [["default", 1]]


# --- 57: inside the handler


def test_inside_its_handler_the_alarm_looks_deleted(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", "look")
    scene.call(Bell, "b", "set", 1)
    run(scene, 2)
    assert scene.call(Bell, "b", "what_it_saw") == [None, 0]


@pytest.mark.parametrize(("plan", "kept"), [("set", 1_000.0), ("set same", 1.0), ("delete", None)])
def test_what_the_handler_does_to_its_own_alarm_counts(scene: Scene, plan: str, kept: float | None) -> None:
    scene.call(Bell, "b", "prepare", plan, "ring")
    scene.call(Bell, "b", "set", 1)
    scene.advance(1.1)
    if plan == "set same":  # its time has come already: it runs again
        scene.commit()
        run(scene, 0.1)
        assert scene.call(Bell, "b", "history") == [["default", 1], ["default", 1]]
        kept = None
    else:
        scene.commit()
        assert scene.call(Bell, "b", "history") == [["default", 1]]
    assert scene.call(Bell, "b", "get") == (None if kept is None else at(kept))
    assert len(due_rows(scene)) == (kept is not None)
    assert scene.rows(Bell, "b", keys.ALARM).get("", 0) == (kept is not None)
    if plan == "delete":
        assert scene.call(Bell, "b", "what_it_saw") == [True, False]


def test_deleting_everything_inside_the_handler_leaves_nothing(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", "empty")
    scene.call(Bell, "b", "set", 1)
    scene.call(Bell, "b", "set", 100, "tea")
    run(scene, 2)
    assert left_of(scene, Bell, "b") == []


def test_a_commit_halfway_through_the_handler_deletes_and_sets_nothing_of_its_alarm(
    scene: Scene, make_scene: Any
) -> None:
    scene.call(Bell, "b", "prepare", "sync and wait")
    scene.call(Bell, "b", "set", 1)
    run(scene, 2)
    assert scene.values(Bell, "b") == {"key": "halfway"}
    assert [alarm.at_us for alarm in stored(scene, Bell, "b").values()] == [(WALL_S + 1) * 1_000_000]
    assert [row.at_ms for row in due_rows(scene)] == [(WALL_S + 1) * 1000]
    after_crash = restart(make_scene, scene)
    run(after_crash, 0.1)
    assert after_crash.call(Bell, "b", "history")[-1] == ["default", 1]
    scene.resident(Bell, "b").instance.go.set()
    run(scene, 0.1)
    assert [row.at_ms for row in due_rows(scene)] == [(WALL_S + 1_000) * 1000]
    assert scene.call(Bell, "b", "get") == at(1_000)
