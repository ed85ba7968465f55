"""A gateway that is not heard any more is lost: each of its sockets ends once with 1006, for its object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure import DurableObject, Limits, RemoteError, durable
from perdure_storage.memory import MemoryEngine
from worker.host_scene import Scene, take_time
from worker.socket_scene import (
    Gateway,
    Room,
    frame_rows,
    index_rows,
    pass_time,
    restart,
    serve,
    socket_rows,
    taker,
)

Make = Callable[..., Scene]
ENDED = ["closed", 1006, "", False]


def ends(scene: Scene, name: str = "r") -> list[Any]:
    """What the room was told of ends, without how many sockets it had left."""
    return [what[:4] for what in scene.call(Room, name, "seen")]


def test_the_sockets_of_a_lost_gateway_end_once_each_and_no_others(rooms: Scene, gateway: Gateway) -> None:
    other = Gateway(rooms, b"H" * 16)
    for name in ("r", "r", "s"):
        gateway.upgrade(Room, name)
    kept = other.upgrade(Room, "r")
    pass_time(rooms, 4.5, other)
    assert ends(rooms) == []
    pass_time(rooms, 2, other)
    assert (ends(rooms), ends(rooms, "s")) == ([ENDED, ENDED], [ENDED])
    assert [row.gateway for row in index_rows(rooms)] == [other.id]
    assert socket_rows(rooms) == [other.key(kept)]
    pass_time(rooms, 10, other)
    assert (ends(rooms), ends(rooms, "s")) == ([ENDED, ENDED], [ENDED])
    assert other.frame(Room, "r", kept, "echo x") == 0
    assert other.got == {kept: ["x"]}


def test_a_gateway_that_speaks_is_not_lost(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    pass_time(gateway.scene, 20, gateway)
    assert gateway.frame(Room, "r", number, "echo x") == 0
    assert (gateway.got, gateway.lost, ends(gateway.scene)) == ({number: ["x"]}, 0, [])


def test_a_worker_that_stood_still_does_not_take_that_for_silence(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    for _ in range(3):
        gateway.scene.advance(60)
        gateway.scene.commit()
    gateway.say()
    assert gateway.frame(Room, "r", number, "echo x") == 0
    assert not gateway.lost


def test_while_nothing_is_read_silence_does_not_count(gateway: Gateway) -> None:
    gateway.upgrade(Room, "r")
    gateways = gateway.scene.host.gateways
    for _ in range(200):
        gateway.scene.loop.now += 0.05  # type: ignore[attr-defined]
        gateways.tick(reading=False)
    gateway.say()
    assert not gateway.lost
    assert ends(gateway.scene) == []


def test_after_a_restart_a_gateway_has_the_whole_time_to_be_heard(gateway: Gateway, make_scene: Make) -> None:
    number = gateway.upgrade(Room, "r")
    pass_time(gateway.scene, 4)
    scene = restart(make_scene, gateway.scene)
    pass_time(scene, 4.5)
    gateway.connect(scene)
    pass_time(scene, 4.5)
    assert gateway.frame(Room, "r", number, "echo x") == 0
    assert not gateway.lost
    scene = restart(make_scene, scene)
    pass_time(scene, 6)
    assert ends(scene) == [ENDED]
    assert not socket_rows(scene)


def test_a_restart_in_the_middle_goes_on_with_the_sockets_that_are_left(make_scene: Make) -> None:
    scene = serve(make_scene, Room, limits=Limits(gateway_closes_max=2, commit_group_bytes_max=1))
    gateway = Gateway(scene)
    names = [f"room {index}" for index in range(6)]
    for name in names:
        gateway.upgrade(Room, name)
    while not frame_rows(scene) or len(socket_rows(scene)) > 3:
        scene.advance(0.05)
        if scene.jobs:
            scene.commit_one()
    left = len(socket_rows(scene))
    assert 0 < left < 6
    scene = restart(make_scene, scene)
    pass_time(scene, 0.5)  # it does not wait for the gateway again
    assert socket_rows(scene) == [] == index_rows(scene)
    assert [ends(scene, name) for name in names] == [[ENDED]] * 6


@pytest.mark.parametrize("commits", range(5))
def test_an_end_takes_effect_once_wherever_the_worker_dies(make_scene: Make, commits: int) -> None:
    scene = serve(make_scene, Room, limits=Limits(commit_group_bytes_max=1))
    gateway = Gateway(scene)
    for _ in range(3):
        gateway.upgrade(Room, "r")
    for _ in range(110):
        scene.advance(0.05)
    for _ in range(commits):
        if scene.jobs:
            scene.commit_one()
        scene.advance(0.05)
    scene = restart(make_scene, scene)
    pass_time(scene, 6)
    assert ends(scene) == [ENDED] * 3
    assert not socket_rows(scene)


def test_who_comes_back_after_its_loss_is_told_and_gets_nothing_else(
    gateway: Gateway, make_scene: Make
) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.frame(Room, "r", number, "echo a")
    gateway.got.clear()
    pass_time(gateway.scene, 6)
    gateway.say()
    assert (gateway.lost, gateway.got) == (1, {})
    scene = restart(make_scene, gateway.scene, gateway)
    assert gateway.lost == 2
    assert gateway.frame(Room, "r", number, "echo b") == 1
    pass_time(scene, 1)
    assert frame_rows(scene) == [(0, 0)]
    assert gateway.got == {}


def test_a_lost_gateway_gets_no_new_sockets_and_another_one_does(gateway: Gateway) -> None:
    scene = gateway.scene
    gateway.upgrade(Room, "r")
    pass_time(scene, 6)
    _, sent = gateway.start_upgrade(Room, "r")
    scene.commit()
    assert "was lost" in str(sent.error())
    assert not socket_rows(scene)
    Gateway(scene, b"H" * 16).upgrade(Room, "r")


def test_a_gateway_that_is_lost_while_a_fetch_runs_gets_no_socket_from_it(gateway: Gateway) -> None:
    scene = gateway.scene
    gateway.upgrade(Room, "r")
    _, sent = gateway.start_upgrade(Room, "other", "/greet and wait")
    pass_time(scene, 6)
    scene.resident(Room, "other").instance.go.set()
    scene.commit()
    assert isinstance(sent.error(), RemoteError)
    pass_time(scene, 1)
    assert not socket_rows(scene)
    assert not index_rows(scene)


def test_a_turn_that_sends_to_a_socket_of_a_lost_gateway_ends_well(gateway: Gateway) -> None:
    scene = gateway.scene
    number = gateway.upgrade(Room, "r")
    gateway.upgrade(Room, "s")
    pass_time(scene, 4.5)
    slow = gateway.start_frame(Room, "r", number, "slow x")
    pass_time(scene, 2)
    assert slow.result() == 0
    assert ends(scene) == ends(scene, "s") == [ENDED]
    assert frame_rows(scene) == [(0, 0)]
    assert not gateway.got


def test_a_commit_point_of_frames_for_a_lost_gateway_alone_is_passed(make_scene: Make) -> None:
    class Late(DurableObject):
        async def fetch(self, request: Any) -> Any:
            return self.ctx.accept_websocket(request)

        async def websocket_message(self, ws: Any, message: str) -> None:
            await take_time(1)
            ws.send(message)
            await self.storage.sync()

    scene = serve(make_scene, Late)
    gateway = Gateway(scene)
    number = gateway.upgrade(Late, "l")
    pass_time(scene, 4.5)
    sent = gateway.start_frame(Late, "l", number, "x")
    pass_time(scene, 3)
    assert sent.result() == 0
    assert not gateway.got


def test_what_was_not_on_disk_yet_when_its_gateway_was_lost_is_found_all_the_same(make_scene: Make) -> None:
    scene = serve(make_scene, Room)
    gateway = Gateway(scene)
    _, sent = gateway.start_upgrade(Room, "r")
    for _ in range(130):
        scene.advance(0.05)  # the disk stands still
    assert not sent.answered
    scene.commit()
    assert sent.answered
    pass_time(scene, 1)
    assert ends(scene) == [ENDED]
    assert not socket_rows(scene)


def test_a_lost_gateway_is_forgotten_after_a_day(gateway: Gateway) -> None:
    scene = gateway.scene
    gateway.upgrade(Room, "r")
    pass_time(scene, 6)
    scene.wall_step_s = 86_000
    pass_time(scene, 0.1)
    assert frame_rows(scene) == [(0, 0)]
    scene.wall_step_s = 86_401
    pass_time(scene, 0.1)
    assert frame_rows(scene) == []
    assert len(scene.host.gateways) == 0


def test_a_gateway_without_sockets_is_forgotten_at_once(rooms: Scene, gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.closed(Room, "r", number)
    pass_time(rooms, 6)
    assert frame_rows(rooms) == []
    assert len(rooms.host.gateways) == 0
    assert not gateway.lost


def test_ends_are_told_to_a_bounded_number_of_objects_at_a_time(make_scene: Make) -> None:
    class Slow(DurableObject):
        open = 0
        most = 0

        async def fetch(self, request: Any) -> Any:
            return self.ctx.accept_websocket(request)

        async def websocket_close(self, ws: Any, code: int, reason: str, was_clean: bool) -> None:
            Slow.open += 1
            Slow.most = max(Slow.most, Slow.open)
            await take_time(0.5)
            Slow.open -= 1

    scene = serve(make_scene, Slow, limits=Limits(gateway_closes_max=4))
    gateway = Gateway(scene)
    for index in range(10):
        gateway.upgrade(Slow, f"{index}")
    pass_time(scene, 9)
    assert (socket_rows(scene), Slow.most) == ([], 4)


def test_a_failing_end_of_a_lost_socket_is_undone_and_not_told_again(make_scene: Make) -> None:
    class Fails(DurableObject):
        told: int = durable(0)

        async def fetch(self, request: Any) -> Any:
            return self.ctx.accept_websocket(request)

        async def websocket_close(self, ws: Any, code: int, reason: str, was_clean: bool) -> None:
            self.told += 1
            if self.id.name == "raises":
                raise ValueError("no")
            if self.id.name == "aborts":
                self.ctx.abort("no")

        async def get(self) -> int:
            return self.told

    scene = serve(make_scene, Fails)
    gateway = Gateway(scene)
    for name in ("raises", "aborts", "fine"):
        gateway.upgrade(Fails, name)
    pass_time(scene, 9)
    assert not socket_rows(scene)
    assert not index_rows(scene)
    assert [scene.call(Fails, name, "get") for name in ("raises", "aborts", "fine")] == [0, 0, 1]


def test_an_object_that_cannot_start_is_told_when_it_can_and_holds_up_no_other(make_scene: Make) -> None:
    class Thorny(DurableObject):
        broken = False
        told: list[int] = durable(default_factory=list)

        async def on_start(self) -> None:
            if Thorny.broken and self.id.name == "thorny":
                raise OSError("cannot start")

        async def fetch(self, request: Any) -> Any:
            return self.ctx.accept_websocket(request)

        async def websocket_close(self, ws: Any, code: int, reason: str, was_clean: bool) -> None:
            self.told.append(code)

        async def get(self) -> list[int]:
            return self.told

    scene = serve(make_scene, Thorny)
    gateway = Gateway(scene)
    for name in ("thorny", "fine"):
        gateway.upgrade(Thorny, name)
    scene = restart(make_scene, scene)
    Thorny.broken = True
    pass_time(scene, 8)
    assert scene.call(Thorny, "fine", "get") == [1006]
    assert len(socket_rows(scene)) == 1
    Thorny.broken = False
    pass_time(scene, 10)
    assert scene.call(Thorny, "thorny", "get") == [1006]
    assert socket_rows(scene) == [] == index_rows(scene)


def test_a_row_by_gateway_that_stands_for_nothing_is_removed(gateway: Gateway, make_scene: Make) -> None:
    gateway.upgrade(Room, "r")
    disk = gateway.scene.disk.copy()
    (index,) = index_rows(gateway.scene)
    engine = MemoryEngine(disk)
    batch = engine.new_batch()
    batch.delete(index.object_row)
    engine.write(batch)
    scene = restart(make_scene, gateway.scene, disk=disk)
    pass_time(scene, 6)
    assert not index_rows(scene)
    assert ends(scene) == []


def test_sockets_of_a_class_that_is_not_served_stay_stored(make_scene: Make, caplog: Any) -> None:
    cls = taker()
    gateway = Gateway(serve(make_scene, cls, Room))
    gateway.upgrade(cls, "t")
    gateway.upgrade(Room, "r")
    scene = serve(make_scene, Room, epoch=8, disk=gateway.scene.disk.copy())
    pass_time(scene, 7)
    assert [row.namespace for row in index_rows(scene)] == ["Taker"]
    assert ends(scene) == [ENDED]
    assert [r.namespace for r in caplog.records if "not served here" in r.message] == ["Taker"]


def test_a_worker_that_stops_ends_no_sockets(gateway: Gateway) -> None:
    scene = gateway.scene
    gateway.upgrade(Room, "r")
    pass_time(scene, 4)
    scene.do(scene.host.drain)
    for _ in range(60):
        scene.loop.now += 0.05  # type: ignore[attr-defined]
        scene.do(lambda: scene.host.gateways.tick(reading=not scene.host.draining))
    scene.commit()
    assert len(socket_rows(scene)) == 1
    assert frame_rows(scene) == []
