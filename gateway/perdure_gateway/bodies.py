"""Bodies of requests: what travels with the call at once, and the rest as the object asks for it.

Guarantees that no body is longer than the limit, whatever its Content-Length says, and that no more of it is
read than what is wanted now.  Runs wherever the gateway's application runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NamedTuple

from perdure.errors import InvalidArgument, MessageTooLarge, PerdureError

__all__ = ["Body", "ClientGone", "UnsupportedEncoding", "read_body"]

Receive = Callable[[], Awaitable[Any]]


class ClientGone(PerdureError):
    """The client has left before its request had come; there is nobody to answer."""


class UnsupportedEncoding(InvalidArgument):
    """The request's body is compressed, which nobody here would see the size of."""


class Body(NamedTuple):
    """What is known of a body."""

    first: bytes
    length: int | None
    """Of the whole body, where it is known."""
    rest: AsyncIterator[bytes] | None
    """What follows on `first`; None when that is all."""


async def read_body(
    receive: Receive,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    http1: bool,
    inline_bytes: int,
    bytes_max: int,
) -> Body:
    """The body of a request, as far as it travels inline.

    `http1` tells that a request without Content-Length and Transfer-Encoding has none.  Raises
    `MessageTooLarge`, `UnsupportedEncoding`, `InvalidArgument` and `ClientGone`.
    """
    length: int | None = None
    expected = not http1
    for name, value in headers:
        if name == b"content-length":
            length = _length(value)
            if length > bytes_max:
                raise _too_large(length, bytes_max)
            expected = length > 0
        elif name == b"transfer-encoding":
            expected = True
        elif name == b"content-encoding" and value.strip().lower() not in (b"identity", b""):
            raise UnsupportedEncoding("send the body without Content-Encoding")
    if not expected:
        return Body(b"", 0, None)
    first = b""
    more = True
    while more and len(first) < inline_bytes:
        part, more = await _next(receive)
        first = first + part if first else part
        if len(first) > bytes_max:
            raise _too_large(len(first), bytes_max)
    if not more:
        return Body(first, len(first), None)
    return Body(first, length, _rest(receive, len(first), bytes_max))


async def _next(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone("the client has left before its request's body had come")
    return message.get("body", b""), message.get("more_body", False)


async def _rest(receive: Receive, size: int, bytes_max: int) -> AsyncIterator[bytes]:
    more = True
    while more:
        part, more = await _next(receive)
        size += len(part)
        if size > bytes_max:
            raise _too_large(size, bytes_max)
        if part:
            yield part


def _length(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise InvalidArgument("Content-Length is no number")
    return int(value)


def _too_large(size: int, limit: int) -> MessageTooLarge:
    return MessageTooLarge(f"the body has more than {limit} bytes", size=size, limit=limit)
