"""Deaths that are blamed on an object: counted in the shard, and what its callers are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from perdure import Alarm, DurableObject, Limits, NotExecuted, durable
from perdure.ids import id_from_name
from perdure_storage import keys
from perdure_storage.memory import MemoryDisk, MemoryEngine
from perdure_worker.quarantine import Blame, Quarantine
from worker.host_scene import Scene

MakeScene = Callable[..., Scene]
LIMITS = Limits(quarantine_deaths=3, quarantine_s=600, suspects_max=3)


class Room(DurableObject):
    value: int = durable(0)

    async def enter(self) -> int:
        self.value += 1
        return self.value

    async def wake_in(self, seconds: float) -> None:
        self.storage.set_alarm(timedelta(seconds=seconds))

    async def alarm(self, alarm: Alarm) -> None:
        self.value += 1


KEY = id_from_name("Room", "bad").key


class Shard:
    """One shard across the incarnations of its worker."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.now = 1_000_000.0
        self.epoch = 0

    def start(self, blamed: bytes | None = None, *, first: bool = False, epoch: int = 0) -> Quarantine:
        """The next incarnation; the one before died of this object."""
        quarantine = Quarantine(LIMITS, lambda: self.now)
        self.epoch += 1
        blame = None
        if blamed is not None:
            blame = Blame(blamed.hex(), "Room", "enter", "SIGSEGV", epoch or self.epoch)
        quarantine.open(MemoryEngine(self.disk), blame, first=first)
        return quarantine

    def rows(self) -> int:
        start = keys.SUSPECT_PREFIX
        return len(list(self.disk.between(start, keys.prefix_end(start))))


def refused(quarantine: Quarantine, key: bytes = KEY) -> bool:
    try:
        quarantine.check(key, "Room/bad")
    except NotExecuted:
        return True
    return False


def test_the_third_death_in_a_row_quarantines_and_the_first_two_do_not() -> None:
    shard = Shard()
    assert not refused(shard.start(KEY))
    assert not refused(shard.start(KEY))
    quarantine = shard.start(KEY)
    assert refused(quarantine)
    assert not refused(quarantine, bytes(32))
    assert len(quarantine) == 1
    assert refused(shard.start())  # a death of another cause changes nothing


def test_the_refusal_says_which_object_why_since_when_and_what_ends_it() -> None:
    shard = Shard()
    for _ in range(3):
        quarantine = shard.start(KEY)
    with pytest.raises(NotExecuted) as caught:
        quarantine.check(KEY, "Room/bad")
    assert type(caught.value) is NotExecuted  # no subclass: clients do not repeat it by themselves
    text = str(caught.value)
    for part in ("Room/bad", "'enter'", "SIGSEGV", "3 times", "1970-01-12T13:46:40Z", "1970-01-12T13:56:40Z"):
        assert part in text
    assert "perdure run" in text


def test_after_its_time_it_is_tried_once_and_one_more_death_renews_the_quarantine() -> None:
    shard = Shard()
    for _ in range(3):
        quarantine = shard.start(KEY)
    shard.now += LIMITS.quarantine_s + 1
    assert not refused(quarantine)
    assert len(quarantine) == 0
    assert refused(shard.start(KEY))


def test_a_restart_of_the_whole_releases_it_for_one_more_try() -> None:
    shard = Shard()
    for _ in range(3):
        shard.start(KEY)
    assert not refused(shard.start(first=True))
    assert not refused(shard.start())
    assert refused(shard.start(KEY))


def test_a_death_that_is_told_twice_counts_once() -> None:
    shard = Shard()
    for _ in range(5):
        quarantine = shard.start(KEY, epoch=7)
    assert quarantine.suspects[KEY].deaths == 1


def test_deaths_by_two_objects_in_turns_quarantine_both() -> None:
    shard = Shard()
    for _ in range(3):
        shard.start(KEY)
        quarantine = shard.start(bytes(32))
    assert refused(quarantine)
    assert refused(quarantine, bytes(32))


def test_the_number_of_suspects_is_bounded_and_the_oldest_is_forgotten_also_on_disk() -> None:
    shard = Shard()
    for number in range(10):
        shard.now += 1
        quarantine = shard.start(bytes([number]) * 32)
    assert sorted(key[0] for key in quarantine.suspects) == [7, 8, 9]
    assert shard.rows() == 3


def quarantined_scene(
    make_scene: MakeScene, deaths: int, shard: Shard | None = None, **options: Any
) -> Scene:
    shard = shard or Shard()
    for _ in range(deaths):
        quarantine = shard.start(KEY)
    scene = make_scene(Room, disk=shard.disk, **options)
    scene.host.quarantine = quarantine
    return scene


def test_calls_of_a_quarantined_object_are_refused_at_once_and_others_are_served(
    make_scene: MakeScene,
) -> None:
    scene = quarantined_scene(make_scene, 3)
    call = scene.start(Room, "bad", "enter")
    assert type(call.error()) is NotExecuted
    assert scene.call(Room, "good", "enter") == 1
    assert not scene.is_live(Room, "bad")
    stats = scene.call_worker("stats", [])
    assert (stats["quarantined"], stats["suspects"]) == (1, 1)


def test_an_alarm_of_a_quarantined_object_does_not_run_and_is_tried_again_as_one_that_fails(
    make_scene: MakeScene,
) -> None:
    shard = Shard()
    before = make_scene(Room, disk=shard.disk)
    before.call(Room, "bad", "wake_in", 5.0)
    before.commit()
    scene = quarantined_scene(make_scene, 3, shard)
    scene.wall_step_s = before.wall_clock() - scene.wall_clock()
    for _ in range(200):  # 10 s
        scene.advance(0.05)
        scene.commit()
    assert not scene.is_live(Room, "bad")
    assert scene.call_worker("stats", [])["alarms_failed"] in (1, 2)
    assert scene.call(Room, "good", "enter") == 1


def test_a_suspect_is_cleared_by_a_turn_that_ends_well_late_enough_and_not_by_an_early_one(
    make_scene: MakeScene,
) -> None:
    scene = quarantined_scene(make_scene, 2, limits=dataclasses.replace(LIMITS, suspect_forgotten_s=60))
    scene.advance(0.1)
    assert scene.call(Room, "bad", "enter") == 1
    scene.advance(59.0)
    assert scene.call(Room, "bad", "enter") == 2
    scene.advance(0.1)
    assert scene.call_worker("stats", [])["suspects"] == 1
    scene.advance(2.0)
    assert scene.call_worker("stats", [])["suspects"] == 1
    assert scene.call(Room, "bad", "enter") == 3
    scene.advance(0.1)
    scene.commit()
    assert scene.call_worker("stats", [])["suspects"] == 0
    start = keys.SUSPECT_PREFIX
    assert not list(scene.disk.between(start, keys.prefix_end(start)))


def test_an_object_that_nobody_has_called_stays_a_suspect(make_scene: MakeScene) -> None:
    scene = quarantined_scene(make_scene, 2)
    scene.advance(1_000.0)
    assert scene.call_worker("stats", [])["suspects"] == 1
