"""Answers of the gateway's application: what objects have answered, and failures, as ASGI messages.

Guarantees one answer to each request, headers that hold no further header, and that a streamed response ends
at its object when the client has left.  Runs wherever the gateway's application runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from perdure import web
from perdure.web_wire import LINE_END, OWN_HEADERS
from perdure_gateway.failures import Failure

__all__ = ["Answer", "BrokenOff"]

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
"""Headers of one connection, which is the server's business (RFC 9110 §7.6.1)."""
_NO_BODY = frozenset({204, 304})


class Answer:
    """The answer to one request: given once, whatever happens."""

    __slots__ = ("_method", "_send", "shared", "started")

    def __init__(self, method: str, send: Any) -> None:
        self._method = method
        self._send = send
        self.started = False
        self.shared: tuple[tuple[bytes, bytes], ...] = ()
        """Headers of what the gateway itself answers: the page that asks may read it."""

    async def give(self, reply: web.WebReply, receive: Any) -> None:
        """What the object has answered."""
        if reply.streamed:
            await self._stream(reply, receive)
            return
        body = b"" if reply.status in _NO_BODY else reply.body
        headers = _response_headers(reply.headers.raw)
        if self._method != "HEAD" and reply.status not in _NO_BODY:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
            headers.append((b"content-length", b"%d" % len(body)))
        await self._begin(reply.status, headers)
        await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _stream(self, reply: web.WebReply, receive: Any) -> None:
        try:
            await self.stream(reply.status, _response_headers(reply.headers.raw), reply.chunks, receive)
        finally:
            await reply.aclose()

    async def stream(
        self,
        status: int,
        headers: list[tuple[bytes, bytes]],
        chunks: AsyncIterator[bytes],
        receive: Any,
    ) -> None:
        """A body that comes in pieces, as fast as the client takes them; it ends when the client leaves."""
        # Who only sends never learns that the client has left, and its object would stream for nobody.
        leaving = asyncio.create_task(_departure(receive))
        leaving.add_done_callback(lambda _: sending.cancel())
        sending = asyncio.create_task(self._send_chunks(status, headers, chunks))
        try:
            await asyncio.wait((sending,))
            if not sending.cancelled():
                sending.result()
        finally:
            leaving.cancel()
            sending.cancel()
            await asyncio.wait((sending,))  # nobody reads the chunks any more when they are closed

    async def _send_chunks(
        self, status: int, headers: list[tuple[bytes, bytes]], chunks: AsyncIterator[bytes]
    ) -> None:
        await self._begin(status, headers)
        async for chunk in chunks:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """An answer of the gateway's own; its length is added."""
        await self._begin(status, [*headers, *self.shared, (b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, failure: Failure, error_id: str = "") -> None:
        """The answer to a request that failed; a response that has begun is broken off."""
        if self.started:
            raise BrokenOff(failure.message)
        body = failure.body(error_id)
        await self._begin(failure.status, [*failure.all_headers(len(body)), *self.shared])
        await self._send({"type": "http.response.body", "body": body})


class BrokenOff(Exception):
    """A response cannot be ended as it began."""


async def _departure(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _response_headers(raw: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    if LINE_END.search(b" ".join([part for pair in raw for part in pair])) is not None:
        raise ValueError("a response's header holds a CR, LF or NUL")
    return [
        pair for pair in raw if pair[0] not in _HOP_BY_HOP and not pair[0].lower().startswith(OWN_HEADERS)
    ]
