"""Calls in flight: the pure core of every caller (clients, and workers that call other objects).

Guarantees that each call ends exactly once: with a result, the method's exception, `NotExecuted`, or
`OutcomeUnknown`.  What was not sent ends at its deadline, what was sent at the latest `answer_grace_s`
after it, both within 50 ms.  What surely did not run (a dead or moving worker, a stale slot map) is sent
again until the deadline without the caller noticing.  So is what was lost with a worker, a connection or a
router, under the same request id: workers answer it from their records if it took effect (unless the
caller wants no such retries; then it ends as `OutcomeUnknown` at once).

Calls of one loop tick leave as one message per worker: one message per call carries 30,000 durable
calls a second, tick-coalesced batches 160,000 and more (DESIGN §2).  No sockets, no loop and no clock
in here: links, scheduling and time are handed in.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Protocol

from perdure import codec, endings, protocol
from perdure.answers import read_refused, read_replies, read_stale
from perdure.batches import cut
from perdure.codec import BadMessage
from perdure.deadlines import TICKS_PER_S, Deadlines
from perdure.errors import (
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    PerdureError,
    ShardUnavailable,
    from_wire,
)
from perdure.limits import Limits
from perdure.methods import Method
from perdure.pacing import Pacing
from perdure.pending import Answer, Pending, end, unencodable
from perdure.protocol import Item
from perdure.slotmap import SlotMap
from perdure.streams import Streams
from perdure.stub import Target

__all__ = ["Caller", "Outgoing"]

_LIMITS = Limits()
_GRACE_S = _LIMITS.answer_grace_s
_OLD_TICKS = 10
"""A call is not young any more after this many ticks, 0.5 s."""
_CALL_HEADER = protocol.array_header(len(Item._fields))
_TAIL_HEADER = protocol.array_header(len(Item._fields) - 1)
_SEQUENCE_BYTES = 10  # at most, with the header of the list
_TIMEOUT_FIELD = 6  # position of Item.timeout_ms in a call's encoding behind the sequence


class Outgoing(Protocol):
    """One message ready to leave for `worker` at `epoch`; `False` means: try again later."""

    def __call__(self, worker: int, epoch: int, header: bytes, body: bytes) -> bool: ...


class Caller:
    """All calls of one client.  `client_id` and the growing sequence make each call's request id."""

    def __init__(
        self,
        client_id: bytes,
        *,
        clock: Callable[[], float],
        random_source: random.Random,
        retry: bool = True,
        load_exception: Callable[[Any], BaseException],
        want_flush: Callable[[], None],
        want_map: Callable[[], None],
    ) -> None:
        self.client_id = client_id
        self.map: SlotMap | None = None
        self.pending: dict[int, Pending] = {}
        self.streams = Streams(client_id, self.pending, clock, self._flush_soon, load_exception)
        self.late_replies = 0
        self.direct = True
        """Whether calls go to the workers themselves; if not, news of a death overtakes batches on the way
        to the router, which come back unexecuted: whoever sends them says `lose_dead` after that."""
        self.same_clock = True
        """Whether the workers' clock is this one; if not, batches carry no time."""
        self.pack = codec.make_packer()
        """Encodes values of the types that need no check."""
        self._clock = clock
        self._pacing = Pacing(random_source)
        self._retry = retry
        self._load_exception = load_exception
        self._want_flush = want_flush
        self._want_map = want_map
        self._sequence = 0
        self._flushes = 0
        self._marks: deque[int] = deque([0], maxlen=_OLD_TICKS)
        """The last sequence at each of the last ticks: calls up to the first of them are not young."""
        self._queues: dict[int, list[Pending]] = {}
        self._queued_bytes = 0
        self._unchecked_bytes = _LIMITS.message_bytes_max - _SEQUENCE_BYTES
        """While no more bytes are queued every call is taken; beyond, and when closed, it is looked at."""
        self._closed = False
        self._disowned: str | None = None
        self._flush_wanted = False
        self._deadlines = Deadlines(clock())
        self._delayed: list[tuple[float, int]] = []

    # --- starting calls

    def call(
        self,
        target: Target,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any] | None,
        spec: Method | None,
        answer: Answer,
        chain: list[list[Any]] | None = None,
        request: Sequence[Any] | None = None,
    ) -> None:
        """Starts a call; its outcome goes to `answer`, errors of encoding too.  Never raises.

        `chain` and `request` are those of `protocol.Item.context`; without a request the call's id is this
        client's id and a new sequence.
        """
        namespace, object_id, name, timeout_s, hashed, _ = target
        context = None if chain is None and request is None else [chain, request and list(request)]
        fields = [namespace, object_id, name, method, args, kwargs, int(timeout_s * 1000) or 1, context]
        self._encode_and_begin(target, fields, self.worker_of(hashed), spec, answer)

    def call_worker(
        self, worker: int, method: str, args: list[Any], timeout_s: float, answer: Answer
    ) -> None:
        """Calls one of the worker's own methods (`list`, `stats`)."""
        fields = ["", b"", None, method, args, None, int(timeout_s * 1000), None]
        self._encode_and_begin(Target("", b"", None, timeout_s, 0, {}), fields, worker, None, answer)

    def worker_of(self, hashed: int) -> int:
        """The worker whom the current map gives an id's hash (see `Target`); 0 while there is no map."""
        if self.map is None:
            return 0
        owners = self.map.owners
        return owners[hashed % len(owners)]

    def _encode_and_begin(
        self, target: Target, fields: list[Any], worker: int, spec: Method | None, answer: Answer
    ) -> None:
        try:
            tail = self.pack(fields)[1:]  # without the header of the list: the sequence comes before it
        except Exception:
            end(answer, unencodable(fields))
            return
        pending = Pending()
        pending.answer, pending.target, pending.method, pending.spec = answer, target, fields[3], spec
        self.begin(pending, tail, worker, target.timeout_s)

    def begin(self, pending: Pending, tail: bytes, worker: int, timeout_s: float) -> None:
        """Starts a call that is encoded already (see `Pending.tail`).  Raises only what `disown` says."""
        queued_bytes = self._queued_bytes + len(tail)
        if queued_bytes > self._unchecked_bytes and (error := self._refusal(tail)) is not None:
            end(pending.answer, error)
            return
        self._queued_bytes = queued_bytes
        pending.sequence = sequence = self._sequence = self._sequence + 1
        pending.tail = tail
        pending.worker = worker
        pending.epoch = pending.attempts = 0
        pending.maybe_ran = False
        pending.encoded_at = now = self._clock()
        pending.deadline = deadline = now + timeout_s
        self.pending[sequence] = pending
        bucket = int(deadline * TICKS_PER_S)
        if bucket != self._deadlines.bucket:
            self._deadlines.begin(bucket, sequence)
        queue = self._queues.get(worker)
        if queue is None:
            self._queues[worker] = [pending]
        else:
            queue.append(pending)
        if not self._flush_wanted:
            self._flush_wanted = True
            self._want_flush()

    def _enqueue(self, pending: Pending) -> None:
        self._queued_bytes += len(pending.tail)
        self._queues.setdefault(pending.worker, []).append(pending)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_wanted:
            self._flush_wanted = True
            self._want_flush()

    def _refusal(self, tail: bytes) -> PerdureError | None:
        if self._disowned is not None:
            raise RuntimeError(self._disowned)
        if self._closed:
            return ShardUnavailable("this client is closed; connect again for further calls")
        head_bytes = len(_CALL_HEADER) + len(self.pack(self._sequence + 1))
        return endings.of_size(head_bytes + len(tail), self._queued_bytes)

    # --- sending

    def flush(self, send: Outgoing) -> bool:
        """Sends everything that can leave; returns whether something had to stay (try again soon)."""
        self._flush_wanted = False
        waiting = False
        slot_map = self.map
        head = self._head() if self._queues else b""
        pack = self.pack
        for worker, queue in list(self._queues.items()):
            if slot_map is None or not slot_map.is_seated(worker):
                continue  # a new map will bring a flush
            epoch = slot_map.seats[worker].epoch
            sent = 0
            try:
                for batch, size in cut(queue):
                    parts = [protocol.array_header(len(batch) + 1), head]
                    for pending in batch:
                        parts.append(_CALL_HEADER + pack(pending.sequence))
                        parts.append(pending.tail)
                    body = b"".join(parts)
                    stamp = int(batch[0].encoded_at * 1000) if self.same_clock else 0
                    header = protocol.header(protocol.BATCH, worker, slot_map.version, stamp)
                    if not send(worker, epoch, header, body):
                        waiting = True
                        break
                    for pending in batch:
                        pending.epoch = epoch
                    sent += len(batch)
                    self._queued_bytes -= size
            finally:  # what was sent is never sent twice, even when `send` raises
                if sent == len(queue):
                    del self._queues[worker]
                else:
                    del queue[:sent]
        return (self.streams.waiting and self.streams.flush(send, slot_map)) or waiting

    def _head(self) -> bytes:
        """Who calls, and which of its calls have ended (see `protocol`); a few slow ones are named."""
        self._flushes += 1
        old, floor = self._marks[0], self._sequence + 1
        stragglers: list[int] = []
        for sequence in self.pending:  # in the order of sequences
            if sequence > old or len(stragglers) == _LIMITS.stragglers_max:
                floor = sequence
                break
            stragglers.append(sequence)
        return self.pack([self.client_id, self._flushes, self._sequence, floor, *stragglers])

    # --- what comes back

    def on_replies(self, epoch: int, body: bytes) -> None:
        """REPLIES of a worker's incarnation; what is of an older one is dropped.  Raises `BadMessage`."""
        replies = read_replies(body)
        pending_calls = self.pending
        try:
            for sequence, status, payload in replies:
                pending = pending_calls.get(sequence)
                if pending is None or pending.epoch != epoch:
                    if not self.streams.on_reply(epoch, sequence, status, payload, len(body) // len(replies)):
                        self.late_replies += 1
                    continue
                if status == protocol.STATUS_RESULT:
                    del pending_calls[sequence]
                    answer = pending.answer
                    if not answer.done():
                        spec = pending.spec
                        if spec is None or type(payload) is spec.result_exact:
                            answer.set_result(payload)
                        else:
                            self._load_result(answer, spec, payload)
                elif status == protocol.STATUS_RAISED:
                    self._fail(pending, self._load_exception(payload))
                elif status == protocol.STATUS_ITEM or status == protocol.STATUS_END:
                    del pending_calls[sequence]
                    self.streams.begin(pending, status, payload, len(body) // len(replies))
                else:
                    self._on_error(pending, from_wire(*payload))
        except (TypeError, ValueError) as error:
            raise BadMessage(f"a worker sent what are no replies: {error}") from error

    def _load_result(self, answer: Answer, spec: Method, payload: Any) -> None:
        try:
            result = spec.load_result(payload)
        except Exception as error:  # the classes here and there differ, or a user's validator raised
            answer.set_exception(error)
        else:
            answer.set_result(result)

    def _on_error(self, pending: Pending, error: PerdureError) -> None:
        # The worker holds as many replies for this process as it may: it has them read by the next try.
        unread = isinstance(error, Overloaded) and error.limit == "reply_queue_bytes_max"
        if unread or isinstance(error, ShardUnavailable):
            self._retry_later(pending)
        elif not pending.maybe_ran or not isinstance(error, NotExecuted):
            self._fail(pending, error)
        elif isinstance(error, Overloaded):
            self._retry_later(pending, error.retry_after)
        else:  # this try did not run, but an earlier one may have
            text = f"an earlier try of this call was lost and may have taken effect; the last one: {error}"
            self._fail(pending, OutcomeUnknown(text))

    def on_stale(self, body: bytes) -> None:
        """STALE: a batch came back unexecuted, perhaps with a newer map; its calls are sent again.

        Raises `InvalidArgument` for what is no such message.
        """
        slot_map, sequences = read_stale(body)
        calls = self._in_flight(sequences)
        for pending in calls:
            pending.epoch = 0  # before the map is looked at: they are not among the lost
        news = same = False
        if slot_map is not None:
            news = self.on_map(slot_map)
            same = self.map is not None and self.map.version == slot_map.version
        for pending in calls:
            # A map that is here already was sent after the batch: no need to wait, once.
            if news or (same and not pending.attempts):
                pending.attempts += 1
                self._send_again(pending)
            else:
                self._retry_later(pending)
        if not news:
            self._want_map()

    def on_refused(self, body: bytes) -> None:
        """REFUSED: the receiver did not take a batch; its calls did not run.  Raises `BadMessage`."""
        error, sequences = read_refused(body)
        for pending in self._in_flight(sequences):
            self._on_error(pending, error)

    def _in_flight(self, sequences: list[int]) -> list[Pending]:
        """The calls of a batch that came back, but for those that have ended or wait here already."""
        calls = [self.pending.get(sequence) for sequence in sequences]
        return [pending for pending in calls if pending is not None and pending.epoch]

    def on_map(self, slot_map: SlotMap) -> bool:
        """A slot map came; calls on dead incarnations end now, waiting ones move.  False if it is old."""
        old = self.map
        if old is not None and slot_map.version <= old.version:
            return False
        self.map = slot_map
        if self.direct:
            self.lose_dead()
        # In the order of their times, which `cut` relies on; calls to one object keep their order.
        waiting = sorted(
            [pending for queue in self._queues.values() for pending in queue], key=lambda p: p.encoded_at
        )
        self._queues.clear()
        self._queued_bytes = 0
        for pending in waiting:
            self._place(pending)
        return True

    def lose_dead(self) -> None:
        """Ends the calls on incarnations that the map does not have any more."""
        seats = self.map.seats if self.map is not None else ()
        live = {(i, seat.epoch) for i, seat in enumerate(seats) if seat.endpoint}
        known = self.streams.addresses() | {(p.worker, p.epoch) for p in self.pending.values() if p.epoch}
        for worker, epoch in known - live:
            self.on_death(worker, epoch)

    def on_death(self, worker: int, epoch: int) -> None:
        """An incarnation is gone: what was sent to it may or may not have happened."""
        lost = [p for p in self.pending.values() if p.epoch == epoch and p.worker == worker]
        self._lose(lost, f"worker {worker} died", (worker, epoch))

    def on_router_lost(self) -> None:
        """The router that carried all calls is gone, and their answers with it."""
        self._lose([p for p in self.pending.values() if p.epoch], "the router died")

    def _lose(self, lost: list[Pending], why: str, address: tuple[int, int] | None = None) -> None:
        """What was sent is sent again: its worker, or the successor, knows what took effect."""
        self.streams.lose(why, address)
        if not self._retry:
            text = f"{why} while it had this call; it may or may not have taken effect"
            for pending in lost:
                self._fail(pending, OutcomeUnknown(text))
            return
        # With those that wait behind them, so that calls to one object keep their order.
        workers = {pending.worker for pending in lost}
        waiting = [pending for worker in workers for pending in self._queues.pop(worker, [])]
        self._queued_bytes -= sum([len(pending.tail) for pending in waiting])
        for pending in lost:
            pending.epoch, pending.maybe_ran = 0, True
        now = self._clock()
        for pending in sorted([*lost, *waiting], key=attrgetter("sequence")):
            when = self._pacing.allow(now) if pending.maybe_ran else now
            if when > now:
                self._delayed.append((when, pending.sequence))
            else:
                self._send_again(pending)

    # --- sending again

    def _send_again(self, pending: Pending) -> None:
        pending.epoch = 0
        now = self._clock()
        left = pending.deadline - now
        if left <= 0:
            self._expire(pending)
            return
        # The encoded call with another number in it: the caller may have changed the arguments since.
        parts = codec.split_array(_TAIL_HEADER + pending.tail)
        parts[_TIMEOUT_FIELD] = self.pack(max(1, int(left * 1000)))
        pending.tail = b"".join(parts)
        pending.encoded_at = now
        self._place(pending)

    def _place(self, pending: Pending) -> None:
        if pending.answer.done():  # cancelled before it was sent: nobody waits for it
            self.pending.pop(pending.sequence, None)
            return
        if self.map is not None and pending.target.object_id:
            pending.worker = self.map.worker_of(pending.target.object_id)
        self._enqueue(pending)

    def _retry_later(self, pending: Pending, at_least_s: float = 0.0) -> None:
        pending.epoch = 0
        now = self._clock()
        pause = max(self._pacing.pause(pending.attempts), at_least_s)
        pending.attempts += 1
        if now < pending.deadline:
            self._delayed.append((self._pacing.allow(now + pause), pending.sequence))
        else:
            self._expire(pending)

    # --- time

    def tick(self) -> None:
        """Call about every 50 ms: sends delayed retries, ends calls whose deadline has passed."""
        now = self._clock()
        if self._delayed:
            due = [sequence for when, sequence in self._delayed if when <= now]
            self._delayed = [row for row in self._delayed if row[0] > now]
            for sequence in due:
                pending = self.pending.get(sequence)
                if pending is not None:
                    self._send_again(pending)
        self.streams.tick(now)
        self._marks.append(self._sequence)
        unsent: set[int] = set()
        for sequence in self._deadlines.due(now, self._sequence):
            late = self.pending.get(sequence)
            if late is not None:
                self._end_late(late, now, unsent)
        for worker in unsent:
            self._drop_ended(worker)

    def _end_late(self, pending: Pending, now: float, unsent: set[int]) -> None:
        """Ends a call at its deadline; when it was sent, `answer_grace_s` later."""
        end_of_grace = pending.deadline + _GRACE_S
        if pending.epoch and now < end_of_grace:
            self._deadlines.again(pending.sequence, end_of_grace)
            return
        if not pending.epoch:
            unsent.add(pending.worker)
        self._expire(pending)

    def _drop_ended(self, worker: int) -> None:
        queue = self._queues.pop(worker, [])
        kept = [pending for pending in queue if pending.sequence in self.pending]
        self._queued_bytes -= sum([len(pending.tail) for pending in queue])
        self._queued_bytes += sum([len(pending.tail) for pending in kept])
        if kept:
            self._queues[worker] = kept

    def _expire(self, pending: Pending) -> None:
        self.streams.give_up(pending)
        seated = self.map is not None and self.map.is_seated(pending.worker)
        self._fail(pending, endings.at_deadline(pending, seated))

    def close(self) -> None:
        """Ends every call, later ones too; the next `flush` is the last, and stops streams' producers."""
        self._closed = True
        self._unchecked_bytes = -1
        self.streams.lose("this client was closed", stop=True)
        for pending in self.pending.values():
            answer = pending.answer
            if answer.done():
                continue
            answer.set_exception(endings.at_close(pending))
            # Seen: nobody may want the outcome, and asyncio reports errors that nobody looked at.
            answer.exception()
        self.pending.clear()
        self._queues.clear()
        self._queued_bytes = 0
        self._deadlines.clear()
        self._delayed.clear()

    def disown(self, why: str) -> None:
        """From now on `begin` raises `RuntimeError(why)`: what is noted here are another process's calls."""
        self._disowned = why
        self._unchecked_bytes = -1

    def _fail(self, pending: Pending, error: BaseException) -> None:
        if self.pending.pop(pending.sequence, None) is not None:
            end(pending.answer, error)
