"""The producer's side of streams: async-generator methods, driven item by item within one turn.

Guarantees: a stream is one turn of its object, from the call to the generator's end, so no other serial
turn runs in between.  Each value that it yields is an output and a commit point: what was written until
then is durable before the value leaves, values leave in order, and what is raised later takes back only
what was written since the last value.  The producer is never more than a window ahead of its reader: it
waits at its `yield`.  It is stopped when the reader leaves, is gone or reads nothing for
`stream_idle_max_s`, and when the worker stops: the object is as at the last value, the generator meets
`GeneratorExit` at its `yield` (`CancelledError` where it waits for something else), and what its `finally`
blocks write is kept.  Runs in the worker's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from perdure import codec, protocol
from perdure.codec import SCALARS
from perdure.errors import InvalidArgument, OutcomeUnknown, PerdureError
from perdure.methods import Method
from perdure.streams import STOP
from perdure_worker.peers import Peer
from perdure_worker.resident import Resident
from perdure_worker.turns import TURN_METHOD, TURN_PEER, TURN_SEQUENCE, Turn, TurnTask
from perdure_worker.web_bodies import Bodies
from perdure_worker.web_methods import HandlerMethod

if TYPE_CHECKING:
    from perdure_worker.execution import Execution

__all__ = ["Production", "StreamEnd", "Streams"]

log = logging.getLogger("perdure.worker")

_PLAIN = SCALARS | {str}
_PROBE_S = 1.0
"""A reader that is waited for is sent something this often, which shows whether its connection stands."""

_BEGUN = OutcomeUnknown(
    "this call has streamed before, and what it yielded cannot be given again; read the state instead"
)

Key = tuple[bytes, bytes | None, int]


class Production:
    """One open stream."""

    __slots__ = (
        "count",
        "heard",
        "method",
        "peer",
        "probed",
        "recorded",
        "resident",
        "sequence",
        "since",
        "sizes",
        "stop",
        "stopped",
        "taken",
        "task",
        "unread_bytes",
        "waiter",
    )

    def __init__(self, resident: Resident, turn: Turn, task: Any, now: float) -> None:
        self.resident = resident
        self.peer: Peer = turn[TURN_PEER]
        self.sequence = turn[TURN_SEQUENCE]
        self.method: Method = turn[TURN_METHOD]
        self.task: TurnTask | None = task
        self.count = 0
        """Items that were yielded."""
        self.taken = 0
        """Items that the reader has taken."""
        self.sizes: deque[int] = deque()
        """Encoded sizes of those that it has not."""
        self.unread_bytes = 0
        self.since = now
        """When the generator was asked for its next item."""
        self.waiter: asyncio.Future[None] | None = None
        """There while the producer waits at its `yield` for its reader."""
        self.heard = self.probed = now
        self.recorded = False
        """Whether a retry of the call would be known as such."""
        self.stopped = False
        self.stop: PerdureError | None = None
        """What the reader is told, where it was stopped for another reason than its own."""


class StreamEnd:
    """What the turn of a stream results in."""

    __slots__ = ("stream",)

    def __init__(self, stream: Production) -> None:
        self.stream = stream


class Streams:
    """The open streams of a worker's objects."""

    def __init__(self, host: Execution) -> None:
        self._host = host
        self._clock = host.clock
        self._limits = host.limits
        self._pack = codec.make_packer()
        self._open: dict[Key, Production] = {}
        self.bodies = Bodies(host)
        """What goes the other way: requests whose `fetch` runs."""
        self._drained_at = float("inf")

    def __len__(self) -> int:
        return len(self._open)

    def __bool__(self) -> bool:
        return bool(self._open) or bool(self.bodies)

    def has(self, turn: Turn) -> bool:
        """Whether this turn streams by now."""
        return bool(self._open) and self._of(turn) is not None

    def _of(self, turn: Turn) -> Production | None:
        peer = turn[TURN_PEER]
        if type(peer) is not Peer:
            return None
        stream = self._open.get((peer.identity, peer.origin, turn[TURN_SEQUENCE]))
        return stream if stream is not None and stream.resident.turn is turn else None

    # --- a stream's turn

    def body(self, resident: Resident, turn: Turn, method: Method) -> Callable[..., Any]:
        """What runs for a method that is no plain one."""
        if isinstance(method, HandlerMethod):
            return partial(method.serve, self._host, resident, turn)
        if method.is_generator:
            return partial(self.produce, resident, turn)
        return partial(self._host._threads.run, method.function)

    async def produce(self, resident: Resident, turn: Turn, /, *args: Any, **keywords: Any) -> StreamEnd:
        """The whole turn; raises what the generator raises."""
        return await self.drive(resident, turn, turn[TURN_METHOD].function(*args, **keywords))

    async def drive(self, resident: Resident, turn: Turn, generator: AsyncGenerator[Any, Any]) -> StreamEnd:
        """From here on the turn streams what the generator yields."""
        stream = Production(resident, turn, asyncio.current_task(), self._clock())
        key = stream.peer.identity, stream.peer.origin, stream.sequence
        self._open[key] = stream
        try:
            try:
                await self._drive(stream, generator)
            finally:
                await generator.aclose()
        finally:
            stream.task = None  # a reference that stays would cost the host its spare task
            if self._open.get(key) is stream:
                del self._open[key]
        return StreamEnd(stream)

    async def _drive(self, stream: Production, generator: AsyncGenerator[Any, Any]) -> None:
        step: Callable[[], Awaitable[Any]] = generator.__anext__
        while True:
            stream.since = self._clock()
            try:
                value = await step()
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if stream.stopped:
                    return
                raise
            if stream.stopped:  # it caught its cancellation and went on
                self._host.discard(stream.resident)
                return
            self._put(stream, value)
            step = generator.__anext__
            if self._is_full(stream) or self._host.paused:
                try:
                    await self._room(stream)
                except asyncio.CancelledError as error:
                    # Whatever cancels the turn (its own `asyncio.timeout`, say) is meant for the generator.
                    step = partial(generator.athrow, error)
                if stream.stopped:
                    return

    def _put(self, stream: Production, value: Any) -> None:
        """An item: a commit point, and an output behind the gate."""
        host, method, sequence = self._host, stream.method, stream.sequence
        if type(value) is not method.result_exact:
            value = method.dump_result(value)
        if type(value) in _PLAIN:
            reply = self._pack([sequence, protocol.STATUS_ITEM, value])
        else:
            reply = b"\x93" + self._pack(sequence) + bytes((protocol.STATUS_ITEM,)) + codec.encode(value)
        host.check_size(reply, stream.resident.turn)
        host.commit_point(stream.resident, stream.resident.turn)
        if not stream.recorded:
            self._record(stream)
        stream.count += 1
        stream.sizes.append(len(reply))
        stream.unread_bytes += len(reply)
        ticket = stream.resident.ticket
        if ticket > host.durable:
            host.gate.hold(ticket, (host.reply_item, stream.peer, sequence, reply))
        else:
            host.reply_item(stream.peer, sequence, reply)
            host.want_flush()

    def _record(self, stream: Production) -> None:
        """A stream that has written is known by its request, so that a retry does not run it again.

        Its reader may have seen a part, which no record can give back: the retry learns just that.
        """
        host, resident = self._host, stream.resident
        progress = host.progress.get(id(resident.turn))
        if progress is not None and progress.wrote:
            stream.recorded = True
            host._join(resident, [])
            host.record(resident, resident.turn, host.error_reply(stream.sequence, _BEGUN), progress)

    def _is_full(self, stream: Production) -> bool:
        limits = self._limits
        return (
            stream.count - stream.taken >= limits.stream_window_items
            or stream.unread_bytes >= limits.stream_window_bytes
        )

    async def _room(self, stream: Production) -> None:
        """Waits until the producer may go on, or is stopped."""
        stream.heard = self._clock()
        while self._is_full(stream) and not stream.stopped:
            stream.waiter = self._host.loop.create_future()
            try:
                await stream.waiter
            finally:
                stream.waiter = None
        if self._host.paused and not stream.stopped:  # too many bytes wait for the disk
            await self._host.sync(stream.resident)

    def finish(self, resident: Resident, turn: Turn, end: StreamEnd) -> None:
        """The turn of a stream has ended well; raises when its last writes cannot be stored."""
        host, stream = self._host, end.stream
        host.commit_point(resident, turn)
        if not stream.recorded:
            self._record(stream)
        progress = host.progress.pop(id(turn), None)
        resident.turn = None
        if stream.stop is None:
            reply = self._pack([stream.sequence, protocol.STATUS_END, stream.count])
        else:
            reply = host.error_reply(stream.sequence, stream.stop)
        host.gate.hold(resident.ticket, (host.reply, stream.peer, stream.sequence, reply))
        if progress is not None and progress.more:
            host.reply_more(resident, progress, host.error_reply(stream.sequence, _BEGUN))
        host.on_idle(resident)

    def time_left(self, turn: Turn) -> float:
        """Seconds until the turn limit, which is for each item; waiting for the reader does not count."""
        stream = self._of(turn)
        if stream is None or stream.resident.doomed is not None:
            return 0.0
        if stream.waiter is not None:
            return self._limits.turn_max_s
        return stream.since + self._limits.turn_max_s - self._clock()

    # --- readers

    def on_message(self, identity: bytes, origin: bytes | None, body: bytes) -> None:
        """STREAM: what readers have taken, and which have left.  Raises `InvalidArgument`.

        What is said of a stream that is not open (any more) means nothing.  Without a body it comes from the
        router: the reader is gone.
        """
        if not body:
            for left in list(self._open.values()):
                if (left.peer.identity, left.peer.origin) == (identity, origin):
                    self._stop(left)
            return
        rows = codec.decode(body)
        if type(rows) is not list or len(rows) > self._limits.batch_calls_max:
            raise InvalidArgument("news of streams are a list: the client's id, then [sequence, items taken]")
        for row in rows[1:]:
            if type(row) is not list or len(row) < 2 or type(row[0]) is not int or type(row[1]) is not int:
                raise InvalidArgument("news of a stream are a list of two integers: sequence, items taken")
            stream = self._open.get((identity, origin, row[0]))
            if stream is None:
                if row[1] == STOP:
                    self.bodies.left(identity, origin, row[0])
            elif row[1] == STOP:
                self._stop(stream)
            else:
                self._on_taken(stream, row[1])

    def _on_taken(self, stream: Production, taken: int) -> None:
        stream.heard = self._clock()
        if not stream.taken < taken <= stream.count:
            return
        for _ in range(taken - stream.taken):
            stream.unread_bytes -= stream.sizes.popleft()
        stream.taken = taken
        if stream.waiter is not None and not stream.waiter.done() and not self._is_full(stream):
            stream.waiter.set_result(None)

    def _stop(self, stream: Production, why: PerdureError | None = None) -> None:
        """The producer ends; what it did since its last item is taken back."""
        if stream.stopped:
            return
        stream.stopped = True
        stream.stop = why
        stream.since = self._clock()
        if stream.waiter is not None:  # at its `yield`
            if not stream.waiter.done():
                stream.waiter.set_result(None)
        elif stream.task is not None:
            try:
                self._host.discard(stream.resident)
            except BaseException as error:  # a user's class refuses the value that it saved itself
                stream.resident.doomed = error
            stream.task.cancel("the stream's reader has left")

    # --- time

    def drain(self) -> None:
        """The worker stops: streams go on for a moment, then they are stopped."""
        self._drained_at = self._clock() + self._limits.stream_drain_s

    def tick(self) -> None:
        """Call about every 50 ms: stops streams whose readers are gone or silent."""
        now = self._clock()
        self.bodies.tick(now, stopping=now >= self._drained_at)
        for stream in list(self._open.values()):
            if stream.peer.gone:
                self._stop(stream)
            elif now >= self._drained_at:
                self._stop(stream, OutcomeUnknown("the worker is stopping, and has ended this stream"))
            elif stream.waiter is not None:
                self._look_at_reader(stream, now)

    def _look_at_reader(self, stream: Production, now: float) -> None:
        silence_max_s = self._limits.stream_idle_max_s
        if now - stream.heard > silence_max_s:
            log.warning(
                "a stream is ended, because nothing of it was read",
                extra={"object": stream.resident.label, "method": stream.method.name},
            )
            text = f"nothing of this stream was read for {silence_max_s:g} s, so its producer was stopped"
            self._stop(stream, OutcomeUnknown(text))
        elif now - max(stream.heard, stream.probed) > _PROBE_S:
            stream.probed = now
            self._host.peers.probe(stream.peer)
            self._host.want_flush()
