"""`stub.fetch(...)` for threads, with a sync client: the same reply, without `await`.

Guarantees what `perdure.web` does; a body that is given as an iterable is read in a thread of its own, so
that a slow one holds up nobody's calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Final, Self

from perdure.web import Headers, WebReply

__all__ = ["SyncWebReply", "with_async_body"]

_END: Final = object()
Wait = Callable[[Coroutine[Any, Any, Any]], Any]


class SyncWebReply:
    """What an object's `fetch` has answered; see `perdure.web.WebReply`."""

    def __init__(self, reply: WebReply, wait: Wait) -> None:
        self._reply = reply
        self._wait = wait
        self.status = reply.status
        self.headers: Headers = reply.headers
        self.extra: Mapping[str, Any] | None = reply.extra

    @property
    def streamed(self) -> bool:
        """Whether the body comes in chunks, at its producer's pace."""
        return self._reply.streamed

    @property
    def body(self) -> bytes:
        """The whole body; raises `RuntimeError` for a streamed one that was not read as a whole."""
        return self._reply.body

    @property
    def text(self) -> str:
        """The body as text."""
        return self._reply.text

    def json(self) -> Any:
        """The body as JSON."""
        return self._reply.json()

    def read(self) -> bytes:
        """The whole body, also of a streamed reply."""
        body: bytes = self._wait(self._reply.read())
        return body

    @property
    def chunks(self) -> Iterator[bytes]:
        """The body piece by piece; once."""
        return self._chunks()

    def _chunks(self) -> Iterator[bytes]:
        chunks = self._reply.chunks
        try:
            while (chunk := self._wait(_next(chunks))) is not _END:
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        """Ends what still comes; the producer is told at once, and not waited for."""
        self._wait(self._reply.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._reply)


async def _next(chunks: AsyncIterator[bytes]) -> Any:
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        return _END


def with_async_body(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `fetch` with a body that the client's loop can read."""
    body = options.get("body")
    if isinstance(body, Iterable) and not isinstance(body, bytes | str | AsyncIterable):
        return {**options, "body": _in_threads(body)}
    return options


async def _in_threads(body: Iterable[bytes]) -> AsyncIterator[bytes]:
    iterator = await asyncio.to_thread(iter, body)
    while (part := await asyncio.to_thread(next, iterator, _END)) is not _END:
        yield part  # type: ignore[misc]
