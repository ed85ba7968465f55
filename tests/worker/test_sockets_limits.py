"""What a WebSocket may have: tags, attachments, sizes, codes, and how many there may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure import DurableObject, InvalidArgument, Limits, RemoteError
from worker.host_scene import Scene
from worker.socket_scene import (
    Gateway,
    Room,
    index_rows,
    serve,
    socket_rows,
    taker,
)

Make = Callable[..., Scene]


# --- 66: limits


LIMITS = Limits()
TAGS = [f"{number:0256}" for number in range(10)]


@pytest.mark.parametrize(
    "accepted",
    [
        {"tags": TAGS},
        {"tags": [TAGS[0]] * 20},
        {"attachment": "x" * (LIMITS.socket_attachment_bytes_max - 3)},
        {"protocol": "p" * 256},
    ],
)
def test_what_is_within_the_limits_of_an_accept_is_accepted(make_scene: Make, accepted: Any) -> None:
    cls = taker(**accepted)
    Gateway(serve(make_scene, cls)).upgrade(cls, "t")


@pytest.mark.parametrize(
    "accepted",
    [
        {"tags": [*TAGS, "one more"]},
        {"tags": ["x" * 257]},
        {"tags": [""]},
        {"tags": [1]},
        {"tags": ["\ud800"]},
        {"tags": "tag"},
        {"attachment": "x" * (LIMITS.socket_attachment_bytes_max - 2)},
        {"attachment": object()},
        {"protocol": "p" * 257},
        {"protocol": ""},
        {"protocol": 1},
    ],
)
def test_one_over_a_limit_of_an_accept_is_refused_and_leaves_no_socket(
    make_scene: Make, accepted: Any
) -> None:
    cls = taker(**accepted)
    gateway = Gateway(serve(make_scene, cls))
    _, sent = gateway.start_upgrade(cls, "t")
    gateway.scene.commit()
    assert isinstance(sent.error(), RemoteError | InvalidArgument)
    assert not socket_rows(gateway.scene)
    assert not index_rows(gateway.scene)


def test_an_object_takes_as_many_sockets_as_are_allowed_and_none_more(make_scene: Make) -> None:
    gateway = Gateway(serve(make_scene, Room, limits=Limits(sockets_per_object_max=2)))
    first, _ = gateway.upgrade(Room, "r"), gateway.upgrade(Room, "r")
    _, third = gateway.start_upgrade(Room, "r")
    gateway.scene.commit()
    assert getattr(third.error(), "type_name", "").endswith("Overloaded")
    gateway.closed(Room, "r", first)
    gateway.upgrade(Room, "r")


@pytest.mark.parametrize("message", ["x" * (1 << 20), "é" * (1 << 19), b"x" * (1 << 20)])
def test_a_message_of_the_largest_size_passes_in_both_directions(make_scene: Make, message: Any) -> None:
    class Echo(DurableObject):
        async def fetch(self, request: Any) -> Any:
            return self.ctx.accept_websocket(request)

        async def websocket_message(self, ws: Any, message: Any) -> None:
            ws.send(message)

    gateway = Gateway(serve(make_scene, Echo))
    number = gateway.upgrade(Echo, "e")
    assert gateway.frame(Echo, "e", number, message) == 0
    assert gateway.got == {number: [message]}
    over = gateway.start_frame(Echo, "e", number, message + message[:1])
    gateway.scene.commit()
    assert type(over.error()).__name__ == "MessageTooLarge"


@pytest.mark.parametrize(
    "message", ["x" * ((1 << 20) + 1), "é" * ((1 << 19) + 1), b"x" * ((1 << 20) + 1), 1, None, "\ud800"]
)
def test_what_is_no_message_or_too_large_cannot_be_sent(make_scene: Make, message: Any) -> None:
    class Echo(taker()):  # type: ignore[misc]
        async def big(self) -> None:
            await self.say(message)

    gateway = Gateway(serve(make_scene, Echo))
    gateway.upgrade(Echo, "e")
    with pytest.raises((InvalidArgument, RemoteError)):
        gateway.scene.call(Echo, "e", "big")
    assert not gateway.got


def test_an_attachment_is_stored_up_to_its_limit(make_scene: Make) -> None:
    cls = taker()
    gateway = Gateway(serve(make_scene, cls))
    gateway.upgrade(cls, "t")
    limit = LIMITS.socket_attachment_bytes_max - 3
    gateway.scene.call(cls, "t", "attach", "x" * limit)
    with pytest.raises((InvalidArgument, RemoteError)):
        gateway.scene.call(cls, "t", "attach", "x" * (limit + 1))


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 4999])
def test_codes_that_an_object_may_close_with(make_scene: Make, code: int) -> None:
    cls = taker()
    gateway = Gateway(serve(make_scene, cls))
    number = gateway.upgrade(cls, "t")
    gateway.scene.call(cls, "t", "close", code, "é" * 61 + "x")
    assert gateway.got == {number: [("close", [code, "é" * 61 + "x"])]}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        *((code, "") for code in (999, 1004, 1005, 1006, 1015, 2999, 5000, "1000", True)),
        *((1000, reason) for reason in ("é" * 62, None, "\ud800")),
    ],
)
def test_codes_and_reasons_that_no_close_frame_may_have(make_scene: Make, code: Any, reason: Any) -> None:
    cls = taker()
    gateway = Gateway(serve(make_scene, cls))
    gateway.upgrade(cls, "t")
    with pytest.raises((InvalidArgument, RemoteError)):
        gateway.scene.call(cls, "t", "close", code, reason)
    assert not gateway.got
    assert socket_rows(gateway.scene)


def test_what_one_turn_may_send_is_bounded_and_the_same_for_many_counts_once(make_scene: Make) -> None:
    class Talks(taker()):  # type: ignore[misc]
        async def talk(self, count: int) -> None:
            for index in range(count):
                for ws in self.ctx.websockets():
                    ws.send(f"{index:01000}")

    gateway = Gateway(serve(make_scene, Talks, limits=Limits(uncommitted_bytes_max=10_000)))
    for _ in range(5):
        gateway.upgrade(Talks, "t")
    gateway.scene.call(Talks, "t", "talk", 8)
    assert [len(got) for got in gateway.got.values()] == [8] * 5
    with pytest.raises(RemoteError, match="writes of this turn would be over"):
        gateway.scene.call(Talks, "t", "talk", 12)
    assert [len(got) for got in gateway.got.values()] == [8] * 5
