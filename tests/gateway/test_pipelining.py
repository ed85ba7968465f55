"""Requests that stand behind others on one connection, and nonsense that does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.http_scene import UPGRADE, limits, read_all, run, serving, until

NONSENSE = {
    "no request": b"\x00",
    "a host too many": b"GET /b HTTP/1.1\r\nhost: h\r\nhost: h\r\n\r\n",
    "a bad body": b"POST /b HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "an upgrade": b"GET / HTTP/1.1\r\nupgrade: websocket\r\n" + UPGRADE + b"\r\n",
    "half a head": b"GET /b HTTP/1.1\r\nhost",
}
FIRST, SECOND = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n", b"GET /b HTTP/1.1\r\nhost: h\r\n\r\n"


class Slow:
    """An application whose answers come in two pieces, the second when the test says so."""

    def __init__(self, *, starts: bool) -> None:
        self._starts = starts
        self.go = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        said = asyncio.ensure_future(receive())
        if self._starts:
            await self._start(send)
        go = asyncio.ensure_future(self.go.wait())
        await asyncio.wait((said, go), return_when=asyncio.FIRST_COMPLETED)
        go.cancel()
        if said.done():
            self.left.set()
            return
        if not self._starts:
            await self._start(send)
        await send({"type": "http.response.body", "body": b" of " + scope["path"].encode()})
        said.cancel()

    async def _start(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"12")]})
        await send({"type": "http.response.body", "body": b"answer", "more_body": True})


@pytest.mark.parametrize("starts", [False, True], ids=["not started", "started"])
@pytest.mark.parametrize("before", [[b"/a"], [b"/a", b"/b"]], ids=["one", "two"])
@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_behind_requests_is_refused_behind_their_whole_answers(
    nonsense: bytes, before: list[bytes], starts: bool
) -> None:
    async def scenario() -> bytes:
        app = Slow(starts=starts)
        async with serving(app, bounds=limits(http_head_s=0.1)) as scene:
            reader, writer = await scene.connect()
            writer.write((FIRST + SECOND if len(before) > 1 else FIRST) + nonsense)
            await until(lambda: scene.server.rules.cut == 1)
            app.go.set()
            return await read_all(reader)

    _, *answers = run(scenario).split(b"HTTP/1.1 ")
    assert [answer[:3] for answer in answers] == [b"200"] * len(before) + [
        b"408" if nonsense is NONSENSE["half a head"] else b"400"
    ]
    for path, answer in zip(before, answers, strict=False):
        assert answer.endswith(b"\r\n\r\nanswer of " + path)


@pytest.mark.parametrize("sent", [b"", *NONSENSE.values()], ids=["nothing", *NONSENSE])
def test_a_client_that_leaves_during_its_response_is_noticed_whatever_it_has_sent(sent: bytes) -> None:
    async def scenario() -> None:
        app = Slow(starts=True)
        async with serving(app, bounds=limits(http_head_s=0.1)) as scene:
            reader, writer = await scene.connect()
            writer.write(FIRST + sent)
            await reader.readuntil(b"answer")
            await until(lambda: scene.server.rules.cut == bool(sent))
            writer.close()
            await app.left.wait()

    run(scenario)


def test_a_client_that_only_sends_nonsense_behind_its_request_is_cut_off() -> None:
    async def scenario() -> bytes:
        app = Slow(starts=True)
        async with serving(app) as scene:
            reader, writer = await scene.connect()
            writer.write(FIRST + bytes(4_000_000))
            await app.left.wait()
            return await read_all(reader)

    assert b"400" not in run(scenario)
