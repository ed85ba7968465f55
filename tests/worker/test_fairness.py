"""One client's flood and another's single call: in the queue on its own, and in a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure import DurableObject, Limits, Overloaded, codec
from perdure_worker.fairness import RoundRobin
from worker.host_scene import Scene, take_time
from worker.stepped_loop import SteppedLoop

FLOOD = b"flood"
TURN_S = 0.001
MakeScene = Callable[..., Scene]


def test_clients_take_turns_and_what_was_put_back_comes_first() -> None:
    queue: RoundRobin[str] = RoundRobin()
    for thing in ("a1", "a2", "a3"):
        queue.add("a", thing)
    queue.add("b", "b1")
    assert queue.take() == ("a", "a1")
    queue.put_back("a", "rest of a1")
    assert queue.take() == ("b", "b1")
    queue.put_back("b", "rest of b1")
    assert [queue.take()[1] for _ in range(4)] == ["rest of a1", "rest of b1", "a2", "a3"]
    assert not queue
    with pytest.raises(KeyError):
        queue.take()


class Busy(DurableObject):
    """Its turns take a millisecond of the loop's clock each."""

    order: list[str] = []  # noqa: RUF012 - the test's own notes

    def work(self) -> float:
        loop = running_loop()
        loop.now += TURN_S
        Busy.order.append(str(self.id.name))
        return loop.now

    async def nap(self) -> None:
        await take_time(1.0)


def running_loop() -> SteppedLoop:
    import asyncio

    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteppedLoop)
    return loop


def flood(scene: Scene, calls: int, objects: int, method: str = "work") -> bytes:
    items = [scene.item(Busy, f"o{number % objects}", method, timeout_ms=600_000) for number in range(calls)]
    return codec.encode([b"x" * 16, *items])


def single(scene: Scene, name: str) -> bytes:
    return codec.encode([b"y" * 16, scene.item(Busy, name, "work", timeout_ms=600_000)])


def value_of(scene: Scene, identity: bytes) -> Any:
    (reply,) = scene.replies_to(identity)
    return reply[2]


@pytest.mark.parametrize("name", ["of its own", "o7"])
def test_a_single_call_that_comes_right_behind_a_flood_waits_for_one_portion_of_it(
    make_scene: MakeScene, name: str
) -> None:
    scene = make_scene(Busy)
    loop = scene.loop
    assert isinstance(loop, SteppedLoop)
    began = loop.now
    for _ in range(3):
        loop.call_soon(scene.host.on_calls, scene.peer(FLOOD), flood(scene, 1_500, 200), 0)
    loop.call_soon(scene.host.on_calls, scene.peer(b"single"), single(scene, name), 0)
    scene.do(lambda: None)
    assert value_of(scene, b"single") - began < 0.4  # of the 4.5 seconds that the flood takes
    assert len(scene.replies_to(FLOOD)) == 4_500
    assert all(reply[1] == 0 for reply in scene.replies_to(FLOOD))
    assert [reply[0] for reply in scene.replies_to(FLOOD)] == sorted(
        reply[0] for reply in scene.replies_to(FLOOD)
    )


def test_a_single_call_that_waits_for_its_object_comes_before_other_objects_of_a_flooding_client(
    make_scene: MakeScene,
) -> None:
    scene = make_scene(Busy)
    loop = scene.loop
    assert isinstance(loop, SteppedLoop)
    for number in range(500):
        scene.start(Busy, f"o{number}", "nap")
    scene.start(Busy, "wanted", "nap")
    scene.send_body(flood(scene, 2_000, 500), peer=scene.peer(FLOOD))
    scene.send_body(single(scene, "wanted"), peer=scene.peer(b"single"))
    scene.send_body(single(scene, "o3"), peer=scene.peer(b"another"))
    assert not scene.replies_to(b"single")
    began = loop.now
    scene.advance(1.0)
    scene.commit()
    assert value_of(scene, b"single") - began < 1.1
    assert value_of(scene, b"another") - began < 1.1
    assert max(reply[2] for reply in scene.replies_to(FLOOD)) - began > 2.9


def test_no_more_is_read_while_much_of_what_was_read_is_not_looked_at(make_scene: MakeScene) -> None:
    scene = make_scene(Busy, limits=Limits(waiting_items_max=3_000))
    loop, host = scene.loop, scene.host
    room: list[bool] = []
    for _ in range(3):
        loop.call_soon(host.on_calls, scene.peer(FLOOD), flood(scene, 1_500, 200), 0)
        loop.call_soon(lambda: room.append(host.has_room))
    loop.run_until_complete(take_time(0))
    assert room == [True, True, False]
    scene.do(lambda: None)
    assert host.has_room
    assert len(scene.replies_to(FLOOD)) == 4_500


def test_calls_that_nobody_has_looked_at_are_refused_when_the_worker_stops(make_scene: MakeScene) -> None:
    scene = make_scene(Busy)
    loop, host = scene.loop, scene.host
    loop.call_soon(host.on_calls, scene.peer(FLOOD), flood(scene, 1_500, 200), 0)
    loop.call_soon(host.drain)
    scene.do(lambda: None)
    replies = scene.replies_to(FLOOD)
    assert len(replies) == 1_500
    refused = [reply for reply in replies if reply[1] != 0]
    assert len(refused) > 1_000
    assert {reply[2][0] for reply in refused} == {"ShardUnavailable"}
    assert host.busy == 0


def test_a_client_that_fills_a_mailbox_gives_way_to_another_and_is_told(make_scene: MakeScene) -> None:
    scene = make_scene(Busy, limits=Limits(mailbox_calls_max=10))
    nap = scene.start(Busy, "one", "nap")
    mine = [scene.start(Busy, "one", "work") for _ in range(10)]
    other = scene.start(Busy, "one", "work", peer=scene.peer(b"other"))
    assert not other.answered
    error = mine[-1].error()
    assert isinstance(error, Overloaded)
    assert (error.limit, error.retry_after > 0) == ("mailbox_share", True)
    Busy.order.clear()
    scene.advance(1.0)
    assert nap.answered
    assert other.result() < mine[1].result()
    assert all(call.answered for call in mine)
