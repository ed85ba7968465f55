"""Calls that cannot run here: their errors say why, and nothing of them has happened."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import DurableObject, durable
from perdure.errors import (
    DeadlineExceeded,
    DeadlockError,
    InvalidArgument,
    NotExecuted,
    ShardUnavailable,
    UnknownMethod,
    UnknownNamespace,
)
from worker.host_scene import Scene, key_of, take_time


class Door(DurableObject):
    opened: int = durable(0)

    async def open(self) -> int:
        self.opened += 1
        return self.opened

    async def hold(self) -> None:
        await take_time(1)


class Window(Door):
    pass


@pytest.fixture
def scene(make_scene: Any) -> Scene:
    made: Scene = make_scene(Door, Window)
    return made


def chain_through(scene: Scene, name: str) -> Any:
    return [[key_of(Door, name), f"Door/{name}"]]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({1: "Dor"}, UnknownNamespace, "there is Door, Window"),
        ({1: 7}, UnknownNamespace, "there is Door, Window"),
        ({1: "Window"}, InvalidArgument, "belongs to namespace 'Door', not 'Window'"),
        ({4: "shut"}, UnknownMethod, "it has: hold, open"),
        ({4: None}, UnknownMethod, "it has: hold, open"),
    ],
)
def test_a_call_of_what_is_not_there_is_told_what_is_there(
    scene: Scene, change: dict[int, Any], error: type[NotExecuted], said: str
) -> None:
    scene.call(Door, "a", "open")
    item = scene.item(Door, "a", "open")
    for position, value in change.items():
        item[position] = value
    scene.send(item)
    (reply,) = scene.by_sequence[scene.client.identity, item[0]]
    assert reply[2][0] == error.__name__
    assert said in reply[2][1]
    assert scene.call(Door, "a", "open") == 2


def test_a_call_that_its_object_waits_for_is_a_deadlock_that_names_the_way(scene: Scene) -> None:
    scene.start(Door, "a", "hold")
    call = scene.start(Door, "a", "open", chain=chain_through(scene, "a"))
    error = call.error()
    assert isinstance(error, DeadlockError)
    assert error.cycle == ["Door/a", "Door/a"]
    assert scene.resident(Door, "a").instance.opened == 0


def test_a_worker_that_stops_takes_only_what_running_turns_wait_for(scene: Scene) -> None:
    scene.call(Door, "a", "open")
    scene.do(scene.host.drain)
    assert type(scene.start(Door, "a", "open").error()) is ShardUnavailable
    assert type(scene.start(Door, "new", "open").error()) is ShardUnavailable
    assert scene.call(Door, "a", "open", chain=chain_through(scene, "b")) == 2


def test_a_call_that_comes_past_its_deadline_is_told_how_late_it_is(scene: Scene) -> None:
    scene.call(Door, "a", "open")
    stamp_ms = int(scene.loop.time() * 1000) - 1_500
    error = scene.start(Door, "a", "open", timeout_ms=1_000, stamp_ms=stamp_ms).error()
    assert isinstance(error, DeadlineExceeded)
    assert "0.500 s" in str(error)
    assert scene.call(Door, "a", "open") == 2
