"""Alarms from their setting to their end: when they run, how often, and what a failure or a crash leaves."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure import Alarm, DurableObject, Limits, blocking, codec, durable
from perdure.ids import id_from_name, slot_of
from perdure_storage import keys
from perdure_storage.memory import MemoryDisk, MemoryEngine
from perdure_worker.alarm_rows import AlarmRow
from perdure_worker.turns import TURN_REQUEST
from worker.host_scene import SLOTS, WALL_S, Scene, key_of, take_time

LIMITS = Limits(alarm_retry_s=2.0)
PAUSES = [2, 4, 8, 16, 32, 64]


def at(seconds: float) -> datetime:
    """A time of a scene that began at 0."""
    return datetime.fromtimestamp(WALL_S, UTC) + timedelta(seconds=seconds)


class Bell(DurableObject):
    """Rings, and notes when it rang; what its handler does is set by calls before."""

    rung: list[Any] = durable(default_factory=list)
    value: int = durable(0)

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.plan: list[str] = []
        self.seen: list[Any] = []

    async def prepare(self, *plan: str) -> None:
        """For the next runs, one entry each."""
        self.plan = list(plan)

    async def set(self, seconds: float, name: str = "default") -> None:
        self.storage.set_alarm(at(seconds), name=name)

    async def set_many(self, seconds: float, count: int) -> None:
        for number in range(count):
            self.storage.set_alarm(at(seconds), name=f"{number:05}")

    async def set_and_put(self, seconds: float) -> None:
        self.value = 7
        self.storage.put("key", "value")
        self.storage.set_alarm(at(seconds))

    async def set_and_raise(self, seconds: float) -> None:
        self.storage.set_alarm(at(seconds))
        raise ValueError("no")

    async def get(self, name: str = "default") -> datetime | None:
        return await self.storage.get_alarm(name)

    async def delete(self, name: str = "default") -> bool:
        return self.storage.delete_alarm(name)

    async def delete_everything(self) -> None:
        await self.storage.delete_all()

    async def alarms(self) -> list[tuple[str, datetime, int, bool, str | None]]:
        return [
            (a.name, a.scheduled_at, a.attempt, a.dead, a.error) for a in await self.storage.list_alarms()
        ]

    async def history(self) -> list[Any]:
        return self.rung

    async def what_it_saw(self) -> list[Any]:
        return self.seen

    async def wait(self) -> None:
        await self.go.wait()

    async def abort(self) -> None:
        self.ctx.abort("enough")

    async def alarm(self, alarm: Alarm) -> None:
        self.rung.append([alarm.name, alarm.attempt])
        what = self.plan.pop(0) if self.plan else "ring"
        if what == "look":
            self.seen = [await self.storage.get_alarm(alarm.name), len(await self.storage.list_alarms())]
        elif what == "set":
            self.storage.set_alarm(at(1_000), name=alarm.name)
        elif what == "set same":
            self.storage.set_alarm(alarm.scheduled_at, name=alarm.name)
            assert await self.storage.get_alarm(alarm.name) == alarm.scheduled_at
        elif what == "delete":
            self.storage.set_alarm(at(1_000), name=alarm.name)
            self.seen = [self.storage.delete_alarm(alarm.name), self.storage.delete_alarm(alarm.name)]
        elif what in ("raise", "set and raise"):
            if what == "set and raise":
                self.storage.set_alarm(at(1_000), name=alarm.name)
            self.storage.put("key", "lost")
            raise ValueError(f"attempt {alarm.attempt}")
        elif what == "sync and wait":
            self.storage.put("key", "halfway")
            self.storage.set_alarm(at(1_000), name=alarm.name)
            await self.storage.sync()
            await self.go.wait()
        elif what == "wait":
            await self.go.wait()
        elif what == "abort":
            self.ctx.abort("enough")
        elif what == "empty":
            await self.storage.delete_all()


class Plain(DurableObject):
    """Has no handler."""

    def set(self) -> None:
        self.storage.set_alarm(timedelta(seconds=1))


class Thorny(DurableObject):
    """Cannot start once told so."""

    rung: int = durable(0)

    async def on_start(self) -> None:
        if await self.storage.get("broken"):
            raise OSError("cannot start")

    async def break_and_set(self) -> None:
        self.storage.put("broken", True)
        self.storage.set_alarm(at(1))

    def alarm(self, alarm: Alarm) -> None:
        self.rung += 1


class Slow(DurableObject):
    """Its handler takes ten minutes, or works in a thread."""

    async def set(self, name: str, seconds: float = 1) -> None:
        self.storage.set_alarm(at(seconds), name=name)

    async def alarm(self, alarm: Alarm) -> None:
        await take_time(600)


class Threaded(DurableObject):
    rung: str = durable("")

    def set(self) -> None:
        self.storage.set_alarm(at(1))

    def get(self) -> str:
        return self.rung

    @blocking
    def alarm(self, alarm: Alarm) -> None:
        self.rung = alarm.name


class Named(DurableObject):
    seen: str = durable("nothing")

    def set(self) -> None:
        self.storage.set_alarm(at(1))

    def get(self) -> str:
        return self.seen

    def alarm(self, alarm: Alarm) -> None:
        self.seen = f"{self.id.name}"


class Caller(DurableObject):
    async def set(self) -> None:
        self.storage.set_alarm(at(1))

    async def alarm(self, alarm: Alarm) -> None:
        await self.ctx.get(Bell, "other").wait()


@pytest.fixture
def scene(make_scene: Any) -> Scene:
    return make_scene(Bell, Plain, Thorny, Slow, Threaded, Named, Caller)


def restart(make_scene: Any, old: Scene, *, disk: MemoryDisk | None = None) -> Scene:
    """A new incarnation on what the old one's disk holds now, at the same time."""
    scene: Scene = make_scene(
        Bell, Plain, Thorny, Slow, Threaded, Named, Caller, disk=(disk or old.disk).copy(), limits=old.limits
    )
    scene.wall_step_s = old.wall_clock() - scene.wall_clock()
    return scene


def run(scene: Scene, seconds: float) -> None:
    """Time passes, the worker looks at its clock every 50 ms, and the disk keeps up."""
    steps = max(1, round(seconds / 0.05))
    for _ in range(steps):
        scene.advance(seconds / steps)
        scene.commit()


def due_rows(scene: Scene) -> list[keys.DueRow]:
    between = scene.disk.between(keys.DUE_REGION, keys.prefix_end(keys.DUE_REGION))
    return [keys.parse_due_row(row) for row, _ in between]


def stored(scene: Scene, cls: Any, name: str) -> dict[str, AlarmRow]:
    """The object's alarms on disk."""
    rows = scene.rows(cls, name, keys.ALARM)
    return {name: AlarmRow(*values) for name, values in rows.items() if name}


def left_of(scene: Scene, cls: Any, name: str) -> list[bytes]:
    """Keys on disk that hold something of the object, but for replies that are kept for retries."""
    rows = [key for key, _ in scene.disk.between(keys.OBJECTS_REGION, b"\xff")]
    mine = [key for key in rows if key_of(cls, name) in key or key.endswith(name.encode())]
    is_object_row = keys.OBJECTS_REGION
    return [
        key
        for key in mine
        if not key.startswith(is_object_row) or keys.parse_object_row(key).kind != keys.REPLY
    ]


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


# --- 58 and 59: failures


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
    scene.call(Thorny, "t", "break_and_set")
    later = restart(make_scene, scene)
    run(later, 2)
    (alarm,) = stored(later, Thorny, "t").values()
    assert (alarm.attempt, alarm.error) == (2, "OSError: cannot start")
    run(later, 2 + sum(PAUSES) * 1.25)
    (alarm,) = stored(later, Thorny, "t").values()
    assert (alarm.attempt, alarm.next_ms) == (8, None)


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
    assert [alarm.error for alarm in alarms.values()][1:] == [
        "Odd: (its text cannot be made)",
        "ValueError: ?",
    ]
    assert len(alarms["long"].error or "") == Limits().alarm_error_chars


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
