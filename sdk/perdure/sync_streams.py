"""Streams for threads: ``for item in stub.method(...)`` with a sync client.

Guarantees what `perdure.streams` does; the items come over from the client's thread in small lots, which
count as taken when they are handed over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, Self, TypeVar

from perdure.errors import OutcomeUnknown
from perdure.limits import Limits
from perdure.streams import Hold, Reader

__all__ = ["SyncStream"]

T = TypeVar("T")
_LIMITS = Limits()
_LOT_ITEMS = _LIMITS.stream_window_items // 4
"""A lot costs two hand-overs between threads, about 50 µs; in lots an item costs less than one."""
_MARGIN_S = 5.0
"""The reader ends silent streams by itself; this only bounds a wait for a loop that died."""


class SyncStream(Iterator[T], Generic[T]):
    """The items of a streaming method; used by one thread at a time.

    It ends the producer when it is closed, left as a context or dropped before its end.
    """

    def __init__(self, hold: Hold, running_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._hold: Hold | None = hold
        self._running_loop = running_loop
        """The client's loop; raises `ShardUnavailable` when the client is closed."""
        self._lot: deque[T] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._lot:
            self._lot = deque(self._fetch(self._hold.reader) if self._hold is not None else ())
            if not self._lot:
                self._hold = None
                raise StopIteration
        return self._lot.popleft()

    def close(self) -> None:
        """Ends the stream; the producer is told at once, and not waited for."""
        self._hold = None
        self._lot.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetch(self, reader: Reader) -> list[T]:
        answer: Future[list[T]] = Future()
        loop = self._running_loop()
        loop.call_soon_threadsafe(_hand_over, loop, reader, answer)
        try:
            return answer.result(reader.timeout_s + _LIMITS.answer_grace_s + _MARGIN_S)
        except BaseException as error:
            if answer.done():  # what ended the stream
                raise
            self.close()  # what was on its way to this thread is lost
            if not isinstance(error, TimeoutError):
                raise
            raise OutcomeUnknown("the client's thread gave no answer; is the process overloaded?") from None


def _hand_over(loop: asyncio.AbstractEventLoop, reader: Reader, answer: Future[Any]) -> None:
    """In the client's loop: gives the next lot to the thread that waits for it."""
    try:
        if reader.ready:
            answer.set_result(reader.take(_LOT_ITEMS))
        else:
            # In the loop's next round, when all of the message that brings items has been read.
            reader.wait(partial(loop.call_soon, _hand_over, loop, reader, answer))
    except BaseException as error:
        answer.set_exception(error)
