"""Calls in flight: the pure core of every caller (clients, and workers that call other objects).

Guarantees that each call ends exactly once: with a result, the method's exception, `NotExecuted`, or
`OutcomeUnknown`.  What was not sent ends at its deadline, what was sent at the latest `answer_grace_s`
after it, both within 50 ms.  What surely did not run (a dead or moving worker, a stale slot map) is sent
again until the deadline without the caller noticing.

Calls of one loop tick leave as one message per worker: one message per call carries 30,000 durable
calls a second, tick-coalesced batches 160,000 and more (DESIGN §2).  No sockets, no loop and no clock
in here: links, scheduling and time are handed in.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Protocol

from perdure import codec, protocol
from perdure.answers import read_refused, read_replies, read_stale
from perdure.codec import BadMessage
from perdure.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    OutcomeUnknown,
    Overloaded,
    PerdureError,
    ShardUnavailable,
    from_wire,
)
from perdure.limits import Limits
from perdure.methods import Method
from perdure.pending import Answer, Pending, end
from perdure.slotmap import SlotMap
from perdure.stub import Target

__all__ = ["Caller", "Outgoing"]

_LIMITS = Limits()
# Deadlines are looked at this often; a call ends at most this much later than promised.
_WHEEL_TICKS_PER_S = 20
_GRACE_S = _LIMITS.answer_grace_s
_RETRY_FIRST_S = 0.02
_RETRY_MAX_S = 0.5
_RETRY_DOUBLINGS_MAX = 5  # 0.02 s * 2**5 is beyond _RETRY_MAX_S; without a bound the power overflows
_OLD_TICKS = 10
"""A call is not young any more after this many ticks, 0.5 s."""
# A batch carries one time for all of its calls, so only calls of about the same time travel together.
_STAMP_SLACK_S = 0.005
_ID_FIELD, _TIMEOUT_FIELD = 2, 7  # positions of Item.object_id and Item.timeout_ms in a call's fields


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
        load_exception: Callable[[Any], BaseException],
        want_flush: Callable[[], None],
        want_map: Callable[[], None],
    ) -> None:
        self.client_id = client_id
        self.map: SlotMap | None = None
        self.pending: dict[int, Pending] = {}
        self.late_replies = 0
        self.direct = True
        """Whether calls go to the workers themselves; if not, news of a death overtakes batches on the way
        to the router, which come back unexecuted: whoever sends them says `lose_dead` after that."""
        self.same_clock = True
        """Whether the workers' monotonic clock is this one; if not, batches carry no time."""
        self._pack = codec.make_packer()
        self._clock = clock
        self._random = random_source
        self._load_exception = load_exception
        self._want_flush = want_flush
        self._want_map = want_map
        self._sequence = 0
        self._flushes = 0
        self._marks: deque[int] = deque([0], maxlen=_OLD_TICKS)
        """The last sequence at each of the last ticks: calls up to the first of them are not young."""
        self._queues: dict[int, list[Pending]] = {}
        self._queued_bytes = 0
        self._flush_wanted = False
        self._wheel: dict[int, list[tuple[int, int]]] = {}
        """Deadline in wheel ticks -> first and last sequence of each run of calls with that deadline.

        Runs, because an entry stays until the deadline, also when its call has long ended: a number for
        each call would be 200 MB at 180,000 calls a second.
        """
        self._bucket = -1
        self._first = 0
        """The run that the next call with the same deadline belongs to."""
        self._wheel_done = int(clock() * _WHEEL_TICKS_PER_S)
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
        slot_map = self.map
        if slot_map is None:
            worker = 0
        else:
            owners = slot_map.owners
            worker = owners[hashed % len(owners)]
        context = None if chain is None and request is None else [chain, request and list(request)]
        fields = [0, namespace, object_id, name, method, args, kwargs, int(timeout_s * 1000) or 1, context]
        self._start(fields, worker, timeout_s, spec, answer)

    def call_worker(
        self, worker: int, method: str, args: list[Any], timeout_s: float, answer: Answer
    ) -> None:
        """Calls one of the worker's own methods (`list`, `stats`)."""
        fields = [0, "", b"", None, method, args, None, int(timeout_s * 1000), None]
        self._start(fields, worker, timeout_s, None, answer)

    def _start(
        self, fields: list[Any], worker: int, timeout_s: float, spec: Method | None, answer: Answer
    ) -> None:
        sequence = fields[0] = self._sequence = self._sequence + 1
        try:
            item = self._pack(fields)
            if self._queued_bytes + len(item) > _LIMITS.message_bytes_max:
                self._check_size(item)
        except PerdureError as error:
            end(answer, error)
            return
        except Exception:
            end(answer, self._unencodable(fields))
            return
        now = self._clock()
        deadline = now + timeout_s
        pending = self.pending[sequence] = Pending(fields, item, worker, now, deadline, answer, spec)
        bucket = int(deadline * _WHEEL_TICKS_PER_S)
        if bucket != self._bucket:
            self._end_run(sequence - 1)
            self._bucket, self._first = bucket, sequence
        self._queued_bytes += len(item)
        queue = self._queues.get(worker)
        if queue is None:
            self._queues[worker] = [pending]
        else:
            queue.append(pending)
        if not self._flush_wanted:
            self._flush_wanted = True
            self._want_flush()

    def _end_run(self, last: int) -> None:
        if self._bucket >= 0:
            self._wheel.setdefault(self._bucket, []).append((self._first, last))
            self._bucket = -1

    def _enqueue(self, pending: Pending) -> None:
        self._queued_bytes += len(pending.item)
        self._queues.setdefault(pending.worker, []).append(pending)
        if not self._flush_wanted:
            self._flush_wanted = True
            self._want_flush()

    def _check_size(self, item: bytes) -> None:
        if len(item) > _LIMITS.message_bytes_max:
            raise MessageTooLarge(
                f"the call has {len(item)} bytes encoded; the limit is {_LIMITS.message_bytes_max}",
                size=len(item),
                limit=_LIMITS.message_bytes_max,
            )
        if self._queued_bytes + len(item) > _LIMITS.client_queue_bytes_max:
            raise Overloaded(
                "too many bytes wait in this client for workers that do not take them",
                limit="client_queue_bytes_max",
            )

    def _unencodable(self, fields: list[Any]) -> PerdureError:
        try:
            codec.encode(fields)
        except InvalidArgument as error:
            return InvalidArgument(f"{fields[1]}.{fields[4]}(): an argument cannot be sent: {error}")
        return InvalidArgument(f"{fields[1]}.{fields[4]}(): the arguments cannot be sent")

    # --- sending

    def flush(self, send: Outgoing) -> bool:
        """Sends everything that can leave; returns whether something had to stay (try again soon)."""
        self._flush_wanted = False
        waiting = False
        slot_map = self.map
        head = self._head() if self._queues else b""
        for worker, queue in list(self._queues.items()):
            if slot_map is None or worker >= len(slot_map.seats) or not slot_map.seats[worker].endpoint:
                continue  # a new map will bring a flush
            epoch = slot_map.seats[worker].epoch
            sent = 0
            try:
                for batch, size in self._batches(queue):
                    items = [pending.item for pending in batch]
                    body = b"".join((protocol.array_header(len(items) + 1), head, *items))
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
        return waiting

    def _head(self) -> bytes:
        """Who calls, and which of its calls have ended (see `protocol`).

        A few old calls are listed one by one, so that a slow one does not hide that those after it ended.
        """
        self._flushes += 1
        old, floor = self._marks[0], self._sequence + 1
        stragglers: list[int] = []
        for sequence in self.pending:  # in the order of sequences
            if sequence > old or len(stragglers) == _LIMITS.stragglers_max:
                floor = sequence
                break
            stragglers.append(sequence)
        return self._pack([self.client_id, self._flushes, floor, *stragglers])

    def _batches(self, queue: list[Pending]) -> Iterator[tuple[list[Pending], int]]:
        size = sum([len(pending.item) for pending in queue])
        if (
            size <= _LIMITS.batch_bytes_max
            and len(queue) < _LIMITS.batch_calls_max
            and queue[-1].encoded_at - queue[0].encoded_at <= _STAMP_SLACK_S
        ):
            yield queue[:], size
            return
        batch: list[Pending] = []
        size = 0
        for pending in queue:
            if batch and (
                size + len(pending.item) > _LIMITS.batch_bytes_max
                or len(batch) >= _LIMITS.batch_calls_max - 1
                or pending.encoded_at - batch[0].encoded_at > _STAMP_SLACK_S
            ):
                yield batch, size
                batch, size = [], 0
            batch.append(pending)
            size += len(pending.item)
        yield batch, size

    # --- what comes back

    def on_replies(self, epoch: int, body: bytes) -> None:
        """REPLIES of a worker's incarnation; what is of an older one is dropped.  Raises `BadMessage`."""
        replies = read_replies(body)
        pending_calls = self.pending
        try:
            for sequence, status, payload in replies:
                pending = pending_calls.get(sequence)
                if pending is None or pending.epoch != epoch:
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
        else:
            self._fail(pending, error)

    def on_stale(self, body: bytes) -> None:
        """STALE: a batch came back unexecuted, perhaps with a newer map; its calls are sent again.

        Raises `InvalidArgument` for what is no such message.
        """
        slot_map, sequences = read_stale(body)
        calls = self._in_flight(sequences)
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
        # In the order of their times, which `_batches` relies on; calls to one object keep their order.
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
        for worker, epoch in {(p.worker, p.epoch) for p in self.pending.values() if p.epoch} - live:
            self.on_death(worker, epoch)

    def on_death(self, worker: int, epoch: int) -> None:
        """An incarnation is gone: what was sent to it may or may not have happened."""
        lost = [p for p in self.pending.values() if p.epoch == epoch and p.worker == worker]
        self._lose(lost, f"worker {worker} died")

    def on_router_lost(self) -> None:
        """The router that carried all calls is gone, and their answers with it."""
        self._lose([p for p in self.pending.values() if p.epoch], "the router died")

    def _lose(self, lost: list[Pending], why: str) -> None:
        text = f"{why} while it had this call; it may or may not have taken effect"
        for pending in lost:
            self._fail(pending, OutcomeUnknown(text))

    # --- sending again

    def _send_again(self, pending: Pending) -> None:
        pending.epoch = 0
        now = self._clock()
        left = pending.deadline - now
        if left <= 0:
            self._expire(pending)
            return
        # The encoded call with another number in it: the caller may have changed the arguments since.
        parts = codec.split_array(pending.item)
        parts[_TIMEOUT_FIELD] = self._pack(max(1, int(left * 1000)))
        pending.item = b"".join((protocol.array_header(len(parts)), *parts))
        pending.encoded_at = now
        self._place(pending)

    def _place(self, pending: Pending) -> None:
        if pending.answer.done():  # cancelled before it was sent: nobody waits for it
            self.pending.pop(pending.sequence, None)
            return
        object_id = pending.fields[_ID_FIELD]
        if self.map is not None and object_id:
            pending.worker = self.map.worker_of(object_id)
        self._enqueue(pending)

    def _retry_later(self, pending: Pending) -> None:
        pending.epoch = 0
        doublings = min(pending.attempts, _RETRY_DOUBLINGS_MAX)
        pending.attempts += 1
        pause = min(_RETRY_MAX_S, _RETRY_FIRST_S * 2**doublings) * (0.5 + self._random.random())
        now = self._clock()
        if now < pending.deadline:
            self._delayed.append((now + pause, pending.sequence))
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
        self._marks.append(self._sequence)
        current = int(now * _WHEEL_TICKS_PER_S)
        unsent: set[int] = set()
        for bucket in range(self._wheel_done, current):
            if bucket == self._bucket:
                self._end_run(self._sequence)
            for first, last in self._wheel.pop(bucket, ()):
                for sequence in range(first, last + 1):
                    late = self.pending.get(sequence)
                    if late is not None:
                        self._end_late(late, now, unsent)
        self._wheel_done = max(self._wheel_done, current)
        for worker in unsent:
            self._drop_ended(worker)

    def _end_late(self, pending: Pending, now: float, unsent: set[int]) -> None:
        """Ends a call at its deadline; when it was sent, `answer_grace_s` later."""
        end_of_grace = pending.deadline + _GRACE_S
        if pending.epoch and now < end_of_grace:
            run = (pending.sequence, pending.sequence)
            self._wheel.setdefault(int(end_of_grace * _WHEEL_TICKS_PER_S), []).append(run)
            return
        if not pending.epoch:
            unsent.add(pending.worker)
        self._expire(pending)

    def _drop_ended(self, worker: int) -> None:
        queue = self._queues.pop(worker, [])
        kept = [pending for pending in queue if pending.sequence in self.pending]
        self._queued_bytes -= sum([len(pending.item) for pending in queue])
        self._queued_bytes += sum([len(pending.item) for pending in kept])
        if kept:
            self._queues[worker] = kept

    def _expire(self, pending: Pending) -> None:
        if pending.epoch:
            error: PerdureError = OutcomeUnknown(
                "no answer came until the deadline; the call may or may not have taken effect"
            )
        elif pending.attempts or self.map is None or not self._seated(pending.worker):
            error = ShardUnavailable(
                f"worker {pending.worker} was not available until the deadline; nothing happened"
            )
        else:
            error = DeadlineExceeded("the deadline passed before the call could be sent; nothing happened")
        self._fail(pending, error)

    def _seated(self, worker: int) -> bool:
        seats = self.map.seats if self.map is not None else ()
        return worker < len(seats) and bool(seats[worker].endpoint)

    def close(self) -> None:
        """Ends every call: sent ones with `OutcomeUnknown`, the others with `ShardUnavailable`.

        Calls that are made afterwards end with `ShardUnavailable` too.
        """
        self._pack = self._refuse
        for pending in self.pending.values():
            answer = pending.answer
            if answer.done():
                continue
            if pending.epoch:
                answer.set_exception(OutcomeUnknown("this client was closed before the answer came"))
            else:
                answer.set_exception(ShardUnavailable("this client was closed before the call was sent"))
            # Seen: nobody may want the outcome, and asyncio reports errors that nobody looked at.
            answer.exception()
        self.pending.clear()
        self._queues.clear()
        self._queued_bytes = 0
        self._wheel.clear()
        self._bucket = -1
        self._delayed.clear()

    def _refuse(self, _: object) -> NoReturn:
        raise ShardUnavailable("this client is closed; connect again for further calls")

    def _fail(self, pending: Pending, error: BaseException) -> None:
        if self.pending.pop(pending.sequence, None) is not None:
            end(pending.answer, error)
