"""WebSockets in a worker: accept, messages in and out, tags, attachments, ends; what a raising turn leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from worker.host_scene import Scene
from worker.socket_scene import Gateway, Room, frame_rows, index_rows, restart, serve, socket_rows

Make = Callable[..., Scene]


@pytest.fixture
def rooms(make_scene: Make) -> Scene:
    return serve(make_scene, Room)


@pytest.fixture
def gateway(rooms: Scene) -> Gateway:
    return Gateway(rooms)


def test_an_accepted_socket_is_answered_with_101_and_echoes_text_and_binary(gateway: Gateway) -> None:
    number, sent = gateway.start_upgrade(Room, "r")
    gateway.scene.commit()
    assert sent.result() == [101, [], b"", {"auto": None, "protocol": "chat"}]
    assert gateway.frame(Room, "r", number, "echo größe") == 0
    assert gateway.frame(Room, "r", number, b"\x00\xff") == 0
    assert gateway.got == {number: ["größe", b"\x00\xff"]}


def test_nothing_of_a_message_leaves_before_its_turn_is_durable(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    sent = gateway.start_frame(Room, "r", number, "echo x")
    assert not sent.answered and not gateway.got
    gateway.scene.commit()
    assert sent.answered and gateway.got == {number: ["x"]}
