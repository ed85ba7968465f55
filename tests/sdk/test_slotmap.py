"""Placement: every slot has one owner, everybody computes the same one, and a map is never half right."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from perdure import codec
from perdure.errors import InvalidArgument
from perdure.ids import new_unique_id, slot_of
from perdure.slotmap import Seat, SlotMap, contiguous_ranges, slot_map_from_wire


def make_map(workers: int = 3, slots: int = 1024, version: int = 7) -> SlotMap:
    seats = tuple(Seat(index + 1, f"ipc:///run/w{index}.e{index + 1}") for index in range(workers))
    return SlotMap(version, tuple(contiguous_ranges(slots, workers)), seats, boot="here")


@pytest.mark.parametrize(("slots", "workers"), [(1024, 1), (1024, 2), (1024, 3), (1024, 1024), (5, 4)])
def test_contiguous_ranges_cover_all_slots_once_and_nearly_evenly(slots: int, workers: int) -> None:
    ranges = contiguous_ranges(slots, workers)
    assert [slot for owned in ranges for slot in owned] == list(range(slots))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@pytest.mark.parametrize(("slots", "workers"), [(1024, 0), (1024, -1), (4, 5), (4096, 1025)])
def test_more_workers_than_slots_or_none_are_refused(slots: int, workers: int) -> None:
    with pytest.raises(InvalidArgument, match="number of workers"):
        contiguous_ranges(slots, workers)


@pytest.mark.parametrize("workers", [1, 2, 3, 1000])
def test_an_object_belongs_to_the_worker_that_owns_its_slot(workers: int) -> None:
    slot_map = make_map(workers)
    for _ in range(500):
        key = new_unique_id("Counter").key
        assert slot_of(key, 1024) in slot_map.ranges[slot_map.worker_of(key)]


def test_a_worker_may_own_no_slots() -> None:
    slot_map = SlotMap(1, (range(4), range(4, 4)), (Seat(1, "a"), Seat(1, "b")))
    assert slot_map.owners == (0, 0, 0, 0)


def test_a_new_seat_makes_the_next_version_and_leaves_the_old_map_alone() -> None:
    old = make_map()
    new = old.with_seat(1, Seat(9, ""))
    assert (old.version, new.version) == (7, 8)
    assert new.seats == (old.seats[0], Seat(9, ""), old.seats[2])
    assert old.seats[1] == Seat(2, "ipc:///run/w1.e2")
    assert (new.ranges, new.boot, new.owners) == (old.ranges, old.boot, old.owners)
    with pytest.raises(dataclasses.FrozenInstanceError):
        new.version = 9  # type: ignore[misc]


@pytest.mark.parametrize("workers", [1, 3, 64])
def test_a_map_comes_over_the_wire_as_itself(workers: int) -> None:
    slot_map = make_map(workers).with_seat(0, Seat(12, ""))
    arrived = slot_map_from_wire(codec.decode(codec.encode(slot_map.to_wire())))
    assert arrived == slot_map
    assert arrived.owners == slot_map.owners


def test_a_map_of_a_newer_server_is_read_as_far_as_it_is_known() -> None:
    wire = make_map().to_wire()
    wire["lease"] = 5
    wire["workers"] = [[*row, "more"] for row in wire["workers"]]
    del wire["boot"]
    arrived = slot_map_from_wire(wire)
    assert arrived == dataclasses.replace(make_map(), boot="")


BAD_MAPS: list[Any] = [
    None,
    5,
    [],
    {},
    {"version": "7"},
    {"version": 7.0},
    {"version": True},
    {"version": -1},
    {"version": 1 << 32},
    {"version": None},
    {"boot": 5},
    {"boot": None},
    {"ranges": None},
    {"ranges": 5},
    {"ranges": []},
    {"ranges": [[]]},
    {"ranges": [[0]]},
    {"ranges": [None]},
    {"ranges": ["ab", "cd", "ef"]},
    {"ranges": [{}, {}, {}]},
    {"ranges": [["0", "4"], [4, 8], [8, 12]]},
    {"ranges": [[0, 4], [4, 8]]},
    {"ranges": [[0, 4], [4, 8], [9, 12]]},
    {"ranges": [[0, 4], [3, 8], [8, 12]]},
    {"ranges": [[-1, 4], [4, 8], [8, 12]]},
    {"ranges": [[0, 0], [0, 0], [0, 0]]},
    {"ranges": [[0, 4], [4, 8], [8, 1 << 17]]},
    {"ranges": [[0, 4], [4, 8], [8, 1 << 70]]},
    {"ranges": [[0, 4], [4, 8], [8, 10**12]]},
    {"ranges": [[0, 4], [8, 4], [4, 8]]},
    {"workers": []},
    {"workers": [[1, "a"], [1, "b"]]},
    {"workers": [[1], [1], [1]]},
    {"workers": [[1, b"a"], [1, "b"], [1, "c"]]},
    {"workers": [["1", "a"], [1, "b"], [1, "c"]]},
    {"workers": [[True, "a"], [1, "b"], [1, "c"]]},
    {"workers": [[-1, "a"], [1, "b"], [1, "c"]]},
    {"workers": [[1 << 32, "a"], [1, "b"], [1, "c"]]},
    {"ranges": [[i, i + 1] for i in range(2000)], "workers": [[1, "a"]] * 2000},
]


@pytest.mark.parametrize("bad", BAD_MAPS, ids=lambda bad: str(bad)[:50])
def test_what_is_no_slot_map_is_a_clear_error(bad: Any) -> None:
    wire = {**make_map().to_wire(), **bad} if isinstance(bad, dict) and bad else bad
    with pytest.raises(InvalidArgument):
        slot_map_from_wire(wire)


def test_a_damaged_map_raises_nothing_but_invalid_argument() -> None:
    chance = random.Random(5)
    junk = [None, -1, 1 << 80, "x", b"y", [], {}, [1], [None, None], 0.5, [[0, 1]], True]
    outcomes = set()
    for _ in range(3_000):
        wire = make_map().to_wire()
        target: Any = wire
        path = chance.choice(
            [["version"], ["boot"], ["ranges"], ["workers"], ["ranges", 1], ["workers", 1, 0]]
        )
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = chance.choice(junk)
        try:
            outcomes.add(type(slot_map_from_wire(wire)))
        except InvalidArgument:
            outcomes.add(InvalidArgument)
    assert outcomes == {SlotMap, InvalidArgument}


def test_a_worker_is_seated_while_its_door_is_known() -> None:
    slot_map = make_map(2).with_seat(1, Seat(5, ""))
    assert [slot_map.is_seated(worker) for worker in range(4)] == [True, False, False, False]
