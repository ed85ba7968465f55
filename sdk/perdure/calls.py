"""Calls in flight: the pure core of every caller (clients, and workers that call other objects).

Guarantees that each call ends exactly once: with a result, the method's exception, `NotExecuted`, or
`OutcomeUnknown`, at the latest `answer_grace_s` after its deadline.  What surely did not run (a dead
or moving worker, a stale slot map) is sent again until the deadline without the caller noticing.

Calls of one loop tick leave as one message per worker: one message per call carries 30,000 durable
calls a second, tick-coalesced batches 160,000 and more (DESIGN §2).  No sockets, no loop and no clock
in here: links, scheduling and time are handed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from perdure import codec, protocol
from perdure.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    OutcomeUnknown,
    Overloaded,
    PerdureError,
    ShardUnavailable,
    from_wire,
    to_wire,
)
from perdure.limits import Limits
from perdure.methods import Method
from perdure.slotmap import SlotMap, slot_map_from_wire
from perdure.stub import Target

__all__ = ["Answer", "Caller", "Outgoing", "Pending"]

_LIMITS = Limits()
# Deadlines are looked at this often; a call ends at most this much later than promised.
_WHEEL_TICKS_PER_S = 20
_GRACE_S = _LIMITS.answer_grace_s
_RETRY_FIRST_S = 0.02
_RETRY_MAX_S = 0.5
_ID_FIELD, _TIMEOUT_FIELD = 2, 7  # positions of Item.object_id and Item.timeout_ms in a call's fields


class Answer(Protocol):
    """Where a call's outcome goes: asyncio's and concurrent.futures' Future both fit."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class Pending:
    """One call that has not ended."""

    __slots__ = ("answer", "attempts", "deadline", "epoch", "fields", "item", "spec", "worker")

    def __init__(
        self,
        fields: list[Any],
        item: bytes,
        worker: int,
        deadline: float,
        answer: Answer,
        spec: Method | None,
    ) -> None:
        self.fields = fields
        self.item = item
        self.worker = worker
        self.deadline = deadline
        self.answer = answer
        self.spec = spec
        self.epoch = 0
        """Epoch of the incarnation that it was sent to; 0 while nothing was sent."""
        self.attempts = 0


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
        self._prefix = codec.encode(client_id)
        self._pack = codec.make_packer()
        self._clock = clock
        self._random = random_source
        self._load_exception = load_exception
        self._want_flush = want_flush
        self._want_map = want_map
        self._sequence = 0
        self._queues: dict[int, list[Pending]] = {}
        self._queued_bytes = 0
        self._flush_wanted = False
        self._wheel: dict[int, list[int]] = {}
        self._bucket = -1
        self._row: list[int] = []
        """The wheel's row of `_bucket`, where the last call's deadline went: the next one's goes there too."""
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
    ) -> None:
        """Starts a call; its outcome goes to `answer`, errors of encoding too.  Never raises."""
        namespace, object_id, name, timeout_s, hashed, _ = target
        slot_map = self.map
        if slot_map is None:
            worker = 0
        else:
            owners = slot_map.owners
            worker = owners[hashed % len(owners)]
        fields = [0, namespace, object_id, name, method, args, kwargs, int(timeout_s * 1000) or 1, chain]
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
            answer.set_exception(error)
            return
        except Exception:
            answer.set_exception(self._unencodable(fields))
            return
        deadline = self._clock() + timeout_s
        pending = self.pending[sequence] = Pending(fields, item, worker, deadline, answer, spec)
        bucket = int((deadline + _GRACE_S) * _WHEEL_TICKS_PER_S) + 1
        if bucket == self._bucket:
            self._row.append(sequence)
        else:
            self._bucket = bucket
            self._row = self._wheel.setdefault(bucket, [])
            self._row.append(sequence)
        self._queued_bytes += len(item)
        queue = self._queues.get(worker)
        if queue is None:
            self._queues[worker] = [pending]
        else:
            queue.append(pending)
        if not self._flush_wanted:
            self._flush_wanted = True
            self._want_flush()

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
        for worker, queue in list(self._queues.items()):
            if slot_map is None or worker >= len(slot_map.seats) or not slot_map.seats[worker].endpoint:
                continue  # a new map will bring a flush
            epoch = slot_map.seats[worker].epoch
            sent = 0
            for batch, size in self._batches(queue):
                items = [pending.item for pending in batch]
                body = b"".join((protocol.array_header(len(items) + 1), self._prefix, *items))
                stamp = int(self._clock() * 1000)
                header = protocol.header(protocol.BATCH, worker, slot_map.version, stamp)
                if not send(worker, epoch, header, body):
                    waiting = True
                    break
                for pending in batch:
                    pending.epoch = epoch
                sent += len(batch)
                self._queued_bytes -= size
            if sent == len(queue):
                del self._queues[worker]
            else:
                del queue[:sent]
        return waiting

    def _batches(self, queue: list[Pending]) -> Iterator[tuple[list[Pending], int]]:
        size = sum([len(pending.item) for pending in queue])
        if size <= _LIMITS.batch_bytes_max and len(queue) < _LIMITS.batch_calls_max:
            yield queue[:], size
            return
        batch: list[Pending] = []
        size = 0
        for pending in queue:
            if batch and (
                size + len(pending.item) > _LIMITS.batch_bytes_max
                or len(batch) >= _LIMITS.batch_calls_max - 1
            ):
                yield batch, size
                batch, size = [], 0
            batch.append(pending)
            size += len(pending.item)
        yield batch, size

    # --- what comes back

    def on_replies(self, epoch: int, body: bytes) -> None:
        """REPLIES of a worker's incarnation; what is of an older one is dropped."""
        try:
            replies = codec.decode(body)
        except InvalidArgument:
            replies = self._decode_singly(body)
        pending_calls = self.pending
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
                self._fail(sequence, self._load_exception(payload))
            else:
                self._on_error(sequence, pending, from_wire(*payload))

    def _decode_singly(self, body: bytes) -> list[list[Any]]:
        replies: list[list[Any]] = []
        for part in codec.split_array(body):
            try:
                replies.append(codec.decode(part))
            except InvalidArgument as error:
                sequence = codec.decode(codec.split_array(part)[0])
                unknown = OutcomeUnknown(f"the result cannot be read here: {error}")
                replies.append([sequence, protocol.STATUS_ERROR, to_wire(unknown)])
        return replies

    def _load_result(self, answer: Answer, spec: Method, payload: Any) -> None:
        try:
            result = spec.load_result(payload)
        except TypeError as error:  # the class here and the class there differ: the caller must learn it
            answer.set_exception(error)
        else:
            answer.set_result(result)

    def _on_error(self, sequence: int, pending: Pending, error: PerdureError) -> None:
        if isinstance(error, ShardUnavailable):
            self._retry_later(sequence, pending)
        else:
            self._fail(sequence, error)

    def on_stale(self, body: bytes) -> None:
        """STALE: a batch came back unexecuted, perhaps with a newer map; its calls are sent again."""
        wire_map, batch = codec.decode(body)
        news = False
        if wire_map is not None:
            news = self.on_map(slot_map_from_wire(wire_map))
        for sequence in self._sequences(batch):
            pending = self.pending.get(sequence)
            if pending is None:
                continue
            if news:
                self._send_again(pending)
            else:
                self._retry_later(sequence, pending)
        if not news:
            self._want_map()

    def on_refused(self, body: bytes) -> None:
        """REFUSED: the receiver did not take a batch; its calls did not run."""
        code, text, facts, batch = [*codec.decode(body), None][:4]
        error = from_wire(code, text, facts)
        for sequence in self._sequences(batch) if batch is not None else []:
            pending = self.pending.get(sequence)
            if pending is not None:
                self._on_error(sequence, pending, error)

    def _sequences(self, batch: bytes) -> list[int]:
        return [codec.decode(codec.split_array(item)[0]) for item in codec.split_array(batch)[1:]]

    def on_map(self, slot_map: SlotMap) -> bool:
        """A slot map came; calls on dead incarnations end now, waiting ones move.  False if it is old."""
        old = self.map
        if old is not None and slot_map.version <= old.version:
            return False
        self.map = slot_map
        live = {(i, seat.epoch) for i, seat in enumerate(slot_map.seats) if seat.endpoint}
        dead = {(p.worker, p.epoch) for p in self.pending.values() if p.epoch} - live
        for worker, epoch in dead:
            self.on_death(worker, epoch)
        waiting = [pending for queue in self._queues.values() for pending in queue]
        self._queues.clear()
        self._queued_bytes = 0
        for pending in waiting:
            self._send_again(pending)
        return True

    def on_death(self, worker: int, epoch: int) -> None:
        """An incarnation is gone: what was sent to it may or may not have happened."""
        lost = [s for s, p in self.pending.items() if p.epoch == epoch and p.worker == worker]
        self._lose(lost, f"worker {worker} died")

    def on_router_lost(self) -> None:
        """The router that carried all calls is gone, and their answers with it."""
        self._lose([s for s, p in self.pending.items() if p.epoch], "the router died")

    def _lose(self, sequences: list[int], why: str) -> None:
        for sequence in sequences:
            self._fail(
                sequence, OutcomeUnknown(f"{why} while it had this call; it may or may not have taken effect")
            )

    # --- sending again

    def _send_again(self, pending: Pending) -> None:
        left = pending.deadline - self._clock()
        if left <= 0:
            return  # the wheel ends it
        pending.epoch = 0
        pending.fields[_TIMEOUT_FIELD] = max(1, int(left * 1000))
        pending.item = self._pack(pending.fields)
        object_id = pending.fields[_ID_FIELD]
        if self.map is not None and object_id:
            pending.worker = self.map.worker_of(object_id)
        self._enqueue(pending)

    def _retry_later(self, sequence: int, pending: Pending) -> None:
        pending.epoch = 0
        pause = min(_RETRY_MAX_S, _RETRY_FIRST_S * 2**pending.attempts) * (0.5 + self._random.random())
        pending.attempts += 1
        self._delayed.append((self._clock() + pause, sequence))

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
        current = int(now * _WHEEL_TICKS_PER_S)
        for bucket in range(self._wheel_done, current):
            if bucket == self._bucket:
                self._bucket = -1
            for sequence in self._wheel.pop(bucket, ()):
                pending = self.pending.get(sequence)
                if pending is not None:
                    self._expire(sequence, pending)
        self._wheel_done = max(self._wheel_done, current)

    def _expire(self, sequence: int, pending: Pending) -> None:
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
        self._forget(pending)
        self._fail(sequence, error)

    def _seated(self, worker: int) -> bool:
        seats = self.map.seats if self.map is not None else ()
        return worker < len(seats) and bool(seats[worker].endpoint)

    def _forget(self, pending: Pending) -> None:
        queue = self._queues.get(pending.worker)
        if queue is not None and pending in queue:
            queue.remove(pending)
            self._queued_bytes -= len(pending.item)

    def close(self) -> None:
        """Ends every call: sent ones with `OutcomeUnknown`, the others with `ShardUnavailable`."""
        for sequence, pending in list(self.pending.items()):
            if pending.epoch:
                self._fail(sequence, OutcomeUnknown("this client was closed before the answer came"))
            else:
                self._fail(sequence, ShardUnavailable("this client was closed before the call was sent"))
        self._queues.clear()

    def _fail(self, sequence: int, error: BaseException) -> None:
        pending = self.pending.pop(sequence, None)
        if pending is not None and not pending.answer.done():
            pending.answer.set_exception(error)
