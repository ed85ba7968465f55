"""Many alarms, slow ones, and objects that are not in memory: others are served meanwhile."""

from __future__ import annotations

from typing import Any

from perdure import Limits, codec
from perdure.ids import id_from_name, slot_of
from perdure_storage import keys
from perdure_storage.memory import MemoryDisk, MemoryEngine
from worker.alarm_scene import (
    Bell,
    Named,
    Slow,
    Threaded,
    due_rows,
    restart,
    run,
    stored,
)
from worker.host_scene import SLOTS, WALL_S, Scene

# --- 63: many


def many_due(count: int, cls: Any = Bell, seconds: float = 1) -> MemoryDisk:
    """A disk with that many objects, each with an alarm."""
    scene = Scene(cls)
    for number in range(count):
        scene.start(cls, f"{number}", "set", seconds)
    scene.commit()
    disk = scene.disk.copy()
    scene.close()
    return disk


class CountingEngine(MemoryEngine):
    scans = 0

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Any:
        self.scans += 1
        return super().scan(start, stop, reverse=reverse)


def test_pending_alarms_cost_one_page_at_the_start_and_nothing_while_time_passes(make_scene: Any) -> None:
    disk = MemoryDisk()
    rows = []
    for number in range(100_000):
        key = id_from_name("Bell", f"{number}").key
        due_ms = int(WALL_S * 1000) + 3_600_000 + number
        rows.append((keys.due_key(due_ms, keys.ALARM, slot_of(key, SLOTS), "Bell", key, b"default"), b"\1"))
    disk.apply(rows)
    scene = make_scene(Bell, disk=disk)
    engine = scene.engine = CountingEngine(disk)
    scene.host.timetable._index._scan = engine.scan
    run(scene, 5)
    assert engine.scans == 1
    assert scene.host.stats()["due_rows_known"] == Limits().due_page_rows
    assert scene.loop.next_timer is None
    assert len(scene.host.live) == 0


def test_many_alarms_at_once_all_run_in_small_groups_with_calls_in_between(make_scene: Any) -> None:
    scene = make_scene(Bell, disk=many_due(2_000))
    scene.call(Bell, "caller", "get")
    scene.wall_step_s += 10
    served = []
    scene.loop.call_soon(scene.host.tick)
    while sum(served) < 2_000 + len(served) and len(served) < 100:
        # One iteration of the loop, with a call in it.
        batch = codec.encode([b"x" * 16, scene.item(Bell, "caller", "get")])
        scene.loop.call_soon(scene.host.on_calls, scene.client, batch, 0)
        before = scene.host.turns
        scene.loop.call_soon(scene.loop.stop)
        scene.loop.run_forever()
        served.append(scene.host.turns - before)
    assert sum(served) == 2_000 + len(served)
    assert max(served) <= Limits().due_batch_rows + 1
    scene.commit()
    assert due_rows(scene) == []
    assert all(scene.fields(Bell, f"{n}") == {"rung": [["default", 1]]} for n in range(0, 2_000, 97))


def test_an_object_with_many_slow_alarms_holds_up_no_other_object(make_scene: Any) -> None:
    limits = Limits(alarms_running_max=4, alarms_waiting_max=1_000, turn_max_s=60.0)
    scene = make_scene(Bell, Slow, limits=limits)
    for number in range(100):
        scene.call(Slow, "s", "set", f"{number}")
    scene.call(Bell, "b", "set", 1.2)
    run(scene, 2)
    assert scene.call(Bell, "b", "history") == [["default", 1]]
    assert scene.host.stats()["alarms_waiting"] == 99


def test_no_more_objects_than_allowed_run_alarms_at_once_and_the_others_follow(make_scene: Any) -> None:
    scene = make_scene(Slow, Bell, limits=Limits(alarms_running_max=3, due_batch_rows=1, turn_max_s=5.0))
    for number in range(9):
        scene.call(Slow, f"{number}", "set", "x")
    seen = []
    for _ in range(40):
        run(scene, 0.5)
        seen.append(scene.host.stats()["alarms_running"])
    assert max(seen) == 3
    assert all(stored(scene, Slow, f"{number}")["x"].attempt > 1 for number in range(9))


def test_alarms_of_one_object_run_one_after_the_other_between_its_calls(scene: Scene) -> None:
    scene.call(Bell, "b", "set_many", 1, 300)
    first = scene.start(Bell, "b", "wait")
    run(scene, 2)
    second = scene.start(Bell, "b", "history")
    scene.resident(Bell, "b").instance.go.set()
    scene.commit()
    assert first.answered
    # The call came when one alarm was in the mailbox, so it had to wait for that one only.
    assert len(second.result()) == 1
    run(scene, 0.1)
    assert scene.call(Bell, "b", "history") == [[f"{number:05}", 1] for number in range(300)]
    assert scene.rows(Bell, "b", keys.ALARM) == {}


# --- 64 and 3: life


def test_an_object_with_a_future_alarm_leaves_memory_and_is_woken_for_it(scene: Scene) -> None:
    scene.call(Bell, "b", "set", 100)
    run(scene, 20)
    scene.host.evict_idle()
    assert not scene.is_live(Bell, "b")
    run(scene, 81)
    assert scene.is_live(Bell, "b")
    assert scene.fields(Bell, "b") == {"rung": [["default", 1]]}


def test_an_alarm_keeps_its_object_in_memory_while_it_runs(make_scene: Any) -> None:
    scene = make_scene(Slow, Bell)
    scene.call(Slow, "s", "set", "x")
    run(scene, 20)
    scene.host.evict_idle()
    assert scene.is_live(Slow, "s")


def test_the_name_is_known_in_an_alarm_after_a_cold_restart(scene: Scene, make_scene: Any) -> None:
    scene.call(Named, "lobby", "set")
    later = restart(make_scene, scene)
    run(later, 2)
    assert later.fields(Named, "lobby") == {"seen": "lobby"}


def test_a_handler_in_a_thread_works_as_any(scene: Scene) -> None:
    scene.call(Threaded, "t", "set")
    scene.advance(1.5)
    scene.wait(lambda: scene.host.stats()["alarms_running"] == 0)
    assert scene.call(Threaded, "t", "get") == "default"
    assert due_rows(scene) == []
