"""WebSockets as ASGI: the upgrade, messages both ways, ends, and what servers do differently."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    Overloaded,
    RemoteError,
    UnknownMethod,
    UnknownNamespace,
)
from perdure_gateway.websocket import ABORT
from sdk.fake_cluster import in_both_loops, in_loop, soon

from .gateway_scene import ACCEPT, LATER, gateway_scene


def raises(error: Exception) -> Any:
    def serve(item: Any) -> Any:
        raise error

    return serve


# --- the upgrade


@in_loop
async def test_the_object_sees_the_request_and_its_accept_reaches_the_client(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        extra = {"auto": None, "protocol": "chat.v2"}
        scene.worker.fetch = lambda item: [
            101,
            [[b"set-cookie", b"a=b"], [b"sec-websocket-accept", b"x"], [b"content-length", b"0"]],
            b"",
            extra,
        ]
        browser = scene.browser(
            path="/app/rooms/lobby",
            root_path="/app",
            raw_path=b"/app/rooms/lobby",
            subprotocols=["chat.v1", "chat.v2"],
            headers=[(b"x-user", b"ada")],
        )
        assert await browser.accepted() == {
            "type": "websocket.accept",
            "headers": [(b"set-cookie", b"a=b")],
            "subprotocol": "chat.v2",
        }
        request = scene.worker.requests[0]
        assert {name: request[name] for name in ("method", "path", "root_path", "query", "scheme")} == {
            "method": "GET",
            "path": "/rooms/lobby",
            "root_path": "/app",
            "query": b"a=b",
            "scheme": "http",
        }
        assert request["client"] == ["10.0.0.1", 5000]
        assert [b"x-user", b"ada"] in request["headers"]
        assert len(request["socket"]) == 24
        assert request["socket"].startswith(scene.link.gateway_id)
        assert (await soon(scene.worker.marks.get()))[0] == scene.link.gateway_id


@in_loop
async def test_a_subprotocol_that_the_client_did_not_offer_is_not_sent(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        scene.worker.fetch = lambda item: [101, [], b"", {"auto": None, "protocol": "other"}]
        browser = scene.browser(subprotocols=["chat"])
        assert "subprotocol" not in await browser.accepted()


@in_loop
async def test_the_worker_has_heard_of_the_gateway_before_it_is_asked_for_a_socket(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        await scene.connected()
        kinds = [kind for kind in scene.cluster.doors[0].seen if kind in (5, 17)]
        assert kinds.index(17) < kinds.index(5)


@in_loop
async def test_another_answer_than_an_accept_is_the_answer_to_the_client(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        scene.worker.fetch = lambda item: [401, [[b"x-why", b"login"]], b"who are you?", None]
        browser = scene.browser()
        start = await browser.take()
        assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
        assert (b"x-why", b"login") in start["headers"]
        assert (await browser.take())["body"] == b"who are you?"
        await browser.ended()
        assert len(scene.link) == 0
        assert scene.worker.ends.empty()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownNamespace("no"), 404),
        (UnknownMethod("no"), 404),
        (InvalidArgument("no"), 400),
        (MessageTooLarge("no", size=2, limit=1), 413),
        (Overloaded("no", retry_after=2.4), 503),
        (DeadlineExceeded("no"), 504),
        (RemoteError("secret", type_name="KeyError", object_id="x"), 500),
    ],
)
def test_an_upgrade_that_fails_is_an_http_error_that_tells_nothing_of_the_inside(
    error: Exception, status: int, tmp_path: Path
) -> None:
    async def test() -> None:
        async with gateway_scene(tmp_path) as scene:
            scene.worker.fetch = raises(error)
            browser = scene.browser()
            start = await browser.take()
            assert start["status"] == status
            assert b"secret" not in (await browser.take())["body"]
            if status == 503:
                assert (b"retry-after", b"2") in start["headers"] or (b"retry-after", b"3") in start[
                    "headers"
                ]
            await browser.ended()
            assert len(scene.link) == 0
            assert scene.worker.ends.empty()

    in_loop(test)()


@in_loop
async def test_an_accept_that_cannot_be_passed_on_is_an_error_and_is_ended_at_the_object(
    tmp_path: Path,
) -> None:
    async with gateway_scene(tmp_path) as scene:
        scene.worker.fetch = lambda item: [101, [[b"x-a", b"b\r\nset-cookie: c"]], b"", None]
        browser = scene.browser()
        assert (await browser.take())["status"] >= 400
        assert (await soon(scene.worker.ends.get()))[:2] == [scene.worker.requests[0]["socket"], 1006]
        await browser.take()
        await browser.ended()


@in_loop
async def test_a_server_without_denial_responses_just_refuses(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        scene.worker.fetch = raises(UnknownNamespace("no"))
        browser = scene.browser(extensions=None)
        assert await browser.take() == {"type": "websocket.close"}
        await browser.ended()


@in_loop
async def test_a_foreign_origin_is_refused_before_the_object_hears_of_it_unless_allowed(
    tmp_path: Path,
) -> None:
    async with gateway_scene(tmp_path, origins=["https://friend.example"]) as scene:
        browser = scene.browser(headers=[(b"origin", b"https://evil.example")])
        assert (await browser.take())["status"] == 403
        assert not scene.worker.requests
        for origin in (b"https://friend.example", b"http://test"):
            await scene.connected(headers=[(b"origin", origin)])


@in_loop
async def test_connections_over_the_bounds_are_refused_and_room_is_made_by_those_that_leave(
    tmp_path: Path,
) -> None:
    async with gateway_scene(tmp_path, sockets_per_gateway_max=2) as scene:
        first = await scene.connected(client=("10.0.0.1", 1))
        await scene.connected(client=("10.0.0.2", 1))
        refused = scene.browser(client=("10.0.0.3", 1))
        assert (await refused.take())["status"] == 503
        first.leave(1000)
        await first.ended()
        await scene.connected(client=("10.0.0.3", 1))


@in_loop
async def test_a_client_that_leaves_during_the_upgrade_is_ended_at_the_object(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        scene.worker.fetch = lambda item: LATER
        browser = scene.browser()
        await soon(scene.worker.marks.get())
        while not scene.worker.requests:
            await soon(scene.worker.marks.get())
        browser.gone = True
        await scene.worker.answer(result=ACCEPT)
        end = await soon(scene.worker.ends.get())
        assert end == [scene.worker.requests[0]["socket"], 1006, "", False, None]
        with pytest.raises(OSError, match="gone"):
            await browser.ended()
        assert len(scene.link) == 0


@in_loop
async def test_a_cancelled_upgrade_is_ended_at_the_object_that_may_have_accepted_it(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        scene.worker.fetch = lambda item: LATER
        browser = scene.browser()
        while not scene.worker.requests:
            await soon(scene.worker.marks.get())
        browser.task.cancel()
        assert (await soon(scene.worker.ends.get()))[1] == 1006
        with pytest.raises(asyncio.CancelledError):
            await browser.ended()


# --- messages


@in_both_loops
async def test_messages_reach_the_object_one_by_one_and_frames_the_client(tmp_path: Path) -> None:
    folder = Path(await asyncio.to_thread(_subfolder, tmp_path))
    async with gateway_scene(folder) as scene:
        scene.worker.frame = lambda item: LATER
        browser = await scene.connected()
        for said in ("one", b"two", "three"):
            browser.says(said)
        for expected in ("one", b"two", "three"):
            key, data = await soon(scene.worker.frames.get())
            assert (key, data) == (scene.worker.requests[0]["socket"], expected)
            assert scene.worker.frames.empty()
            await scene.worker.send([0 if isinstance(data, str) else 1, data, [scene.worker.number()]])
            assert await browser.data() == expected
            await scene.worker.answer()


def _subfolder(folder: Path) -> str:
    number = len(list(folder.iterdir()))
    (folder / str(number)).mkdir()
    return str(folder / str(number))


@in_loop
async def test_a_worker_hears_soon_which_frames_were_taken(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        browser = await scene.connected()
        await scene.worker.send([0, "a", [scene.worker.number()]])
        await scene.worker.send([0, "b", [scene.worker.number()]])
        assert [await browser.data(), await browser.data()] == ["a", "b"]
        while (mark := await soon(scene.worker.marks.get()))[1:] != [1, 2]:
            assert mark[1:] in ([0, 0], [1, 1])


@in_loop
async def test_a_client_that_does_not_take_its_frames_is_closed_and_others_get_theirs(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path, socket_queue_frames_max=10) as scene:
        slow = await scene.connected()
        quick = await scene.connected()
        slow.writable.clear()
        numbers = [scene.worker.number(0), scene.worker.number(1)]
        for index in range(20):
            await scene.worker.send([0, str(index), numbers])
            assert await quick.data() == str(index)
        end = await soon(scene.worker.ends.get())
        assert end[:4] == [scene.worker.requests[0]["socket"], 1013, "too slow", False]
        slow.writable.set()
        messages = [await slow.take() for _ in range(2)]
        assert messages[0]["text"] == "0"  # was on its way already
        assert messages[1] == {"type": "websocket.close", "code": 1013, "reason": "too slow"}
        await slow.ended()
        assert scene.worker.ends.empty()
        assert scene.link.dropped_slow == 1


@pytest.mark.parametrize("has_abort", [True, False])
def test_a_client_that_never_reads_its_close_is_cut(has_abort: bool, tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway_scene(tmp_path, socket_close_wait_s=0.05) as scene:
            cut = asyncio.Event()
            browser = await scene.connected(extensions={ABORT: cut.set} if has_abort else {})
            browser.writable.clear()
            numbers = [scene.worker.number()]
            await scene.worker.send([0, "a", numbers], [2, [4000, ""], numbers])
            if has_abort:
                await soon(cut.wait())
                browser.leave(1006)
            await browser.ended()
            assert len(scene.link) == 0
            assert scene.worker.ends.empty()

    in_loop(test)()


@in_loop
async def test_an_automatic_response_is_given_without_the_object(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        scene.worker.fetch = lambda item: [101, [], b"", {"auto": ["ping", "pong"], "protocol": None}]
        browser = await scene.connected()
        browser.says("ping")
        assert await browser.data() == "pong"
        browser.says("real")
        assert (await soon(scene.worker.frames.get()))[1] == "real"
        assert scene.worker.frames.empty()


@in_loop
async def test_an_object_that_closes_ends_the_client_with_its_code_and_hears_nothing_of_it(
    tmp_path: Path,
) -> None:
    async with gateway_scene(tmp_path) as scene:
        browser = await scene.connected()
        await scene.worker.send(
            [0, "last", [scene.worker.number()]], [2, [4001, "done"], [scene.worker.number()]]
        )
        assert await browser.data() == "last"
        assert await browser.take() == {"type": "websocket.close", "code": 4001, "reason": "done"}
        await browser.ended()
        assert scene.worker.ends.empty()


# --- ends


@pytest.mark.parametrize(
    ("code", "reason", "heard"),
    [
        (1000, "bye", [1000, "bye", True]),
        (4321, "", [4321, "", True]),
        (1005, "", [1005, "", True]),  # a close without a code
        (1005, None, [1006, "", False]),  # how uvicorn says that the connection was lost
        (1006, None, [1006, "", False]),
        (1006, "", [1006, "", False]),
        (1009, "too big", [1009, "too big", False]),
        (1011, "keepalive ping timeout", [1011, "keepalive ping timeout", False]),
    ],
)
def test_the_end_reaches_the_object_once_with_its_code(
    code: int, reason: str | None, heard: list[Any], tmp_path: Path
) -> None:
    async def test() -> None:
        async with gateway_scene(tmp_path) as scene:
            browser = await scene.connected()
            browser.leave(code, reason)
            await browser.ended()
            assert (await soon(scene.worker.ends.get()))[1:4] == heard
            assert scene.worker.ends.empty()

    in_loop(test)()


@in_loop
async def test_what_was_said_before_the_end_is_handled_first(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        scene.worker.frame = lambda item: LATER
        browser = await scene.connected()
        browser.says("last words")
        browser.leave(1000)
        assert (await soon(scene.worker.frames.get()))[1] == "last words"
        assert scene.worker.ends.empty()
        await scene.worker.answer()
        assert (await soon(scene.worker.ends.get()))[1] == 1000


# --- workers die


@in_loop
async def test_a_socket_stays_when_its_worker_dies_and_each_frame_comes_once(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        browser = await scene.connected()
        number = scene.worker.number()
        await scene.worker.send([0, "a", [number]])
        assert await browser.data() == "a"
        scene.worker.frame = lambda item: LATER
        browser.says("hello?")
        await soon(scene.worker.frames.get())
        successor = await scene.restart()
        # It hears at once which frames of its predecessor were taken, and sends the others again.
        while (mark := await soon(successor.marks.get()))[1:] != [1, 1]:
            assert mark[1:] == [0, 0]
        await successor.send_raw([[1, [[0, "a", [number]]], 1], [2, [[0, "b", [number]]], 1]])
        await successor.send([0, "c", [number]])
        assert [await browser.data(), await browser.data()] == ["b", "c"]
        # The message whose outcome was lost is delivered again.
        assert (await soon(successor.frames.get()))[1] == "hello?"


@in_loop
async def test_a_worker_that_counts_the_gateway_as_dead_ends_its_sockets_and_new_ones_have_another_id(
    tmp_path: Path,
) -> None:
    async with gateway_scene(tmp_path) as scene:
        browser = await scene.connected()
        old = scene.link.gateway_id
        await scene.worker.send_raw([None])
        assert (await browser.take())["code"] == 1001
        await browser.ended()
        assert scene.worker.ends.empty()
        other = await scene.connected()
        assert scene.link.gateway_id != old
        assert scene.worker.requests[-1]["socket"].startswith(scene.link.gateway_id)
        await scene.worker.send([0, "a", [scene.worker.number()]])
        assert await other.data() == "a"


@in_loop
async def test_frames_that_are_none_are_logged_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway_scene(tmp_path) as scene:
        browser = await scene.connected()
        for bad in ([5], [[1, b"\xc1"]], [[1]]):
            await scene.worker.send_raw(bad)
        await scene.worker.send_raw([[7, [[0, "x", [scene.worker.number()]]]]], gateway=b"somebody else's")
        scene.worker.counter = 5
        await scene.worker.send([0, "fine", [scene.worker.number()]])
        assert await browser.data() == "fine"
        assert caplog.text.count("were not understood") == 3


# --- the end of the gateway


@in_loop
async def test_a_stop_sends_clients_away_and_waits_until_their_objects_know(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        scene.worker.closed = lambda item: LATER
        browser = await scene.connected()
        stopping = asyncio.ensure_future(scene.link.stop(30.0))
        assert (await browser.take())["code"] == 1001
        assert (await soon(scene.worker.ends.get()))[1] == 1001
        await browser.ended()
        assert not stopping.done()
        await scene.worker.answer()
        await soon(stopping)


@in_loop
async def test_a_stop_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        scene.worker.closed = lambda item: LATER
        await scene.connected()
        await soon(scene.link.stop(0.05))
