"""Which objects are in memory: idle ones leave, used ones stay, and an ordered stop answers everybody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure import DurableObject, Limits, ShardUnavailable, durable
from worker.host_scene import Scene, results, take_time


class Pet(DurableObject):
    value: int = durable(0)
    items: list[int] = durable(default_factory=list)
    memory: int = 0

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def remember(self, value: int) -> tuple[int, int]:
        before = (self.memory, self.value)
        self.memory = self.value = value
        return before

    async def touch(self) -> int:
        self.memory += 1
        return self.memory

    async def hold(self) -> str:
        await self.go.wait()
        return "held"

    async def nap(self, seconds: float) -> None:
        await take_time(seconds)

    async def call_without_waiting(self, other: str) -> None:
        self.ctx.get(Pet, other).hold()

    async def call(self, other: str) -> str:
        await self.go.wait()
        return str(await self.ctx.get(Pet, other).touch())


def evict(scene: Scene) -> int:
    gone: int = scene.do(scene.host.evict_idle)
    return gone


# --- idle objects


def test_an_idle_object_leaves_memory_and_only_what_is_durable_stays(make_scene: Any) -> None:
    scene = make_scene(Pet, idle_evict_s=10)
    scene.call(Pet, "a", "remember", 5)
    scene.advance(9.9)
    assert evict(scene) == 0
    assert scene.call(Pet, "a", "remember", 6) == (5, 5)
    scene.advance(10.1)
    assert evict(scene) == 1
    assert not scene.is_live(Pet, "a")
    assert scene.call(Pet, "a", "remember", 7) == (0, 6)


def test_an_object_stays_while_a_turn_runs_and_its_idle_time_begins_at_the_end_of_it(
    make_scene: Any,
) -> None:
    scene = make_scene(Pet, idle_evict_s=10)
    scene.start(Pet, "a", "nap", 50)
    for _ in range(5):
        scene.advance(9.9)
        assert evict(scene) == 0
    scene.advance(9.9)
    assert evict(scene) == 0
    scene.advance(10.1)
    assert evict(scene) == 1


def test_an_object_stays_while_a_commit_is_open(make_scene: Any) -> None:
    scene = make_scene(Pet, idle_evict_s=10)
    scene.start(Pet, "a", "remember", 5)
    scene.advance(11)
    assert evict(scene) == 0
    scene.commit()
    scene.advance(11)
    assert evict(scene) == 1


def test_an_object_stays_while_a_call_that_it_made_is_open(make_scene: Any) -> None:
    scene = make_scene(Pet, idle_evict_s=10)
    scene.start(Pet, "a", "call_without_waiting", "b")
    scene.advance(11)
    assert evict(scene) == 0
    scene.resident(Pet, "b").instance.go.set()
    scene.settle()
    scene.advance(11)
    assert evict(scene) == 2


def test_an_object_stays_while_calls_wait_for_it(make_scene: Any) -> None:
    scene = make_scene(Pet, idle_evict_s=10, limits=Limits(uncommitted_bytes_max=100))
    scene.call(Pet, "b", "touch")
    scene.start(Pet, "a", "remember", 1)
    waiting = scene.start(Pet, "b", "touch")
    assert scene.host.paused
    scene.advance(11)
    assert evict(scene) == 0
    scene.commit()
    assert waiting.result() == 2


def test_an_object_stays_while_it_starts(make_scene: Any) -> None:
    scene = make_scene(Pet, idle_evict_s=10, live_objects_max=1)
    scene.start(Pet, "a", "remember", 1)
    scene.start(Pet, "a", "hold")
    scene.call(Pet, "b", "touch")
    assert scene.is_live(Pet, "a")


def test_a_call_that_meets_an_eviction_is_served_by_one_instance_in_order(make_scene: Any) -> None:
    scene = make_scene(Pet, idle_evict_s=10)
    for number in range(1, 20):
        assert scene.call(Pet, "a", "remember", number) == ((0, number - 1))
        scene.advance(11)
        assert evict(scene) == 1
        calls = [scene.start(Pet, "a", "touch") for _ in range(3)]
        assert results(calls) == [1, 2, 3]
        scene.advance(11)
        assert evict(scene) == 1


def test_busy_objects_do_not_keep_idle_ones_behind_them_in_memory(make_scene: Any) -> None:
    scene = make_scene(Pet, idle_evict_s=10)
    with scene.one_message():
        for number in range(2_100):
            scene.start(Pet, f"busy{number}", "hold", timeout_ms=3_600_000)
    scene.call(Pet, "idle", "touch")
    scene.advance(11)
    assert [evict(scene) for _ in range(3)] == [0, 1, 0]
    assert len(scene.host.live) == 2_100


def test_a_long_queue_of_one_object_does_not_keep_others_in_memory(make_scene: Any) -> None:
    scene = make_scene(Pet, idle_evict_s=10)
    for _ in range(20):
        scene.start(Pet, "hot", "nap", 5, timeout_ms=3_600_000)
    scene.call(Pet, "idle", "touch")
    gone = 0
    for _ in range(4):
        scene.advance(5)
        gone += evict(scene)
    assert gone == 1


def test_evicting_many_objects_is_done_in_bounded_portions(make_scene: Any) -> None:
    scene = make_scene(Pet, idle_evict_s=10)
    for begin in range(0, 6_000, 3_000):
        with scene.one_message():
            for number in range(begin, begin + 3_000):
                scene.start(Pet, str(number), "touch")
    scene.advance(11)
    portions = [evict(scene) for _ in range(4)]
    assert portions == [2_048, 2_048, 1_904, 0]


# --- the cap


def test_at_the_cap_the_least_recently_used_objects_leave_first(make_scene: Any) -> None:
    scene = make_scene(Pet, live_objects_max=3)
    for name in "abcad":
        scene.call(Pet, name, "touch")
        scene.advance(1.0)  # the order of use is that of seconds
    assert [name for name in "abcd" if scene.is_live(Pet, name)] == ["a", "c", "d"]


def test_a_hundred_thousand_objects_are_touched_with_a_cap_of_a_thousand(make_scene: Any) -> None:
    scene = make_scene(Pet, live_objects_max=1_000)
    for begin in range(0, 100_000, 2_500):
        numbers = range(begin, begin + 2_500)
        scene.send(*[scene.item(Pet, str(number), "touch") for number in numbers])
        assert len(scene.host.live) <= 1_000
    assert scene.host.turns == 100_000
    assert scene.is_live(Pet, "99999")
    assert not scene.is_live(Pet, "98999")


def test_objects_in_use_are_never_evicted_for_the_cap_which_gives_way(make_scene: Any) -> None:
    scene = make_scene(Pet, live_objects_max=2)
    busy = [scene.start(Pet, name, "hold") for name in "abc"]
    written = [scene.start(Pet, name, "remember", 1) for name in "de"]
    assert len(scene.host.live) == 5
    for name in "abc":
        scene.resident(Pet, name).instance.go.set()
    scene.commit()
    assert results(busy) == ["held"] * 3
    assert results(written) == [(0, 0)] * 2
    scene.call(Pet, "f", "touch")
    assert len(scene.host.live) == 2


def test_with_many_objects_in_use_a_new_one_costs_a_bounded_search(make_scene: Any) -> None:
    scene = make_scene(Pet, live_objects_max=10)
    with scene.one_message():
        for number in range(1_000):
            scene.start(Pet, str(number), "hold")
    looks = 0
    leaves_memory = scene.host._leaves_memory

    def counted(resident: Any) -> bool:
        nonlocal looks
        looks += 1
        return bool(leaves_memory(resident))

    scene.host._leaves_memory = counted
    scene.call(Pet, "new", "touch")
    assert 0 < looks <= 32


# --- an ordered stop


def test_a_stopping_worker_takes_no_calls_and_answers_those_that_wait(make_scene: Any) -> None:
    scene = make_scene(Pet)
    running = scene.start(Pet, "a", "hold")
    waiting = [scene.start(Pet, "a", "touch") for _ in range(3)]
    idle = scene.call(Pet, "b", "touch")
    scene.do(scene.host.drain)
    late = [scene.start(Pet, name, "touch") for name in "abc"]
    assert [type(call.error()) for call in waiting + late] == [ShardUnavailable] * 6
    assert idle == 1
    assert scene.host.busy == 1
    scene.resident(Pet, "a").instance.go.set()
    scene.settle()
    assert running.result() == "held"
    assert scene.host.busy == 0


def test_what_waits_with_a_later_deadline_is_answered_once_by_a_stopping_worker(make_scene: Any) -> None:
    scene = make_scene(Pet)
    scene.start(Pet, "a", "hold")
    waiting = scene.start(Pet, "a", "touch", timeout_ms=1_000)
    scene.do(scene.host.drain)
    scene.advance(2)
    assert type(waiting.error()) is ShardUnavailable


@pytest.mark.parametrize("live", [False, True])
def test_a_stopping_worker_still_runs_the_calls_that_running_turns_wait_for(
    make_scene: Any, live: bool
) -> None:
    scene = make_scene(Pet)
    if live:
        scene.call(Pet, "b", "touch")
    running = scene.start(Pet, "a", "call", "b")
    scene.do(scene.host.drain)
    scene.resident(Pet, "a").instance.go.set()
    scene.settle()
    assert running.result() == ("2" if live else "1")


def test_calls_that_wait_for_a_running_turn_and_are_waited_for_survive_the_stop(make_scene: Any) -> None:
    scene = make_scene(Pet)
    holding = scene.start(Pet, "b", "hold")
    calling = scene.start(Pet, "a", "call", "b")
    scene.resident(Pet, "a").instance.go.set()
    refused = scene.start(Pet, "b", "touch")
    scene.do(scene.host.drain)
    scene.resident(Pet, "b").instance.go.set()
    scene.settle()
    assert holding.result() == "held"
    assert calling.result() == "1"
    assert type(refused.error()) is ShardUnavailable


def test_turns_that_end_during_the_stop_commit_and_answer(make_scene: Any) -> None:
    scene = make_scene(Pet)
    open_commit = scene.start(Pet, "b", "remember", 1)
    scene.do(scene.host.drain)
    scene.commit()
    assert open_commit.result() == (0, 0)
    assert scene.fields(Pet, "b") == {"value": 1}
    assert len(scene.host.gate) == 0
