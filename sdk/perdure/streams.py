"""Streams as their readers see them: what an async-generator method yields, item by item.

Guarantees: items come in order, none is missing before the end, and what ends a stream (its end, the
method's exception, a lost worker) comes after the items that came before it; the producer is never more
than a window ahead of what was taken; a reader that leaves, in whatever way, ends the producer.  A stream is
never begun again by itself: what its reader has seen cannot be taken back.

`Streams` and `Reader` are the pure side, a part of `calls.Caller`; `Stream` is what users iterate over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from perdure import codec, protocol
from perdure.errors import OutcomeUnknown, from_wire
from perdure.limits import Limits
from perdure.methods import Method
from perdure.pending import Answer, Pending, end
from perdure.slotmap import SlotMap
from perdure.uploads import Uploads

__all__ = ["STOP", "Hold", "Reader", "Stream", "StreamingMethod", "Streams"]

T = TypeVar("T")
STOP: Final = -1
"""In STREAM instead of the number of items taken: the reader has left, the producer shall end."""
_LIMITS = Limits()
_PATIENCE_S = _LIMITS.answer_grace_s
# Told in quarters of the window, the producer never runs dry because of the way there and back.
_TELL_ITEMS = _LIMITS.stream_window_items // 4
_TELL_BYTES = _LIMITS.stream_window_bytes // 4
_TELL_AGAIN_S = 1.0
"""What was taken is told again this often to a producer that is waited for: a message may be lost."""


class Send(Protocol):
    """Sends one message; False: try again later.  As `calls.Outgoing`."""

    def __call__(self, worker: int, epoch: int, header: bytes, body: bytes) -> bool: ...


class Hold:
    """Whoever reads a stream, or still may, keeps it: when it is dropped, the stream is left.

    So `break`, an exception in the loop or a call that nobody looks at end the producer, as they end a
    generator of one's own.  It may be dropped in any thread.
    """

    __slots__ = ("reader",)

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __del__(self) -> None:
        if not self.reader.ended:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the connection with it
                self.reader.streams.call_soon(self.reader.leave)


class StreamingMethod(TypeError):
    """A streaming method was awaited; its items come with ``async for``."""

    def __init__(self, title: str, reader: Reader) -> None:
        super().__init__(
            f"{title} streams its values, so there is no single result to await: write "
            "`async for value in ...` (with a sync client `for value in ...`)"
        )
        self._hold: Hold | None = Hold(reader)

    def take_hold(self) -> Hold:
        """The stream's one hold; it leaves nothing behind in the caller's frame, which this error refers to.

        Raises `RuntimeError` when somebody has it already.
        """
        hold, self._hold = self._hold, None
        if hold is None:
            raise RuntimeError("this call was iterated over before; call the method again")
        return hold


class Reader:
    """One open stream: what has come and was not taken yet.  Used in its caller's loop."""

    __slots__ = (
        "_count",
        "_items",
        "_taken",
        "_title",
        "_told",
        "_told_at",
        "_waiting_since",
        "_wake",
        "_weight",
        "ended",
        "epoch",
        "error",
        "sequence",
        "spec",
        "streams",
        "timeout_s",
        "worker",
    )

    def __init__(self, streams: Streams, pending: Pending) -> None:
        self.streams = streams
        self.sequence = pending.sequence
        self.worker = pending.worker
        self.epoch = pending.epoch
        self.spec: Method | None = pending.spec
        self.timeout_s = pending.timeout_s
        self.ended = False
        """Nothing more comes; items that have come can still be taken."""
        self.error: BaseException | None = None
        """What ended the stream, where that was no ordinary end."""
        self._title = pending.title
        self._items: deque[Any] = deque()
        self._count = 0
        self._taken = 0
        self._told = 0
        self._told_at = 0.0
        self._weight = 0
        self._wake: Callable[[], object] | None = None
        self._waiting_since = 0.0

    # --- what comes

    def push(self, payload: Any, size: int) -> None:
        """An item has come, of about `size` bytes."""
        spec = self.spec
        if spec is not None and type(payload) is not spec.result_exact:
            try:
                payload = spec.load_result(payload)
            except Exception as error:  # the classes here and there differ, or a user's validator raised
                self.leave(error)
                return
        self._count += 1
        self._weight += size
        self._items.append(payload)
        self._tell_reader()

    def finish(self, count: Any) -> None:
        """The producer has ended after `count` items."""
        missing = OutcomeUnknown(
            f"{self._title}: a part of the stream was lost, {self._count} of {count!r:.80} items came"
        )
        self.fail(None if count == self._count else missing)

    def fail(self, error: BaseException | None) -> None:
        """Nothing more comes; the error is raised after the items that have come."""
        if not self.ended:
            self.ended = True
            self.error = error
            self.streams.forget(self)
            self._tell_reader()

    def leave(self, error: BaseException | None = None) -> None:
        """Nobody wants the rest: the producer is stopped."""
        if not self.ended:
            self.streams.stop(self.worker, self.epoch, self.sequence)
            self.fail(error)

    # --- who reads

    def take(self, count_max: int = 1) -> list[Any]:
        """The next items, at most so many, none when none is here; raises what ended the stream, once."""
        items = self._items
        if not items:
            error, self.error = self.error, None
            if error is not None:
                raise error
            return []
        taken = [items.popleft() for _ in range(min(count_max, len(items)))]
        self._taken += len(taken)
        if self._taken - self._told >= _TELL_ITEMS or (self._weight >= _TELL_BYTES and not items):
            self._tell_producer()
        return taken

    @property
    def ready(self) -> bool:
        """Whether `take` gives items or raises, or never will."""
        return bool(self._items) or self.ended

    def wait(self, wake: Callable[[], object]) -> None:
        """`wake` is called once, when there is something to take or the stream has ended."""
        if self._wake is not None:
            raise RuntimeError(f"{self._title}: this stream is being read already, by another task or thread")
        self._wake = wake
        self._waiting_since = self.streams.clock()

    def wait_no_more(self) -> None:
        """Takes `wait` back."""
        self._wake = None

    def _tell_reader(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    # --- the producer

    def _tell_producer(self) -> None:
        self._told, self._weight = self._taken, 0
        self._told_at = self.streams.clock()
        if not self.ended:
            self.streams.tell(self.worker, self.epoch, self.sequence, self._taken)

    def on_tick(self, now: float) -> None:
        """Time has passed; about every 50 ms."""
        if self._wake is None:
            return
        if now - self._waiting_since > self.timeout_s + _PATIENCE_S:
            error = OutcomeUnknown(
                f"{self._title}: no item came for {self.timeout_s:g} s, so the stream was given up; what the "
                "method did until its last item holds"
            )
            self.leave(error)
        elif self._taken > self._told or now - self._told_at > _TELL_AGAIN_S:
            self._tell_producer()


class Streams:
    """The open streams of one caller, and what their producers have to be told.

    A call belongs here from its first item on; until then it is pending as any other.
    """

    def __init__(
        self,
        client_id: bytes,
        pending: Mapping[int, Pending],
        clock: Callable[[], float],
        want_flush: Callable[[], None],
        load_exception: Callable[[Any], BaseException],
    ) -> None:
        self.clock = clock
        self.open: dict[int, Reader] = {}
        """By the sequence of the call."""
        self.call_soon: Callable[[Callable[[], None]], Any] = _now
        """Runs something in the caller's loop; called from any thread."""
        self.uploads = Uploads(client_id, want_flush)
        """What goes the other way: bodies of requests, in parts."""
        self._client_id = client_id
        self._pending = pending
        self._want_flush = want_flush
        self._load_exception = load_exception
        self._news: dict[tuple[int, int], dict[int, int]] = {}
        """By worker and epoch: for sequences, how many items were taken, or `STOP`."""

    # --- what comes

    def begin(self, pending: Pending, status: int, payload: Any, size: int) -> None:
        """The first item of a call, or its end without one: from now on it is a stream."""
        reader = Reader(self, pending)
        answer = pending.answer
        if answer.done():  # cancelled: nobody waits for it any more
            if status == protocol.STATUS_ITEM:
                reader.leave()
            return
        self.open[reader.sequence] = reader
        self.on_reply(reader.epoch, reader.sequence, status, payload, size)
        end(answer, StreamingMethod(pending.title, reader))
        answer.exception()  # seen: to iterate over the call is not to await it

    def on_reply(self, epoch: int, sequence: int, status: int, payload: Any, size: int) -> bool:
        """A reply that may belong to an open stream; whether it did."""
        reader = self.open.get(sequence)
        if reader is None or reader.epoch != epoch:
            return False
        if status == protocol.STATUS_ITEM:
            reader.push(payload, size)
        elif status == protocol.STATUS_END:
            reader.finish(payload)
        elif status == protocol.STATUS_RESULT:
            return False
        elif status == protocol.STATUS_RAISED:
            reader.fail(self._load_exception(payload))
        else:
            reader.fail(from_wire(*payload))
        return True

    def lose(self, why: str, address: tuple[int, int] | None = None, *, stop: bool = False) -> None:
        """Ends the streams of an incarnation that is gone (without it: all), and says `stop` to producers."""
        text = f"{why} while this stream was open; what its method did after the last item is not known"
        for reader in list(self.open.values()):
            if address is None or address == (reader.worker, reader.epoch):
                error = OutcomeUnknown(text)
                reader.leave(error) if stop else reader.fail(error)

    def addresses(self) -> set[tuple[int, int]]:
        """Worker and epoch of all producers."""
        return {(reader.worker, reader.epoch) for reader in self.open.values()}

    def forget(self, reader: Reader) -> None:
        """The stream has ended."""
        self.open.pop(reader.sequence, None)

    # --- what producers are told

    def tell(self, worker: int, epoch: int, sequence: int, taken: int) -> None:
        """So many items were taken in all: said as a total, so that a lost message harms nothing."""
        self._news.setdefault((worker, epoch), {})[sequence] = taken
        self._want_flush()

    def stop(self, worker: int, epoch: int, sequence: int) -> None:
        """The producer shall end; for a call that does not stream it means nothing."""
        self.tell(worker, epoch, sequence, STOP)

    def leave(self, answer: Answer) -> None:
        """Whoever waited for this call's first item has left; it stays pending, and its answer is refused."""
        for pending in self._pending.values():
            if pending.answer is answer:
                self.give_up(pending)

    def give_up(self, pending: Pending) -> None:
        """Nobody waits for this call any more; if it was sent, it may be a stream without an item yet."""
        if pending.epoch and (pending.spec is None or pending.spec.is_generator):
            self.stop(pending.worker, pending.epoch, pending.sequence)

    def flush(self, send: Send, slot_map: SlotMap | None) -> bool:
        """Sends what producers have to be told; whether some of it had to stay."""
        seats = slot_map.seats if slot_map is not None else ()
        stays: dict[tuple[int, int], dict[int, int]] = {}
        news, self._news = self._news, {}
        for (worker, epoch), rows in news.items():
            if worker >= len(seats) or seats[worker].epoch != epoch or not seats[worker].endpoint:
                continue  # that incarnation is gone
            header = protocol.header(protocol.STREAM, worker, epoch)
            pairs = [[sequence, taken] for sequence, taken in rows.items()]
            for first in range(0, len(pairs), _LIMITS.batch_calls_max - 1):
                some = pairs[first : first + _LIMITS.batch_calls_max - 1]
                if not send(worker, epoch, header, codec.encode([self._client_id, *some])):
                    stays[worker, epoch] = dict(pairs[first:])  # type: ignore[arg-type]
                    break
        for address, rows in self._news.items():  # of a send that failed meanwhile
            stays.setdefault(address, {}).update(rows)
        self._news = stays
        return (self.uploads.waiting and self.uploads.flush(send, slot_map)) or bool(stays)

    @property
    def waiting(self) -> bool:
        """Whether producers have to be told something, or to be sent parts of bodies."""
        return bool(self._news) or self.uploads.waiting

    # --- time

    def tick(self, now: float) -> None:
        """Call about every 50 ms: tells producers what was taken, gives up silent ones."""
        for reader in list(self.open.values()):
            reader.on_tick(now)


class Stream(AsyncIterator[T], Generic[T]):
    """The items of a streaming method: ``async for item in stub.method(...)``.

    It ends the producer when it is closed or dropped before its end.  It can be iterated over once, by one
    task at a time.  Errors of the method and of the way are raised after the items that came before them.
    """

    __slots__ = ("_closed", "_future", "_hold", "_leave")

    def __init__(self, future: asyncio.Future[Any], leave: Callable[[Answer], None] | None = None) -> None:
        self._future: asyncio.Future[Any] | None = future
        """The call's outcome, which is `StreamingMethod` if it streams; None once that has come."""
        self._leave = leave
        """Stops the producer of a call from which nothing has come yet."""
        self._hold: Hold | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._closed:
            raise StopAsyncIteration
        if self._future is not None:
            await self._begin(self._future)
        hold = self._hold
        if hold is None:
            raise StopAsyncIteration
        reader = hold.reader
        if not reader.ready:
            await _arrival(reader)
        for item in reader.take():
            return item  # type: ignore[no-any-return]
        raise StopAsyncIteration

    async def result(self) -> Any:
        """For a call that may stream or not: its result, or this stream itself."""
        future = self._future
        if future is None:
            raise RuntimeError("this call was awaited before")
        await asyncio.wait((future,))
        if isinstance(future.exception(), StreamingMethod):
            await self._begin(future)
            return self
        self._future = None
        return future.result()

    async def _begin(self, future: asyncio.Future[Any]) -> None:
        await asyncio.wait((future,))  # which leaves the call alone when it is cancelled itself
        self._future = None
        error = future.exception()
        if error is None:
            raise TypeError(
                "this method returned a single value: `await` the call instead of iterating over it"
            )
        if not isinstance(error, StreamingMethod):
            raise error
        self._hold = error.take_hold()

    async def aclose(self) -> None:
        """Ends the stream; the producer is told at once, and not waited for."""
        self._close()

    def _close(self) -> None:
        self._closed = True
        future, self._future = self._future, None
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.reader.leave()
        elif future is not None:
            if self._leave is not None and not future.done():
                self._leave(future)
            # Where nothing has come yet, the producer is stopped at its first item at the latest.
            future.cancel()

    def __del__(self) -> None:
        future = self._future
        if future is not None and self._leave is not None and not future.done():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                future.get_loop().call_soon_threadsafe(self._leave, future)

    def __await__(self) -> Generator[Any, Any, Any]:
        """There is no single result: raises `TypeError`, and ends the stream."""
        self._close()
        raise TypeError(
            "this method streams its values, so there is no single result to await: write "
            "`async for value in ...`"
        )


async def _arrival(reader: Reader) -> None:
    """Waits until there is something to take."""
    future = asyncio.get_running_loop().create_future()
    reader.wait(lambda: None if future.done() else future.set_result(None))
    try:
        await future
    except BaseException:
        reader.wait_no_more()
        raise


def _now(function: Callable[[], None]) -> None:
    function()
