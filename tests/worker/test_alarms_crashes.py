"""Alarms and the end of workers: a crash at any instant, an ordered stop, classes that have changed."""

from __future__ import annotations

from typing import Any

from perdure import DurableObject
from perdure.ids import slot_of
from perdure_storage import keys
from perdure_worker.turns import TURN_REQUEST
from worker.alarm_scene import (
    Bell,
    Caller,
    Plain,
    at,
    due_rows,
    restart,
    run,
    stored,
)
from worker.host_scene import SLOTS, WALL_S, Scene, key_of

# --- 60, 61, 62: crashes


def test_a_crash_inside_the_handler_runs_it_again_and_counts_as_no_failure(
    scene: Scene, make_scene: Any
) -> None:
    scene.call(Bell, "b", "prepare", "raise", "wait")
    scene.call(Bell, "b", "set", 1)
    run(scene, 4)  # the second run waits
    later = restart(make_scene, scene)
    run(later, 0.1)
    assert later.call(Bell, "b", "history") == [["default", 2]]


def test_the_alarm_is_deleted_only_with_the_handlers_batch(scene: Scene, make_scene: Any) -> None:
    scene.call(Bell, "b", "set", 1)
    scene.advance(1.5)  # the handler has ended; the disk has not
    assert scene.host.stats()["alarms_running"] == 0
    lost = restart(make_scene, scene)
    run(lost, 0.1)
    assert lost.call(Bell, "b", "history") == [["default", 1]]
    scene.commit()
    kept = restart(make_scene, scene)
    run(kept, 1)
    assert kept.call(Bell, "b", "history") == [["default", 1]]


def test_an_alarm_and_the_data_of_its_turn_are_both_there_after_a_crash_or_neither(
    scene: Scene, make_scene: Any
) -> None:
    scene.start(Bell, "b", "set_and_put", 100)
    neither = restart(make_scene, scene)
    assert (neither.call(Bell, "b", "get"), neither.values(Bell, "b"), due_rows(neither)) == (None, {}, [])
    scene.commit()
    both = restart(make_scene, scene)
    assert both.call(Bell, "b", "get") == at(100)
    assert (both.values(Bell, "b"), both.fields(Bell, "b")) == ({"key": "value"}, {"value": 7})
    assert len(due_rows(both)) == 1


def test_a_run_and_its_repetition_make_the_same_requests_and_another_alarm_makes_others(
    scene: Scene, make_scene: Any
) -> None:
    def request(of: Scene) -> Any:
        return of.resident(Caller, "c").turn[TURN_REQUEST]

    scene.call(Caller, "c", "set")
    run(scene, 1.5)
    first = request(scene)
    assert (len(first[0]), first[1:]) == (16, (1, b"", 0))
    again = restart(make_scene, scene)
    run(again, 0.1)
    assert request(again) == first
    other = again.resident(Bell, "other").instance
    other.go.set()
    again.commit()
    assert again.resident(Caller, "c").turn is None
    other.go.clear()
    again.call(Caller, "c", "set")
    run(again, 0.2)
    assert request(again)[0] != first[0]


# --- the worker


def test_a_draining_worker_starts_no_alarm_and_counts_no_failure(scene: Scene, make_scene: Any) -> None:
    scene.call(Bell, "waits", "set", 1)
    scene.call(Bell, "later", "set", 2)
    scene.start(Bell, "waits", "wait")
    run(scene, 1.5)
    scene.do(scene.host.drain)
    run(scene, 2)
    scene.resident(Bell, "waits").instance.go.set()
    run(scene, 1)
    assert scene.host.busy == 0
    assert scene.host.stats()["alarms_running"] == 0
    later = restart(make_scene, scene)
    run(later, 1)
    for name in ("waits", "later"):
        assert later.call(Bell, name, "history") == [["default", 1]]


def test_a_draining_worker_does_not_go_on_to_the_next_alarm_of_an_object(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", "wait")
    scene.call(Bell, "b", "set", 1, "first")
    scene.call(Bell, "b", "set", 1.1, "second")
    run(scene, 2)
    scene.do(scene.host.drain)
    scene.resident(Bell, "b").instance.go.set()
    run(scene, 0.1)
    assert (scene.host.busy, scene.host.stats()["alarms_waiting"]) == (0, 0)
    assert [row.key for row in due_rows(scene)] == [b"second"]


def test_a_running_handler_counts_as_busy(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", "wait")
    scene.call(Bell, "b", "set", 1)
    run(scene, 2)
    scene.do(scene.host.drain)
    assert scene.host.busy == 1
    scene.resident(Bell, "b").instance.go.set()
    run(scene, 0.1)
    assert scene.host.busy == 0
    assert due_rows(scene) == []


def test_an_alarm_of_a_class_that_is_not_served_stays_stored(scene: Scene, make_scene: Any) -> None:
    scene.call(Bell, "b", "set", 1)
    other = make_scene(Plain, disk=scene.disk.copy())
    run(other, 2)
    assert len(due_rows(other)) == 1
    assert other.host.stats()["alarms_running"] == 0


def test_an_alarm_of_a_class_that_lost_its_handler_fails_in_sight(scene: Scene, make_scene: Any) -> None:
    class Mute(DurableObject, namespace="Bell"):
        pass

    scene.call(Bell, "b", "set", 1)
    other = make_scene(Mute, disk=scene.disk.copy())
    run(other, 2)
    assert stored(other, Mute, "b")["default"].error == "TypeError: Mute has no alarm handler any more"


def test_a_row_of_the_index_without_its_alarm_is_passed_over_and_removed(scene: Scene) -> None:
    key = key_of(Bell, "b")
    orphan = keys.due_key(int(WALL_S * 1000), keys.ALARM, slot_of(key, SLOTS), "Bell", key, b"default")
    scene.disk.apply([(orphan, b"\1")])
    run(scene, 0.2)
    assert scene.call(Bell, "b", "history") == []
    assert due_rows(scene) == []


def test_a_failure_is_not_counted_when_the_alarm_was_set_again_meanwhile(scene: Scene) -> None:
    scene.call(Bell, "b", "prepare", "raise")
    scene.call(Bell, "b", "set", 1)
    due = due_rows(scene)[0]
    scene.call(Bell, "b", "set", 50)
    scene.do(scene.host.alarms.count_failure, due, scene.resident(Bell, "b"), "late news")
    scene.commit()
    assert stored(scene, Bell, "b")["default"].attempt == 1
