"""`stub.fetch` for threads: the reply without `await`; `tests/processes/test_web.py` has the real thing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import pytest

from perdure.sync_web import SyncWebReply, with_async_body
from perdure.web import WebReply


@pytest.fixture
def wait() -> Iterator[Any]:
    loop = asyncio.new_event_loop()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return loop.run_until_complete(work)

    yield run
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


class FakeStream:
    def __init__(self, *items: bytes) -> None:
        self.items = list(items)
        self.closed = False

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> bytes:
        if not self.items:
            raise StopAsyncIteration
        return self.items.pop(0)

    async def aclose(self) -> None:
        self.closed = True


def test_a_whole_reply_is_as_the_other_one(wait: Any) -> None:
    reply = SyncWebReply(WebReply(200, [(b"a", b"b")], b'{"a": 1}', {"x": 1}), wait)
    assert (reply.status, reply.headers["a"], reply.extra, reply.streamed) == (200, "b", {"x": 1}, False)
    assert (reply.body, reply.text, reply.json()) == (b'{"a": 1}', '{"a": 1}', {"a": 1})
    assert list(reply.chunks) == [reply.read()]
    assert repr(reply) == "<WebReply 200>"


def test_a_streamed_reply_is_iterated_over_and_left(wait: Any) -> None:
    stream: Any = FakeStream(b"1", b"2")
    assert list(SyncWebReply(WebReply(200, [], b"0", stream=stream), wait).chunks) == [b"0", b"1", b"2"]
    assert stream.closed
    stream = FakeStream(b"1", b"2")
    with SyncWebReply(WebReply(200, [], b"", stream=stream), wait) as reply:
        assert reply.streamed
        assert next(reply.chunks) == b"1"
    assert stream.closed
    assert SyncWebReply(WebReply(200, [], b"0", stream=FakeStream(b"1")), wait).read() == b"01"  # type: ignore[arg-type]


def test_an_iterable_body_is_read_in_another_thread_than_the_loops(wait: Any) -> None:
    threads = set()

    def body() -> Iterator[bytes]:
        threads.add(threading.get_ident())
        yield b"a"
        yield b"b"

    async def collect(source: AsyncIterator[bytes]) -> bytes:
        return b"".join([part async for part in source])

    options = with_async_body({"body": body(), "method": "PUT"})
    assert options["method"] == "PUT"
    assert wait(collect(options["body"])) == b"ab"
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("body", [b"x", "x", None])
def test_other_bodies_are_left_as_they_are(body: Any) -> None:
    assert with_async_body({"body": body})["body"] is body
