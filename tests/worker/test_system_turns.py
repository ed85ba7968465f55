"""Turns that no caller asked for: told once how they end, undone when they fail, committed as any."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure import Limits
from perdure_worker.turns import TURN_REQUEST
from worker.host_scene import Scene, take_time
from worker.system_scene import Work, Worked, enqueue


@pytest.fixture
def scene(make_scene: Any) -> Scene:
    return make_scene(Worked)


def write(instance: Worked) -> None:
    instance.value = 7
    instance.storage.put("key", 1)


async def write_slowly(instance: Worked) -> None:
    instance.value = 7
    await take_time(1)
    instance.storage.put("key", 1)


async def write_and_raise(instance: Worked) -> None:
    instance.value = 7
    await take_time(1)
    raise ValueError("no")


@pytest.mark.parametrize("function", [write, write_slowly])
def test_its_writes_are_committed_at_its_end_and_it_is_told_once(scene: Scene, function: Any) -> None:
    work = Work(function)
    enqueue(scene, work)
    scene.advance(1)
    assert work.told == ["commit", "ended"]
    assert scene.fields(Worked, "o") == {}
    scene.commit()
    assert scene.fields(Worked, "o") == {"value": 7}


def test_one_that_raises_leaves_no_trace_and_is_told(scene: Scene) -> None:
    work = Work(write_and_raise)
    enqueue(scene, work)
    scene.advance(1)
    assert work.told == ["ValueError('no')"]
    assert scene.call(Worked, "o", "get") == 0


def test_what_it_adds_at_its_end_may_fail_it(scene: Scene) -> None:
    class Picky(Work):
        def commit(self, resident: Any) -> None:
            raise ValueError("cannot")

    work = Picky(write)
    enqueue(scene, work)
    assert work.told == ["ValueError('cannot')"]
    assert scene.call(Worked, "o", "get") == 0


def test_one_that_finds_nothing_to_do_is_dropped_and_calls_go_on(scene: Scene) -> None:
    work = Work(None)
    enqueue(scene, work)
    assert work.told == ["dropped"]
    assert scene.call(Worked, "o", "note", "a") == ["a"]


def test_one_over_the_turn_limit_is_cancelled_and_told(make_scene: Any) -> None:
    async def for_ever(instance: Worked) -> None:
        await asyncio.Event().wait()

    scene = make_scene(Worked, limits=Limits(turn_max_s=5.0))
    work = Work(for_ever)
    enqueue(scene, work)
    scene.advance(6)
    (told,) = work.told
    assert "TurnLimit" in told


def test_one_in_a_thread_ends_as_any(scene: Scene) -> None:
    work = Work(write, blocking=True)
    enqueue(scene, work)
    scene.wait(lambda: work.told == ["commit", "ended"])
    scene.commit()
    assert scene.fields(Worked, "o") == {"value": 7}


def test_calls_that_it_makes_derive_their_ids_from_its_request(scene: Scene) -> None:
    work = Work(write_slowly)
    enqueue(scene, work)
    assert scene.resident(Worked, "o").turn[TURN_REQUEST] == work.request
