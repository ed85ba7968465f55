"""The entries that gateways call: who has them, what they take, and which handlers are ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure import DurableObject, InvalidArgument, interleaved
from perdure.web_wire import CLOSED, FRAME
from perdure_worker.registry import register
from worker.host_scene import Scene
from worker.socket_scene import (
    Gateway,
    Room,
)

Make = Callable[..., Scene]
KEY = bytes(24)


def _takes_one(self: Any, ws: Any) -> None: ...


def _takes_two(self: Any, ws: Any, code: int) -> None: ...


def _takes_three(self: Any, ws: Any, error: Any, more: Any) -> None: ...


async def _takes_two_later(self: Any, ws: Any, message: Any) -> None: ...


async def _streams(self: Any, ws: Any, message: Any) -> Any:
    yield message


# --- registration


@pytest.mark.parametrize(
    ("name", "handler"),
    [
        ("websocket_message", _takes_one),
        ("websocket_close", _takes_two),
        ("websocket_error", _takes_three),
        ("websocket_message", interleaved(_takes_two_later)),
        ("websocket_message", _streams),
        ("websocket_message", 7),
    ],
)
def test_what_cannot_be_a_handler_is_refused_when_its_class_is_registered(name: str, handler: Any) -> None:
    cls = type("Wrong", (DurableObject,), {name: handler})
    with pytest.raises(TypeError, match=f"Wrong.{name}"):
        register([cls])


def test_a_class_without_fetch_and_handlers_has_no_entries_for_gateways() -> None:
    class Plain(DurableObject):
        def get(self) -> None: ...

    class Late(DurableObject):
        def websocket_close(self, ws: Any, code: int, reason: str, was_clean: bool) -> None: ...

    table = register([Plain, Late])
    assert set(table["Plain"].methods) == {"get"}
    assert set(table["Late"].methods) == {FRAME, CLOSED}


@pytest.mark.parametrize(
    ("method", "args"),
    [
        (FRAME, [KEY]),
        (FRAME, [KEY, 1]),
        (FRAME, [KEY[1:], "x"]),
        (FRAME, [KEY, "x", "y"]),
        (CLOSED, [KEY, 1000, "", True]),
        (CLOSED, [KEY, "1000", "", True, None]),
        (CLOSED, [KEY, 1000, None, True, None]),
        (CLOSED, [KEY, 1000, "", 1, None]),
        (CLOSED, [KEY, 1000, "", True, 7]),
        (CLOSED, ["key", 1000, "", True, None]),
    ],
)
def test_what_is_no_message_of_a_gateway_is_refused_and_does_not_run(
    gateway: Gateway, method: str, args: list[Any]
) -> None:
    sent = gateway._call(Room, "r", method, *args)
    gateway.scene.commit()
    assert type(sent.error()) is InvalidArgument


def test_the_entries_of_gateways_are_no_methods_that_callers_are_told_of(gateway: Gateway) -> None:
    sent = gateway.scene.start(Room, "r", "nothing")
    assert "web." not in str(sent.error())
