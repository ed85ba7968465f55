"""`fetch` in the worker: what reaches it, what may come back, and that it is a turn like any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    DurableObject,
    OutcomeUnknown,
    RemoteError,
    Request,
    Response,
    StreamingResponse,
    UnknownMethod,
)
from perdure.errors import DeadlineExceeded, DeadlockError, InvalidArgument
from worker.host_scene import Scene, SentStream, take_time
from worker.web_scene import PART, Dumb, Plain, Site, Threaded, ask, fetch, start, state, stream


@pytest.fixture
def scene() -> Any:
    scene = Scene(Site, Plain, Threaded, Dumb)
    yield scene
    scene.close()


# --- requests


def test_method_path_query_headers_body_and_client_reach_the_handler(scene: Scene) -> None:
    import json

    status, headers, body, extra = fetch(
        scene,
        "/facts",
        method="PUT",
        query=b"a=1&b=%20",
        headers=[(b"Host", b"example.org"), (b"cookie", b"c=3"), (b"x-two", b"1"), (b"x-two", b"2")],
        client=("10.0.0.7", 4711),
        root_path="/Site/s",
        body=b"hello",
    )
    assert (status, extra) == (200, None)
    assert [b"content-type", b"application/json"] in headers
    facts = json.loads(body)
    assert facts.pop("headers") == [
        ["host", "example.org"],
        ["cookie", "c=3"],
        ["x-two", "1"],
        ["x-two", "2"],
    ]
    assert facts == {
        "method": "PUT",
        "url": "http://example.org/Site/s/facts?a=1&b=%20",
        "query": {"a": "1", "b": " "},
        "cookies": {"c": "3"},
        "client": ["10.0.0.7", 4711],
        "path": "/facts",
        "body": "hello",
    }


def test_a_form_is_read(scene: Scene) -> None:
    kind = (b"content-type", b"application/x-www-form-urlencoded")
    assert fetch(scene, "/form", method="POST", headers=[kind], body=b"a=1&b=2")[2] == b'{"a":"1","b":"2"}'


@pytest.mark.parametrize("cls", [Plain, Threaded])
def test_a_handler_that_is_no_coroutine_has_the_body_already(scene: Scene, cls: Any) -> None:
    for _ in range(2):
        sent = start(scene, "/", cls=cls, method="POST", body=b"hello")
        scene.commit()
        scene.wait(lambda sent=sent: scene.commit() or sent.answered)
        assert sent.result()[2] == b"HELLO"
    assert scene.fields(cls, "s") == {"hits": 2}


def test_a_request_that_is_none_is_refused_and_nothing_runs(scene: Scene) -> None:
    bad = {**ask("/hit"), "headers": [[b"x-name", b"a\r\nb: c"]]}
    for args in ([bad], [], [{}], ["/hit"], [ask("/hit"), 1]):
        with pytest.raises(InvalidArgument):
            scene.call(Site, "s", "web.fetch", *args)
    assert state(scene) == (0, "")


def test_an_object_without_the_handler_says_so(scene: Scene) -> None:
    with pytest.raises(UnknownMethod, match=r"Dumb defines no fetch.*it has: hello"):
        fetch(scene, "/", cls=Dumb)
    with pytest.raises(UnknownMethod, match=r"it has: note, state$"):
        scene.call(Site, "s", "missing")


def test_the_handler_is_no_method_that_can_be_called(scene: Scene) -> None:
    with pytest.raises(UnknownMethod):
        scene.call(Site, "s", "fetch", ask("/hit"))


# --- responses


def test_status_headers_and_several_cookies_come_back(scene: Scene) -> None:
    status, headers, body, _ = fetch(scene, "/cookies")
    assert (status, body) == (201, b"made")
    assert [b"x-one", b"1"] in headers
    assert [value.split(b";")[0] for name, value in headers if name == b"set-cookie"] == [b"a=1", b"b=2"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/text", "returns a Starlette Response, not str"),
        ("/background", "background task"),
        ("/split", "CR, LF or NUL"),
        ("/early", "100 is no status"),
        ("/huge", "use a StreamingResponse"),
    ],
)
def test_what_is_no_response_fails_the_turn_and_says_what_to_do(scene: Scene, path: str, words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        fetch(scene, path)


def test_an_http_exception_is_a_response_and_undoes_the_turn(scene: Scene) -> None:
    status, headers, body, _ = fetch(scene, "/refuse")
    assert (status, body) == (418, b"a teapot")
    assert [b"x-kind", b"pot"] in headers
    assert fetch(scene, "/nothing")[:3:2] == [304, b""]
    scene.advance(1)
    assert state(scene) == (0, "")
    assert state(scene, "other") == (0, ""), "a send of the turn left"


def test_a_handler_that_raises_leaves_no_trace_but_its_error(scene: Scene) -> None:
    with pytest.raises(RemoteError, match="no such page"):
        fetch(scene, "/fail")
    assert state(scene) == (0, "")


# --- streamed responses


def test_a_streamed_response_is_head_and_chunks_of_one_turn(scene: Scene) -> None:
    streamed = stream(scene, "/stream")
    status, headers, first, extra = streamed.items[0]
    assert (status, first, extra) == (206, b"", None)
    assert headers == [[b"x-one", b"1"], [b"content-type", b"text/plain; charset=utf-8"]]
    assert streamed.items[1:4] == [b"chunk 0", b"chunk 1", b"chunk 2"]
    assert [len(part) for part in streamed.items[4:]] == [PART, 1]
    assert streamed.count == 6
    assert state(scene) == (3, "end")


def test_each_chunk_waits_for_what_was_written_before_it(scene: Scene) -> None:
    state(scene)
    streamed = SentStream(scene, scene.client, start(scene, "/stream").sequence)
    assert len(streamed.items) == 1, "nothing was written before the head"
    scene.commit()
    assert streamed.count == 6


def test_a_slow_client_holds_the_response_a_window_ahead_and_calls_behind_it_wait(scene: Scene) -> None:
    streamed = stream(scene, "/endless")
    ahead = len(streamed.items)
    assert 4 <= ahead <= 5
    behind = scene.start(Site, "s", "state")
    streamed.took(ahead)
    scene.commit()
    assert 4 <= len(streamed.items) - ahead <= 5
    assert not behind.answered
    streamed.leave()
    scene.commit()
    hits, ended = behind.result()
    assert ended == "GeneratorExit"
    assert hits == len(streamed.items) - 1
    assert streamed.count == len(streamed.items)


def test_a_client_that_leaves_ends_a_response_that_waits_for_something_else(scene: Scene) -> None:
    streamed = stream(scene, "/quiet")
    streamed.leave()
    scene.commit()
    assert state(scene) == (0, "cleaned up"), "what was written since the last chunk was kept"


def test_an_error_comes_after_the_chunks_and_undoes_what_was_written_since(scene: Scene) -> None:
    streamed = stream(scene, "/broken")
    assert streamed.items[1:] == [b"one"]
    with pytest.raises(RemoteError, match="in the middle"):
        streamed.result()
    assert state(scene) == (0, "")


def test_a_response_of_a_plain_iterator_is_read_in_threads() -> None:
    scene = Scene(Site, loop=asyncio.new_event_loop())
    streamed = stream(scene, "/threads")
    scene.wait(lambda: streamed.reply is not None)
    assert b"".join(streamed.items[1:]) == b"from a thread"
    scene.close()


def test_a_file_is_sent_with_its_ranges(tmp_path: Path) -> None:
    scene = Scene(Site, loop=asyncio.new_event_loop())
    path = tmp_path / "file.txt"
    path.write_bytes(bytes(range(256)) * 1_000)
    try:
        for headers, status, wanted in (
            ([], 200, path.read_bytes()),
            ([(b"range", b"bytes=1-3")], 206, b"\1\2\3"),
        ):
            streamed = stream(scene, "/file", query=f"path={path}".encode(), headers=headers)
            scene.wait(lambda streamed=streamed: streamed.reply is not None)
            assert streamed.items[0][0] == status
            assert b"".join(streamed.items[1:]) == wanted
    finally:
        scene.close()


# --- a turn like any other


def test_the_response_waits_for_what_the_handler_wrote(scene: Scene) -> None:
    state(scene)
    sent = start(scene, "/hit")
    assert not sent.answered
    scene.commit()
    assert sent.result()[2] == b"1"


def test_a_repeated_idempotency_key_gets_the_recorded_response_also_after_a_restart(scene: Scene) -> None:
    key = [b"k" * 16, 1, b"", 0]
    first = fetch(scene, "/hit", request=key, client=("10.0.0.7", 1), headers=[(b"traceparent", b"1")])
    again = fetch(scene, "/hit", request=key, client=("10.0.0.7", 2), headers=[(b"traceparent", b"2")])
    restarted = Scene(Site, disk=scene.disk)
    assert first == again == fetch(restarted, "/hit", request=key)
    assert state(restarted) == (1, "")
    with pytest.raises(InvalidArgument, match="other arguments"):
        fetch(restarted, "/hit", request=key, body=b"another")
    with pytest.raises(InvalidArgument, match="other arguments"):
        fetch(restarted, "/hit", request=key, query=b"a=2")
    restarted.close()


def test_a_retry_that_meets_the_running_fetch_gets_its_response(scene: Scene) -> None:
    key = [b"k" * 16, 1, b"", 0]
    first = start(scene, "/wait", query=b"s=1", request=key)
    again = start(scene, "/wait", query=b"s=1", request=key, peer=scene.peer(b"other"))
    scene.advance(1)
    scene.commit()
    assert first.result() == again.result()
    assert state(scene) == (1, "")


def test_a_retry_of_a_response_that_has_streamed_is_told_so(scene: Scene) -> None:
    key = [b"k" * 16, 1, b"", 0]
    assert stream(scene, "/stream", request=key).count == 6
    with pytest.raises(OutcomeUnknown, match="has streamed before"):
        fetch(scene, "/stream", request=key)
    assert state(scene) == (3, "end")


def test_a_fetch_whose_deadline_has_passed_does_not_run(scene: Scene) -> None:
    start(scene, "/wait", query=b"s=2")
    late = start(scene, "/hit", timeout_ms=500)
    scene.advance(3)
    with pytest.raises(DeadlineExceeded):
        late.result()
    scene.commit()
    assert state(scene) == (1, "")


def test_objects_ask_objects_and_a_cycle_is_told_at_once(scene: Scene) -> None:
    reply = fetch(scene, "/ask", query=b"at=other&for=/facts")
    assert b'"body":"from an object"' in reply[2]
    with pytest.raises((DeadlockError, RemoteError), match="waits for this call"):
        fetch(scene, "/ask", query=b"at=s&for=/hit")


def test_an_object_passes_a_streamed_response_on(scene: Scene) -> None:
    streamed = stream(scene, "/relay")
    scene.commit()
    assert streamed.items[0][0] == 206
    assert streamed.items[1:4] == [b"chunk 0", b"chunk 1", b"chunk 2"]


def test_a_request_cannot_be_a_durable_send(scene: Scene) -> None:
    with pytest.raises((InvalidArgument, RemoteError), match="cannot be sent to"):
        fetch(scene, "/send")


def test_a_response_of_many_minutes_can_ask_other_objects_all_the_time() -> None:
    class Slow(DurableObject):
        async def fetch(self, request: Request) -> Response:
            async def chunks() -> AsyncIterator[bytes]:
                for _ in range(4):
                    await take_time(25)
                    yield (await self.ctx.get(Site, "other").fetch("/wait?s=1")).body

            return StreamingResponse(chunks())

    scene = Scene(Slow, Site)
    streamed = SentStream(scene, scene.client, start(scene, "/", cls=Slow).sequence)
    for _ in range(120):
        scene.advance(1)
        scene.commit()
    assert streamed.items[1:] == [b"false"] * 4
    assert streamed.count == 5
    scene.close()


# --- clients that leave


def test_a_client_that_leaves_does_not_end_the_turn_and_the_handler_can_see_it(scene: Scene) -> None:
    staying, leaving = start(scene, "/wait", query=b"s=1"), start(scene, "/wait", query=b"s=1", name="t")
    scene.stream_news([leaving.sequence, -1])
    scene.advance(1)
    scene.commit()
    assert (staying.result()[2], leaving.result()[2]) == (b"false", b"true")
    assert state(scene, "t") == (1, "")


def test_a_handler_that_waits_for_its_client_to_leave_learns_it(scene: Scene) -> None:
    sent = start(scene, "/leaver")
    scene.advance(1.5)
    assert scene.probes, "the connection is looked at"
    assert not sent.answered
    scene.stream_news([sent.sequence, -1])
    scene.commit()
    assert sent.result()[0] == 200
    gone = start(scene, "/leaver", peer=scene.peer(b"gone"))
    scene.peers.forget(b"gone")
    scene.advance(0.1)
    scene.commit()
    assert gone.answered


def test_a_response_of_a_client_that_has_left_is_not_made(scene: Scene) -> None:
    sent = start(scene, "/stream_late")
    scene.stream_news([sent.sequence, -1])
    scene.advance(5)
    scene.commit()
    assert state(scene) == (0, "")
