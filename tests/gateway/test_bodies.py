"""Bodies of requests: what is read at once, what on demand, and the limit of both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from perdure.errors import InvalidArgument, MessageTooLarge
from perdure_gateway.bodies import Body, ClientGone, UnsupportedEncoding, read_body

Headers = list[tuple[bytes, bytes]]


class Client:
    """What an ASGI server hands out of a client's body."""

    def __init__(self, parts: Iterable[bytes], *, leaves: bool = False) -> None:
        self.parts = list(parts)
        self.leaves = leaves
        self.taken = 0

    async def receive(self) -> dict[str, Any]:
        self.taken += 1
        if not self.parts:
            return {"type": "http.disconnect"}
        part = self.parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(self.parts) or self.leaves}


def read(client: Client, headers: Headers, *, http1: bool = True, inline: int = 10, most: int = 30) -> Body:
    return asyncio.run(read_body(client.receive, headers, http1=http1, inline_bytes=inline, bytes_max=most))


async def rest(client: Client, headers: Headers) -> list[bytes]:
    body = await read_body(client.receive, headers, http1=True, inline_bytes=10, bytes_max=30)
    assert body.rest is not None
    return [part async for part in body.rest]


CHUNKED: Headers = [(b"transfer-encoding", b"chunked")]


def test_a_short_body_is_whole_at_once() -> None:
    assert read(Client([b"ab", b"cd"]), [(b"content-length", b"4")]) == (b"abcd", 4, None)


def test_a_request_without_a_body_is_not_asked_for_one() -> None:
    client = Client([b""])
    assert read(client, []) == (b"", 0, None)
    assert read(client, [(b"content-length", b"0")]) == (b"", 0, None)
    assert client.taken == 0


def test_where_the_protocol_does_not_tell_the_body_is_looked_for() -> None:
    assert read(Client([b"ab"]), [], http1=False) == (b"ab", 2, None)


def test_a_long_body_is_read_on_only_when_it_is_wanted() -> None:
    client = Client([b"x" * 10] * 3)
    headers = [(b"content-length", b"30")]

    async def scenario() -> None:
        body = await read_body(client.receive, headers, http1=True, inline_bytes=10, bytes_max=30)
        assert (body.first, body.length, client.taken) == (b"x" * 10, 30, 1)
        assert body.rest is not None
        assert [await anext(body.rest)] == [b"x" * 10]
        assert client.taken == 2
        assert [part async for part in body.rest] == [b"x" * 10]

    asyncio.run(scenario())


@pytest.mark.parametrize("headers", [[(b"content-length", b"31")], [(b"content-length", b"9" * 18)]])
def test_a_length_beyond_the_limit_is_refused_before_anything_is_read(headers: Headers) -> None:
    client = Client([b"x"])
    with pytest.raises(MessageTooLarge) as caught:
        read(client, headers)
    assert caught.value.limit == 30
    assert client.taken == 0


def test_a_body_that_is_longer_than_it_said_is_refused_where_it_passes_the_limit() -> None:
    with pytest.raises(MessageTooLarge):
        read(Client([b"x" * 31]), CHUNKED)
    with pytest.raises(MessageTooLarge):
        asyncio.run(rest(Client([b"x" * 10] * 4), CHUNKED))
    assert len(asyncio.run(rest(Client([b"x" * 10] * 3), CHUNKED))) == 2


def test_a_client_that_leaves_halfway_is_told_from_one_that_has_ended() -> None:
    with pytest.raises(ClientGone):
        read(Client([b"ab"], leaves=True), [(b"content-length", b"4")])
    with pytest.raises(ClientGone):
        asyncio.run(rest(Client([b"x" * 10], leaves=True), CHUNKED))


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"GZIP", b"identity, gzip"])
def test_a_compressed_body_is_refused(encoding: bytes) -> None:
    with pytest.raises(UnsupportedEncoding):
        read(Client([b"x"]), [*CHUNKED, (b"content-encoding", encoding)])


def test_the_encoding_that_is_none_is_taken() -> None:
    assert read(Client([b"x"]), [*CHUNKED, (b"content-encoding", b"Identity")]).first == b"x"


@pytest.mark.parametrize("value", [b"", b"-1", b"1a", b"1, 1", b"9" * 19])
def test_a_length_that_is_no_number_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument):
        read(Client([b"x"]), [(b"content-length", value)])
