"""A WebSocket as its object holds it: what it tells, and what it is equal to."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from perdure.websocket import WebSocket
from worker.host_scene import WALL_S, Scene
from worker.socket_scene import Gateway, Room, restart, serve, taker

Make = Callable[..., Scene]


def handles(scene: Scene) -> list[Any]:
    return list(scene.resident(Room, "r").instance.ctx.websockets())


def test_a_socket_tells_its_id_tags_protocol_and_when_it_was_accepted(gateway: Gateway) -> None:
    gateway.scene.advance(1.5)
    gateway.upgrade(Room, "r", "/tea")
    (ws,) = handles(gateway.scene)
    assert isinstance(ws, WebSocket)
    assert (ws.id, ws.tags, ws.protocol) == (gateway.key(1).hex(), ("tea",), "chat")
    assert ws.accepted_at == datetime.fromtimestamp(WALL_S + 1.5, UTC)
    assert repr(ws) == f"<WebSocket {ws.id} open>"


def test_sockets_are_equal_when_they_are_one_also_over_a_wake(gateway: Gateway, make_scene: Make) -> None:
    gateway.upgrade(Room, "r")
    gateway.upgrade(Room, "r")
    first, second = handles(gateway.scene)
    scene = restart(make_scene, gateway.scene, gateway)
    scene.call(Room, "r", "total")
    again, _ = handles(scene)
    assert (first == again, first == second, first == "x", len({first, again, second})) == (
        True,
        False,
        False,
        2,
    )


def test_an_attachment_is_read_as_a_copy_and_changed_as_a_whole(make_scene: Make) -> None:
    class Attaches(taker()):  # type: ignore[misc]
        async def change_inside(self) -> Any:
            (ws,) = self.ctx.websockets()
            ws.attachment = {"a": [1]}
            ws.attachment["a"].append(2)
            return ws.attachment

    gateway = Gateway(serve(make_scene, Attaches))
    gateway.upgrade(Attaches, "a")
    assert gateway.scene.call(Attaches, "a", "change_inside") == {"a": [1]}


def test_subclasses_of_text_and_other_buffers_are_sent_as_what_they_are(make_scene: Make) -> None:
    class Text(str):
        __slots__ = ()

    class Sends(taker()):  # type: ignore[misc]
        async def everything(self) -> None:
            (ws,) = self.ctx.websockets()
            ws.send(Text("text"))
            ws.send(bytearray(b"array"))
            ws.send(memoryview(b"view"))
            ws.send_json({"größe": [1, None]})

    gateway = Gateway(serve(make_scene, Sends))
    number = gateway.upgrade(Sends, "s")
    gateway.scene.call(Sends, "s", "everything")
    *others, text = gateway.got[number]
    assert others == ["text", b"array", b"view"]
    assert json.loads(text) == {"größe": [1, None]}
