"""What the outbox does to the world: reads messages, calls targets, removes what has ended.

Guarantees: a delivery carries the message's own request id, so its target runs it once however often it
is sent; rows are removed or marked in a commit group of their own or whichever is open.
Runs in the worker's event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from perdure.errors import StorageError
from perdure.ids import slot_of
from perdure.stub import Target
from perdure_storage import keys
from perdure_worker.messages import DEAD, ORDERED, Message, lane_bounds, read_message

if TYPE_CHECKING:
    from perdure_worker.outbox import Pair
    from perdure_worker.writes import Writes

__all__ = ["Delivery"]

log = logging.getLogger("perdure.worker")

_HASH_SPAN = 1 << 32  # of the four bytes that decide an id's slot
_READ_BYTES_MAX = 1 << 20
"""A page of messages ends at about this size: it is read within the loop."""

OnEnd = Callable[[BaseException | None], None]
OnDurable = Callable[[Any, Any, Any], None]


class _Answer:
    """Where a delivery's outcome goes: straight to the outbox, without a future and a tick of the loop."""

    __slots__ = ("_delivery", "_on_end")

    def __init__(self, delivery: Delivery, on_end: OnEnd) -> None:
        self._delivery = delivery
        self._on_end = on_end

    def done(self) -> bool:
        """Whether nobody waits for the outcome: a worker that stops does not wait for its sends."""
        return self._delivery.stopped

    def set_result(self, _: Any) -> None:
        """The target's method has run, and what it wrote is durable."""
        self._on_end(None)

    def set_exception(self, exception: BaseException) -> None:
        """It has not, or nobody knows."""
        self._on_end(exception)

    def exception(self) -> BaseException | None:
        """Nobody asks."""
        return None


def _message_of(due_row: bytes) -> tuple[bytes, bytes]:
    """Sender's prefix and tail of the message that a row of the due index is for; empty if it is for none."""
    try:
        due = keys.parse_due_row(due_row)
    except ValueError:
        return b"", b""  # the due index says so in the log
    if due.kind != keys.OUTBOX:
        return b"", b""
    return keys.object_prefix(due.slot, due.namespace, due.object_id), due.key


class Delivery:
    """The hands of an `Outbox`."""

    def __init__(self, host: Writes, caller: Any, on_ended: Callable[[Message], None]) -> None:
        self._host = host
        self._caller = caller
        self._on_ended = on_ended
        self._engine = host.engine
        self._committer = host.committer
        self._timeout_s = host.limits.call_timeout_s
        self.stopped = False

    # --- the disk

    def read(self, pair: bytes, after: int, limit: int) -> tuple[list[Message], bool]:
        """See `Hands.read`."""
        prefix, target = pair[:-16], pair[-16:]
        messages: list[Message] = []
        size = 0
        with self._engine.scan(*lane_bounds(prefix, ORDERED, target, after)) as rows:
            for row, record in rows:
                messages.append(read_message(prefix, row, record))
                size += len(record)
                if len(messages) == limit or size > _READ_BYTES_MAX:
                    return messages, True
        return messages, False

    def read_one(self, prefix: bytes, tail: bytes) -> Message | None:
        """See `Hands.read_one`."""
        row = prefix + keys.OUTBOX + tail
        try:
            record = self._engine.get(row)
            return None if record is None else read_message(prefix, row, record)
        except StorageError as error:
            log.error("a durable send cannot be read from disk: %s", error)
            return None

    def scan(self, after: bytes, limit: int) -> list[tuple[bytes, bytes, bytes]]:
        """See `Hands.scan`."""
        start = after + b"\x00" if after else keys.DUE_REGION
        stop = keys.DUE_REGION + (self._host.timetable.now_ms() + 1).to_bytes(8, "big")
        with self._engine.scan(start, stop) as rows:
            return [(row, *_message_of(row)) for row, _ in islice(rows, limit)]

    def remove(self, message: Message, on_durable: OnDurable, pair: Pair) -> None:
        """See `Hands.remove`."""
        committer = self._committer
        committer.delete(message.row)
        committer.delete(message.due_row)
        self._after_commit(on_durable, pair, message)
        self._on_ended(message)

    def bury(self, message: Message, on_durable: OnDurable, pair: Pair) -> None:
        """See `Hands.bury`."""
        lane = message.lane
        self._committer.delete(message.row)
        self._committer.delete(message.due_row)
        message.lane = DEAD
        self._committer.put(message.row, message.record())
        message.lane = lane
        self._after_commit(on_durable, pair, message)

    def remember(self, message: Message) -> None:
        """See `Hands.remember`."""
        self._committer.put(message.row, message.record())
        self._host.want_flush()

    def _after_commit(self, on_durable: OnDurable, pair: Pair, message: Message) -> None:
        self._host.gate.hold(self._committer.group, (on_durable, pair, message, None))
        self._host.want_flush()

    # --- the target

    def reachable(self, message: Message) -> bool:
        """See `Hands.reachable`."""
        slot_map = self._caller.map
        if slot_map is None:
            return False
        worker = slot_map.worker_of(message.key)
        return worker < len(slot_map.seats) and bool(slot_map.seats[worker].endpoint)

    def deliver(self, message: Message, floor: int, on_end: OnEnd) -> None:
        """See `Hands.deliver`."""
        args, kwargs = message.arguments()
        key = message.key
        hashed = slot_of(key, _HASH_SPAN)
        target = Target(message.namespace, key, message.name, self._timeout_s, hashed, {})
        request = [message.client, message.sequence, b"", floor]
        answer = _Answer(self, on_end)
        self._caller.call(target, message.method, args, kwargs, None, answer, None, request)
