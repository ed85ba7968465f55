"""Automatic responses, what stays when an object deletes everything, and which handlers are ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure import InvalidArgument, RemoteError
from worker.host_scene import Scene
from worker.socket_scene import (
    Gateway,
    Room,
    restart,
    serve,
    taker,
)

Make = Callable[..., Scene]


# --- 72: automatic responses


def test_an_automatic_response_is_told_to_the_gateways_and_with_later_sockets(
    rooms: Scene, make_scene: Make
) -> None:
    gateway, other = Gateway(rooms), Gateway(rooms, b"H" * 16)
    first, second, third = gateway.upgrade(Room, "r"), gateway.upgrade(Room, "r"), other.upgrade(Room, "r")
    rooms.call(Room, "r", "auto", "ping", "pong")
    auto = ("auto", ["ping", "pong"])
    assert gateway.got == {first: [auto], second: [auto]}
    assert other.got == {third: [auto]}
    rooms.call(Room, "r", "auto", "ping", "pong")
    assert len(gateway.messages) == 1  # as it was already
    scene = restart(make_scene, rooms, gateway)
    _, sent = gateway.start_upgrade(Room, "r")
    scene.commit()
    assert sent.result()[3]["auto"] == ["ping", "pong"]
    scene.call(Room, "r", "auto", None, None)
    assert gateway.got[first] == [auto, ("auto", None)]
    _, sent = gateway.start_upgrade(Room, "r")
    scene.commit()
    assert sent.result()[3]["auto"] is None


def test_an_automatic_response_is_undone_with_its_turn(make_scene: Make) -> None:
    class Fails(taker()):  # type: ignore[misc]
        async def fail(self) -> None:
            await self.auto("ping", "pong")
            raise ValueError

    gateway = Gateway(serve(make_scene, Fails))
    gateway.upgrade(Fails, "f")
    with pytest.raises(RemoteError):
        gateway.scene.call(Fails, "f", "fail")
    assert not gateway.got
    _, sent = gateway.start_upgrade(Fails, "f")
    gateway.scene.commit()
    assert sent.result()[3]["auto"] is None


@pytest.mark.parametrize(
    ("request_text", "response"), [("x" * 2_049, "y"), ("x", "y" * 2_049), (None, "y"), ("x", None), (1, "y")]
)
def test_an_automatic_response_is_text_within_its_limit(
    make_scene: Make, request_text: Any, response: Any
) -> None:
    cls = taker()
    scene = serve(make_scene, cls)
    with pytest.raises((InvalidArgument, RemoteError)):
        scene.call(cls, "t", "auto", request_text, response)
    scene.call(cls, "t", "auto", "x" * 2_048, "y" * 2_048)


def test_sockets_and_the_automatic_response_stay_when_the_object_deletes_everything(gateway: Gateway) -> None:
    scene = gateway.scene
    number = gateway.upgrade(Room, "r", "/tea")
    scene.call(Room, "r", "auto", "ping", "pong")
    scene.call(Room, "r", "empty")
    assert scene.listed(Room) == []
    scene.advance(20)
    scene.host.evict_idle()
    gateway.say()
    assert gateway.frame(Room, "r", number, "tag tea") == 0
    assert gateway.got[number][-1] == "for tea"
