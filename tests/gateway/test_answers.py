"""Answers as ASGI messages: whole ones, streamed ones, and those that cannot be ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure_gateway.answers import Answer, BrokenOff
from perdure_gateway.failures import NOT_FOUND


class Client:
    """Takes messages; `leave` makes it go."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    async def receive(self) -> dict[str, Any]:
        await asyncio.shield(self.left)
        return {"type": "http.disconnect"}


def test_a_streamed_body_leaves_piece_by_piece_and_ends() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def scenario() -> list[dict[str, Any]]:
        client = Client()
        await Answer("GET", client.send).stream(200, [(b"x-own", b"1")], chunks(), client.receive)
        return client.messages

    start, first, second, end = asyncio.run(scenario())
    assert (start["status"], start["headers"]) == (200, [(b"x-own", b"1")])
    assert [(m["body"], m.get("more_body", False)) for m in (first, second, end)] == [
        (b"a", True),
        (b"b", True),
        (b"", False),
    ]


def test_a_stream_ends_at_its_producer_when_the_client_leaves() -> None:
    async def scenario() -> bool:
        closed = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            try:
                yield b"a"
                client.left.set_result(None)
                await asyncio.get_running_loop().create_future()
            finally:
                closed.set()

        client = Client()
        async with asyncio.timeout(5):
            await Answer("GET", client.send).stream(200, [], endless(), client.receive)
            await closed.wait()
        return all(message.get("more_body", True) for message in client.messages[1:])

    assert asyncio.run(scenario()), "an end was sent of what had not ended"


def test_a_producer_that_fails_breaks_the_response_off() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"a"
        raise ValueError("halfway")

    async def scenario() -> None:
        client = Client()
        answer = Answer("GET", client.send)
        with pytest.raises(ValueError, match="halfway"):
            await answer.stream(200, [], failing(), client.receive)
        with pytest.raises(BrokenOff):
            await answer.fail(NOT_FOUND)
        assert len(client.messages) == 2

    asyncio.run(scenario())


def test_a_failure_before_anything_was_sent_is_a_whole_answer() -> None:
    async def scenario() -> list[dict[str, Any]]:
        client = Client()
        await Answer("GET", client.send).fail(NOT_FOUND)
        return client.messages

    start, body = asyncio.run(scenario())
    assert start["status"] == 404
    assert (b"content-length", b"%d" % len(body["body"])) in start["headers"]
