"""Replies, refusals and failures as they leave: what each waits for, and what it tells."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from perdure import (
    DurableObject,
    InvalidArgument,
    Limits,
    Overloaded,
    RemoteError,
    StorageError,
    codec,
    durable,
    protocol,
)
from worker.host_scene import Scene


@dataclass
class Nasty:
    """Nothing can be done with it, in either direction."""

    x: int

    def __post_init__(self) -> None:
        if self.x == 0:
            raise SystemExit(3)

    def __getattribute__(self, name: str) -> Any:
        if name == "x" and object.__getattribute__(self, "x"):
            raise KeyboardInterrupt
        return object.__getattribute__(self, name)


class Thing(DurableObject):
    value: int = durable(0)

    async def set(self, value: int) -> Any:
        self.value = value
        return {"value": value}

    async def bad_key(self) -> None:
        await self.storage.get(5)  # type: ignore[arg-type]

    async def hold(self) -> None:
        await asyncio.Event().wait()

    async def nap(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # sleep: the object is busy so long

    async def give(self) -> Nasty:
        self.value = 99
        return Nasty(1)

    async def take(self, nasty: Nasty) -> None:
        self.value = 99

    async def get(self) -> int:
        return self.value


class Broken(Thing):
    async def on_start(self) -> None:
        await self.storage.get(5)  # type: ignore[arg-type]


def test_a_refusal_waits_for_nothing(make_scene: Any) -> None:
    scene: Scene = make_scene(Thing, limits=Limits(mailbox_calls_max=1))
    writing = scene.start(Thing, "a", "set", 1)
    scene.start(Thing, "a", "hold")
    scene.start(Thing, "a", "set", 2)
    refused = scene.start(Thing, "a", "set", 3)
    assert type(refused.error()) is Overloaded
    assert not writing.answered


def test_a_result_is_a_reply_of_three_elements_that_any_client_can_read(make_scene: Any) -> None:
    scene: Scene = make_scene(Thing)
    sent = scene.start(Thing, "a", "set", 1)
    scene.commit()
    assert sent.reply == [sent.sequence, protocol.STATUS_RESULT, {"value": 1}]


def test_large_results_leave_as_they_are(make_scene: Any) -> None:
    scene: Scene = make_scene(Thing)
    value = scene.call(Thing, "a", "set", 2**62)
    assert codec.encode(value) == codec.encode({"value": 2**62})


def test_a_storage_error_of_a_method_is_that_of_the_turn_and_one_of_the_start_is_the_systems(
    make_scene: Any,
) -> None:
    scene: Scene = make_scene(Thing, Broken)
    of_the_turn = scene.start(Thing, "a", "bad_key").error()
    assert isinstance(of_the_turn, RemoteError)
    assert of_the_turn.type_name == "perdure.errors.StorageError"
    assert type(scene.start(Broken, "a", "set", 1).error()) is StorageError


def test_a_value_whose_own_code_ends_programs_ends_its_call_alone(make_scene: Any) -> None:
    scene: Scene = make_scene(Thing)
    with scene.one_message():
        taking = scene.start(Thing, "a", "take", {"x": 0})
        giving = scene.start(Thing, "a", "give")
        neighbour = scene.start(Thing, "b", "get")
        follower = scene.start(Thing, "a", "get")
    assert type(taking.error()) is InvalidArgument
    raised = giving.error()
    assert isinstance(raised, RemoteError)
    assert raised.type_name == "KeyboardInterrupt"
    assert (neighbour.result(), follower.result()) == (0, 0)


def test_calls_of_who_does_not_read_are_refused_before_they_run_and_others_are_served(
    make_scene: Any,
) -> None:
    scene: Scene = make_scene(Thing)
    scene.call(Thing, "a", "set", 1)
    scene.commit()
    silent, other = scene.peer(b"silent"), scene.peer(b"other")
    scene.peers.full.add(b"silent")
    refused = scene.start(Thing, "a", "set", 2, peer=silent).error()
    assert isinstance(refused, Overloaded)
    assert refused.limit == "reply_queue_bytes_max"
    assert refused.retry_after
    assert scene.start(Thing, "a", "get", peer=other).result() == 1
    scene.peers.full.clear()
    assert scene.start(Thing, "a", "get", peer=silent).result() == 1


def test_a_waiting_call_of_who_does_not_read_any_more_is_refused_when_its_turn_comes(
    make_scene: Any,
) -> None:
    scene: Scene = make_scene(Thing)
    napping = scene.start(Thing, "a", "nap", 1.0)
    waiting = scene.start(Thing, "a", "set", 1, peer=scene.peer(b"silent"))
    behind = scene.start(Thing, "a", "get")
    scene.peers.full.add(b"silent")
    scene.advance(1.0)
    assert napping.answered
    assert isinstance(waiting.error(), Overloaded)
    assert behind.result() == 0
