"""`stub.fetch` at its sender: what becomes of its arguments, and what a reply offers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

import perdure
from perdure.errors import InvalidArgument, MessageTooLarge, OutcomeUnknown, RemoteError
from perdure.limits import Limits
from perdure.uploads import Uploads
from perdure.web import Headers, WebReply, body_of, make_request, request_map, send_request

from .fake_cluster import in_loop

LIMITS = Limits()
INLINE = LIMITS.http_body_inline_bytes
SDK = Path(__file__).resolve().parents[2] / "sdk"


class FakeStream:
    """A call of a worker that the test plays."""

    def __init__(self, *items: Any, result: Any = None, error: BaseException | None = None) -> None:
        self._items = list(items)
        self._result = result
        self._error = error
        self.closed = 0

    async def result(self) -> Any:
        if self._items:
            return self
        if self._error is not None:
            raise self._error
        return await self._result if asyncio.isfuture(self._result) else self._result

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> Any:
        if self._items:
            return self._items.pop(0)
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


class Fake:
    """Sends requests by writing them down."""

    def __init__(self, stream: FakeStream | None = None) -> None:
        self.uploads = Uploads(b"c" * 16, lambda: None)
        self.sent: list[dict[str, Any]] = []
        self.stream = stream or FakeStream(result=[200, [], b"", None])

    def start(self, request: dict[str, Any]) -> Any:
        self.sent.append(request)
        return self.stream

    async def send(self, *args: Any, pulls: bool = True, **options: Any) -> WebReply:
        made, source = make_request(*args, **options)
        return await send_request(self.start, self.uploads, made, source, pulls=pulls)


async def parts(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def starlette_request(body: bytes = b"", **scope: Any) -> Request:
    facts = {
        "type": "http",
        "method": "PUT",
        "scheme": "https",
        "path": "/app/rooms/a",
        "root_path": "/app",
        "query_string": b"x=1",
        "headers": [(b"host", b"example.org"), (b"content-length", str(len(body)).encode())],
        "client": ("10.0.0.1", 99),
        **scope,
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(facts, receive)


# --- requests


def test_a_path_or_a_url_with_method_headers_and_body_becomes_a_request() -> None:
    made, source = make_request("/a?x=1")
    assert source is None
    assert made == request_map("GET", "/a", query=b"x=1")
    made, source = make_request(
        "https://example.org/b", method="post", headers={"X-One": "1", "HOST": "other.org"}, body="caf\u00e9"
    )
    assert source is None
    assert (made["method"], made["scheme"], made["body"], made["length"]) == (
        "POST",
        "https",
        b"caf\xc3\xa9",
        5,
    )
    assert made["headers"] == [[b"x-one", b"1"], [b"host", b"other.org"], [b"content-length", b"5"]]


@in_loop
async def test_a_request_of_starlette_is_passed_on_with_its_body_as_a_source() -> None:
    made, source = make_request(starlette_request(b"hello"), headers=[("x-via", "me"), ("x-via", "you")])
    assert made["path"] == "/rooms/a"
    assert (made["root_path"], made["query"], made["client"]) == ("/app", b"x=1", ["10.0.0.1", 99])
    assert (made["method"], made["scheme"], made["length"]) == ("PUT", "https", 5)
    assert made["headers"][-2:] == [[b"x-via", b"me"], [b"x-via", b"you"]]
    assert source is not None
    assert b"".join([part async for part in source]) == b"hello"
    made, source = make_request(starlette_request(b"hello", root_path="/ap"), method="DELETE", body=b"")
    assert (made["method"], made["path"], made["body"], source) == ("DELETE", "/app/rooms/a", b"", None)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((5,), {}),
        (("ftp://x",), {}),
        (("/",), {"method": "GET /"}),
        (("/",), {"body": 5}),
        (("/",), {"headers": {"a": "b\r\nc: d"}}),
        (("/",), {"headers": {"a b": "c"}}),
        (("/",), {"headers": {"a": 5}}),
        (("/",), {"headers": {"a": "\u20ac"}}),
        (("/",), {"headers": 5}),
        (("/",), {"headers": [("a",)]}),
    ],
)
def test_what_is_no_request_is_told_before_anything_is_sent(args: Any, options: Any) -> None:
    with pytest.raises(InvalidArgument):
        make_request(*args, **options)


@in_loop
async def test_a_body_travels_whole_up_to_its_limit_and_is_pulled_beyond_it() -> None:
    fake = Fake()
    await fake.send("/", body=bytes(INLINE))
    await fake.send("/", body=bytes(INLINE + 1))
    await fake.send("/", body=parts(b"abc"))
    facts = [(len(sent["body"]), sent["more"], sent["upload"], sent["length"]) for sent in fake.sent]
    assert facts == [(INLINE, False, 0, INLINE), (INLINE, True, 1, INLINE + 1), (0, True, 2, None)]
    assert not fake.uploads.open, "they have ended"


@in_loop
async def test_who_cannot_be_asked_for_more_sends_the_body_whole_or_is_told_that_it_is_too_large() -> None:
    fake = Fake()
    await fake.send("/", body=parts(b"abc", b"de"), pulls=False)
    await fake.send("/", body=bytes(INLINE + 1), pulls=False)
    assert [(len(sent["body"]), sent["more"]) for sent in fake.sent] == [(5, False), (INLINE + 1, False)]
    with pytest.raises(MessageTooLarge, match="through the router"):
        await fake.send("/", body=parts(*[bytes(2**20)] * 40), pulls=False)
    with pytest.raises(MessageTooLarge):
        await fake.send("/", body=bytes(LIMITS.message_bytes_max), pulls=False)
    assert len(fake.sent) == 2


# --- outcomes


@in_loop
async def test_a_whole_response_has_status_headers_and_a_body_in_every_form() -> None:
    headers = [
        [b"content-type", b"text/plain; charset=latin-1"],
        [b"set-cookie", b"a"],
        [b"set-cookie", b"b"],
    ]
    fake = Fake(FakeStream(result=[201, headers, b'"caf\xe9"', {"auto": None}]))
    reply = await fake.send("/")
    assert (reply.status, reply.body, reply.text, reply.streamed) == (201, b'"caf\xe9"', '"caf\u00e9"', False)
    assert reply.extra == {"auto": None}
    assert reply.headers["Set-Cookie"] == "a"
    assert reply.headers.getlist("set-cookie") == ["a", "b"]
    assert [chunk async for chunk in reply.chunks] == [b'"caf\xe9"']
    assert await reply.read() == reply.body
    assert repr(reply) == "<WebReply 201>"
    assert WebReply(200, [], b'{"a": 1}').json() == {"a": 1}
    assert WebReply(200, [], "\u20ac".encode()).text == "\u20ac"


def test_headers_are_a_mapping_whatever_their_case() -> None:
    headers = Headers([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    assert dict(headers) == {"a": "1", "b": "2"}
    assert len(headers) == 2
    assert "A" in headers
    assert headers.get("c") is None
    with pytest.raises(KeyError):
        headers["c"]


@in_loop
async def test_a_streamed_response_is_read_in_chunks_or_whole_and_once() -> None:
    for first in (b"", b"0"):
        stream = FakeStream([206, [[b"a", b"b"]], first, None], b"1", b"2")
        reply = await Fake(stream).send("/")
        assert (reply.status, reply.streamed, repr(reply)) == (206, True, "<WebReply 206 streamed>")
        with pytest.raises(RuntimeError, match="streamed"):
            _ = reply.body
        assert b"".join([chunk async for chunk in reply.chunks]) == first + b"12"
        with pytest.raises(RuntimeError, match="read before"):
            await reply.read()
        assert stream.closed
    reply = await Fake(FakeStream([200, [], b"a", None], b"b")).send("/")
    assert await reply.read() == reply.body == b"ab"


@in_loop
async def test_a_streamed_response_that_is_too_large_to_be_read_whole_is_left() -> None:
    chunk = bytes(2**20)
    stream = FakeStream([200, [], b"", None], *[chunk] * (LIMITS.http_body_bytes_max // 2**20 + 1))
    reply = await Fake(stream).send("/")
    with pytest.raises(MessageTooLarge):
        await reply.read()
    assert stream.closed


@in_loop
async def test_leaving_a_streamed_response_ends_its_producer_and_its_upload() -> None:
    fake = Fake(FakeStream([200, [], b"", None], b"1"))
    async with await fake.send("/", body=parts(b"abc")) as reply:
        assert reply.streamed
        assert list(fake.uploads.open) == [1], "the object may still read it"
    assert fake.stream.closed
    assert not fake.uploads.open


@in_loop
async def test_whoever_stops_waiting_tells_the_object() -> None:
    fake = Fake(FakeStream(result=asyncio.get_running_loop().create_future()))
    waiting = asyncio.create_task(fake.send("/", body=parts(b"abc")))
    while not fake.sent:
        await asyncio.sleep(0)  # sleep: lets the task run
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert fake.stream.closed
    assert not fake.uploads.open


def disconnect() -> RemoteError:
    return RemoteError("", type_name="starlette.requests.ClientDisconnect", object_id="Site/a")


@in_loop
async def test_a_disconnect_is_told_as_what_caused_it() -> None:
    fake = Fake(FakeStream(error=disconnect()))
    with pytest.raises(RemoteError):
        await fake.send("/")
    for streamed in (False, True):
        for cause, expected in ((LookupError("no more"), LookupError), ("gone", OutcomeUnknown)):
            items = [[200, [], b"", None]] if streamed else []
            fake = Fake(FakeStream(*items, error=disconnect()))

            def start(request: dict[str, Any], fake: Fake = fake, cause: Any = cause) -> Any:
                upload = fake.uploads.open[request["upload"]]
                if cause == "gone":
                    upload.gone = True
                else:
                    upload.error = cause
                return fake.stream

            made, source = make_request("/", body=parts(b"abc"))
            with pytest.raises(expected):
                await (await send_request(start, fake.uploads, made, source, pulls=True)).read()


# --- Starlette


def test_a_reply_becomes_a_response_with_the_same_headers() -> None:
    headers = [(b"content-type", b"text/plain"), (b"set-cookie", b"a"), (b"set-cookie", b"b")]
    response = WebReply(202, headers, b"body").to_response()
    assert (type(response), response.status_code, response.body) == (Response, 202, b"body")
    assert response.raw_headers == headers
    streamed = WebReply(202, headers, b"", stream=FakeStream()).to_response()  # type: ignore[arg-type]
    assert (type(streamed), streamed.status_code, streamed.raw_headers) == (StreamingResponse, 202, headers)


@in_loop
async def test_the_body_of_a_request_is_there_once_it_was_read() -> None:
    request = starlette_request(b"hello")
    with pytest.raises(RuntimeError, match=r"await request\.body"):
        body_of(request)
    await request.body()
    assert body_of(request) == b"hello"


def test_the_names_of_starlette_are_its_own_classes() -> None:
    assert perdure.Request is Request
    assert perdure.JSONResponse is JSONResponse
    with pytest.raises(AttributeError, match="has no attribute 'Middleware'"):
        _ = perdure.Middleware  # type: ignore[attr-defined]


def test_importing_the_package_and_connecting_do_not_import_starlette() -> None:
    program = (
        "import sys, perdure, perdure.web; client = perdure.connect('ipc:///nowhere'); "
        "assert not [n for n in sys.modules if n.partition('.')[0] in ('starlette', 'anyio')]; "
        "perdure.Response; assert 'starlette' in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SDK)}, capture_output=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
