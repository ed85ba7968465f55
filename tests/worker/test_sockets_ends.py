"""Upgrades that come to nothing, and the ends of WebSockets: told once, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from perdure import DurableObject, Limits, RemoteError, StorageError
from worker.host_scene import Scene
from worker.socket_scene import (
    FETCH,
    Gateway,
    Room,
    index_rows,
    request_map,
    restart,
    serve,
    socket_rows,
)

Make = Callable[..., Scene]


# --- upgrades that come to nothing (74)


@pytest.mark.parametrize("path", ["/raise", "/forget", "/twice"])
def test_a_fetch_that_fails_or_returns_something_else_leaves_no_socket(gateway: Gateway, path: str) -> None:
    scene = gateway.scene
    _, sent = gateway.start_upgrade(Room, "r", path)
    scene.commit()
    assert isinstance(sent.error(), RemoteError)
    assert not socket_rows(scene)
    assert not index_rows(scene)
    assert not gateway.got
    assert scene.call(Room, "r", "tagged") == []
    assert scene.call(Room, "r", "total") == 0
    gateway.upgrade(Room, "r")


def test_any_other_response_refuses_the_socket(gateway: Gateway) -> None:
    _, sent = gateway.start_upgrade(Room, "r", "/deny")
    gateway.scene.commit()
    assert sent.result()[::2] == [403, b"no"]
    assert not socket_rows(gateway.scene)


def test_a_request_that_asks_for_no_socket_cannot_be_accepted(gateway: Gateway) -> None:
    sent = gateway.scene.start(Room, "r", FETCH, request_map(None))
    gateway.scene.commit()
    assert "asks for no WebSocket" in str(sent.error())


def test_a_request_of_before_and_the_socket_of_another_request_cannot_be_accepted(make_scene: Make) -> None:
    class Hoards(DurableObject):
        def __init__(self) -> None:
            self.requests: list[Any] = []
            self.responses: list[Any] = []

        async def fetch(self, request: Any) -> Any:
            self.requests.append(request)
            if request.path_params["path"] == "/later":
                return PlainTextResponse("later")
            if request.path_params["path"] == "/old":
                return self.ctx.accept_websocket(self.requests[0])
            if request.path_params["path"] == "/swap":
                return self.responses[0]
            self.responses.append(self.ctx.accept_websocket(request))
            return self.responses[-1]

    gateway = Gateway(serve(make_scene, Hoards))
    gateway.start_upgrade(Hoards, "h", "/later")
    _, old = gateway.start_upgrade(Hoards, "h", "/old")
    gateway.upgrade(Hoards, "h")
    _, swapped = gateway.start_upgrade(Hoards, "h", "/swap")
    gateway.scene.commit()
    assert "has ended" in str(old.error())
    assert "another request's" in str(swapped.error())
    assert len(socket_rows(gateway.scene)) == 1


def test_a_socket_counts_and_is_greeted_only_when_fetch_returns_it(gateway: Gateway) -> None:
    scene = gateway.scene
    number, sent = gateway.start_upgrade(Room, "r", "/greet and wait")
    scene.commit()
    assert scene.values(Room, "r") == {"before": "the wait"}  # its commit point, without the socket
    assert not sent.answered
    assert not socket_rows(scene)
    assert not gateway.got
    scene.resident(Room, "r").instance.go.set()
    scene.commit()
    assert (sent.result()[0], gateway.got) == (101, {number: ["welcome", "at last"]})
    assert len(socket_rows(scene)) == len(index_rows(scene)) == 1


def test_a_socket_that_fetch_accepts_and_closes_is_closed_and_leaves_nothing(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r", "/close")
    assert gateway.got == {number: ["bye", ("close", [4001, "full"])]}
    assert not socket_rows(gateway.scene)
    assert gateway.frame(Room, "r", number, "echo x") == 1


# --- 71, 73: ends


def test_an_end_is_told_once_with_its_code_and_reason_and_without_the_socket(gateway: Gateway) -> None:
    scene = gateway.scene
    number, _ = gateway.upgrade(Room, "r"), gateway.upgrade(Room, "r")
    assert gateway.closed(Room, "r", number, 4002, "bored") == 0
    assert gateway.closed(Room, "r", number, 4002, "bored") == 0
    assert scene.call(Room, "r", "seen") == [["closed", 4002, "bored", True, 1]]
    assert len(socket_rows(scene)) == len(index_rows(scene)) == 1
    assert gateway.frame(Room, "r", number, "echo x") == 1
    assert not gateway.got


def test_an_error_is_told_before_the_end(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.closed(Room, "r", number, 1013, "too slow", was_clean=False, error="the client does not read")
    assert gateway.scene.call(Room, "r", "seen") == [
        ["error", "the client does not read"],
        ["closed", 1013, "too slow", False, 0],
    ]


@pytest.mark.parametrize("reason", ["raise", "bad field"])
def test_a_failing_end_is_undone_and_the_socket_is_gone_all_the_same(gateway: Gateway, reason: str) -> None:
    scene = gateway.scene
    number = gateway.upgrade(Room, "r")
    assert gateway.closed(Room, "r", number, 1000, reason) == 0
    assert scene.call(Room, "r", "seen") == []
    assert scene.call(Room, "r", "total") == 1
    assert not socket_rows(scene)
    assert not index_rows(scene)
    assert not gateway.got


def test_a_failing_error_handler_does_not_keep_the_end_from_its_object(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    assert gateway.closed(Room, "r", number, 1013, "", was_clean=False, error="raise") == 0
    assert gateway.scene.call(Room, "r", "seen") == [["closed", 1013, "", False, 0]]


def test_an_end_that_its_object_could_not_start_for_is_told_when_it_comes_again(make_scene: Make) -> None:
    class Thorny(DurableObject):
        broken = False

        async def on_start(self) -> None:
            if Thorny.broken:
                raise OSError("cannot start")

        async def fetch(self, request: Any) -> Any:
            return self.ctx.accept_websocket(request)

        async def websocket_close(self, ws: Any, code: int, reason: str, was_clean: bool) -> None:
            self.storage.put("told", code)

    scene = serve(make_scene, Thorny)
    gateway = Gateway(scene)
    number = gateway.upgrade(Thorny, "t")
    scene = restart(make_scene, scene, gateway)
    Thorny.broken = True
    with pytest.raises(RemoteError):
        gateway.closed(Thorny, "t", number)
    assert len(socket_rows(scene)) == 1
    Thorny.broken = False
    scene.advance(1)  # a start that has failed is tried again after a pause
    assert gateway.closed(Thorny, "t", number) == 0
    assert scene.values(Thorny, "t") == {"told": 1000}
    assert not socket_rows(scene)


def test_an_end_that_aborts_its_object_has_removed_the_socket(gateway: Gateway) -> None:
    scene = gateway.scene
    number = gateway.upgrade(Room, "r")
    with pytest.raises(RemoteError):
        gateway.closed(Room, "r", number, 1000, "abort")
    assert not socket_rows(scene)
    assert not index_rows(scene)
    assert scene.call(Room, "r", "tagged") == []
    assert gateway.closed(Room, "r", number, 1000, "abort") == 0


def test_an_end_that_is_cut_at_the_turn_limit_has_removed_the_socket(make_scene: Make) -> None:
    scene = serve(make_scene, Room, limits=Limits(turn_max_s=1, call_timeout_s=1))
    gateway = Gateway(scene)
    number = gateway.upgrade(Room, "r")
    sent = gateway._call(Room, "r", "web.closed", gateway.key(number), 1000, "wait", True, None)
    scene.commit()
    scene.advance(40)  # the call's own deadline comes after the turn's
    scene.commit()
    assert getattr(sent.error(), "type_name", "").endswith("TurnLimit")
    assert not socket_rows(scene)
    assert not index_rows(scene)


def test_an_object_closes_a_socket_and_has_it_no_more(gateway: Gateway) -> None:
    scene = gateway.scene
    number = gateway.upgrade(Room, "r")
    assert gateway.frame(Room, "r", number, "close enough") == 0
    assert gateway.got == {number: ["last", ("close", [4000, "enough"])]}
    assert not socket_rows(scene)
    assert not index_rows(scene)
    assert gateway.frame(Room, "r", number, "echo x") == 1
    assert gateway.closed(Room, "r", number) == 0
    assert scene.call(Room, "r", "seen") == []


class Keeps(DurableObject):
    """Uses sockets when it should not."""

    def __init__(self) -> None:
        self.kept: Any = None
        self.error = ""

    async def fetch(self, request: Any) -> Any:
        return self.ctx.accept_websocket(request)

    async def websocket_message(self, ws: Any, message: str) -> None:
        self.kept = ws
        if message == "close twice":
            ws.close()
            ws.close(4000, "again")
        if message == "close and send":
            ws.close()
            ws.send("too late")

    async def send_to_kept(self) -> None:
        self.kept.send("hello?")

    def keep_for_later(self) -> Callable[[], None]:
        return lambda: None


def test_sending_to_a_closed_socket_is_an_error_and_closing_it_again_is_nothing(make_scene: Make) -> None:
    gateway = Gateway(serve(make_scene, Keeps))
    first, second = gateway.upgrade(Keeps, "k"), gateway.upgrade(Keeps, "k")
    assert gateway.frame(Keeps, "k", first, "close twice") == 0
    sent = gateway.start_frame(Keeps, "k", second, "close and send")
    gateway.scene.commit()
    assert "has closed this WebSocket" in str(sent.error())
    assert gateway.got == {first: [("close", [1000, ""])]}


def test_sending_to_a_client_that_is_gone_is_ignored(make_scene: Make) -> None:
    gateway = Gateway(serve(make_scene, Keeps))
    number = gateway.upgrade(Keeps, "k")
    gateway.frame(Keeps, "k", number, "keep")
    gateway.closed(Keeps, "k", number)
    gateway.scene.call(Keeps, "k", "send_to_kept")
    assert not gateway.got


def test_what_is_done_to_a_socket_outside_of_a_turn_is_an_error(make_scene: Make) -> None:
    gateway = Gateway(serve(make_scene, Keeps))
    number = gateway.upgrade(Keeps, "k")
    gateway.frame(Keeps, "k", number, "keep")
    kept = gateway.scene.resident(Keeps, "k").instance.kept
    ctx = gateway.scene.resident(Keeps, "k").instance.ctx
    for use in (
        lambda: kept.send("x"),
        kept.close,
        lambda: setattr(kept, "attachment", 1),
        lambda: ctx.set_websocket_auto_response("a", "b"),
    ):
        with pytest.raises(StorageError, match="does not run inside a turn"):
            use()
    gateway.scene.commit()
    assert not gateway.got
