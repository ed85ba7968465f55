"""Ends of sockets reach their objects however often it takes, a bounded number at a time."""

from __future__ import annotations

import pytest

from perdure.errors import NotExecuted, OutcomeUnknown, Overloaded, RemoteError, ShardUnavailable
from perdure_gateway.endings import Ending

from .socket_scene import GATEWAY, Scene


def test_an_end_is_told_again_until_it_is_answered_with_growing_pauses() -> None:
    scene = Scene()
    client = scene.open()
    scene.sockets.disconnected(client.socket, 1001, "", True)
    pauses = []
    errors: list[Exception] = [ShardUnavailable("down"), OutcomeUnknown("lost"), NotExecuted("no")] * 5
    for error in errors:
        call = scene.take("web.closed")
        assert call.args[:2] == [client.socket.key, 1001]
        call.fails(error)
        before = scene.now
        while not scene.calls:
            scene.after(0.01)
        pauses.append(scene.now - before)
    assert pauses[0] < 0.2
    assert 4.9 < max(pauses) < 15.1
    assert scene.sockets.ends_open == 1
    scene.take("web.closed").returns(0)
    scene.after(60.0)
    assert not scene.calls
    assert scene.sockets.ends_open == 0


def test_an_overloaded_object_is_left_alone_for_as_long_as_it_asks() -> None:
    scene = Scene()
    client = scene.open()
    scene.sockets.disconnected(client.socket, 1001, "", True)
    scene.take("web.closed").fails(Overloaded("full", retry_after=7.0))
    scene.after(6.9)
    assert not scene.calls
    scene.after(0.2)
    scene.take("web.closed")


@pytest.mark.parametrize(
    "error", [RemoteError("no", type_name="KeyError", object_id="Room/lobby"), KeyError("of the user's own")]
)
def test_an_end_is_told_again_after_an_error_as_of_a_start_that_failed(error: Exception) -> None:
    scene = Scene()
    client = scene.open()
    scene.sockets.disconnected(client.socket, 1001, "", True)
    scene.take("web.closed").fails(error)
    assert scene.sockets.ends_open == 1
    scene.after(60.0)
    scene.take("web.closed").returns(0)
    scene.after(60.0)
    assert not scene.calls
    assert scene.sockets.ends_open == 0


def test_ten_thousand_ends_at_once_are_told_a_bounded_number_at_a_time() -> None:
    scene = Scene()
    clients = [scene.open() for _ in range(1_000)]
    for client in clients:
        scene.sockets.disconnected(client.socket, 1006, "", False)
    told = []
    while scene.calls:
        assert len(scene.calls) <= scene.limits.socket_endings_in_flight_max
        call = scene.calls.popleft()
        told.append(call.args[0])
        call.returns(0)
    assert told == [client.socket.key for client in clients]


def test_an_ending_knows_what_it_says() -> None:
    scene = Scene()
    ending = Ending(scene.open().socket.target, GATEWAY + bytes(8), 1013, "slow", False, "why")
    assert ending.args == [GATEWAY + bytes(8), 1013, "slow", False, "why"]
