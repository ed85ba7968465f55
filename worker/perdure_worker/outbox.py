"""Which durable send leaves when: order, pauses, dead letters.  Pure.

Guarantees, for what its worker has committed:

- the ordered messages of a pair (sender and target) are delivered one after the other, in the order of
  their sequences, and none before all earlier ones have ended and are durably removed or known here;
- a pair whose target fails waits alone; what counts as an attempt is bounded, and then the message is dead;
- memory is bounded: what does not fit stays on disk, is known to be there, and is read when its turn comes.

A message is removed only after its delivery ended, so a crash in between delivers it again under the same
request id; the target's record of it makes that harmless.  The floor that goes with a delivery says which
older records the target need not keep: those whose messages are durably gone.

Disk, calls and clock are handed in (`Hands`).  Runs in the worker's event loop.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count, islice
from typing import Any, Protocol

from perdure.converter import describe_error
from perdure.errors import (
    DeadlineExceeded,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
    StorageError,
)
from perdure.limits import Limits
from perdure_worker.messages import DELAYED, ORDERED, Message

__all__ = ["Hands", "Outbox", "Pair"]

log = logging.getLogger("perdure.worker")

_PASSING = (ShardUnavailable, OutcomeUnknown, Overloaded, DeadlineExceeded)
"""Failures that say nothing about the message: it is tried again for as long as they last."""
_DOUBLINGS_MAX = 20
_SCAN_ROWS = 1_024
_SCAN_PAUSE_S = 0.25
"""Between two looks for unread messages that found no room for what they met."""
_AFTER_ERROR_S = 5.0
_REACHABLE_LOOK_S = 1.0
"""Longest pause of a pair whose target's worker is known to be down: that it is back costs only a look."""
_EVICTION_LOOKS = 16
_TARGET_AT, _SEQUENCE_AT = 1, 17  # in the tail of a row


def _is_final(error: BaseException) -> bool:
    """Whether trying the same request again cannot help, though nobody knows whether it took effect."""
    return isinstance(error, OutcomeUnknown) and error.reason is not None


class Pair:
    """What is known of a sender's messages to one target.  Only the outbox changes it."""

    __slots__ = ("failures", "flying", "gone", "key", "loaded_to", "more", "queue", "ready", "unconfirmed")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.queue: deque[Message] = deque()
        """Loaded, in order; the first may be on its way."""
        self.loaded_to = -1
        """Sequence of the last ordered message that was loaded."""
        self.more = False
        """Whether ordered ones behind `loaded_to` may be on disk only."""
        self.flying: Message | None = None
        self.failures = 0
        """In a row; they make the pause."""
        self.ready = False
        """Whether it stands in the ready queue, waits for its target or for the end of a pause."""
        self.unconfirmed: deque[int] = deque()
        """Sequences of ended messages whose removal is not durable yet."""
        self.gone = False


class Hands(Protocol):
    """What the outbox does to the world."""

    def read(self, pair: bytes, after: int, limit: int) -> tuple[list[Message], bool]:
        """The pair's ordered messages above a sequence, and whether there may be more behind them."""

    def read_one(self, prefix: bytes, tail: bytes) -> Message | None:
        """A message by its row; None when it is not there (any more)."""

    def scan(self, after: bytes, limit: int) -> list[tuple[bytes, bytes, bytes]]:
        """``(position, prefix, tail)`` of what is due behind a position of the due index, at most `limit`.

        The tail is empty where that is no message.
        """

    def reachable(self, message: Message) -> bool:
        """Whether the target's worker is up."""

    def deliver(self, message: Message, floor: int, on_end: Callable[[BaseException | None], None]) -> None:
        """Calls the target; `on_end` gets the outcome, perhaps before this returns."""

    def remove(self, message: Message, on_durable: Callable[[Any, Any, Any], None], pair: Pair) -> None:
        """Deletes its rows; ``on_durable(pair, message, None)`` when that is on disk."""

    def bury(self, message: Message, on_durable: Callable[[Any, Any, Any], None], pair: Pair) -> None:
        """Marks it dead and takes it out of the due index; as `remove`."""

    def remember(self, message: Message) -> None:
        """Stores its count of attempts."""


class Outbox:
    """The messages of one worker's objects on their way."""

    def __init__(
        self, hands: Hands, limits: Limits, clock: Callable[[], float], random_source: random.Random
    ) -> None:
        self._hands = hands
        self._limits = limits
        self._clock = clock
        self._random = random_source
        self._pairs: dict[bytes, Pair] = {}
        self._ready: deque[Pair] = deque()
        self._paused: dict[bytes, Pair] = {}
        self._retries: list[tuple[float, int, Pair]] = []
        self._numbers = count()
        self._at_target: dict[bytes, int] = {}
        self._parked: dict[bytes, deque[Pair]] = {}
        self._delayed: set[bytes] = set()
        """Rows of delayed messages that are loaded, or whose removal is not durable yet."""
        self._flying = 0
        self._loaded = 0
        self._loaded_bytes = 0
        self._unread = True
        """Whether due messages of pairs that are not known here may be on disk, as at each start."""
        self._overflowed = False
        self._scanned = b""
        self._scan_at = 0.0
        self._pumping = False
        self.stopped = False
        self.delivered = 0
        self.buried = 0

    # --- messages come in

    def offer(self, message: Message) -> None:
        """An ordered message was committed and is durable.  In the order of commits; then `pump`."""
        if self.stopped:
            return
        pair = self._pairs.get(message.pair) or self._admit(message.pair)
        if pair is None or message.sequence <= pair.loaded_to:
            return
        if not (pair.more or len(pair.queue) >= self._limits.sends_per_pair_loaded_max or self._is_full()):
            self._load(pair, message)
        else:
            pair.more = True
        self._make_ready(pair)

    def wake(self, prefix: bytes, tail: bytes) -> None:
        """The due index holds this message, and its time has come.  Then `pump`."""
        if self.stopped:
            return
        pair = self._pairs.get(prefix + tail[_TARGET_AT:_SEQUENCE_AT])
        if tail[:1] == DELAYED:
            self._wake_delayed(pair, prefix, tail)
        elif pair is None:
            pair = self._admit(prefix + tail[_TARGET_AT:_SEQUENCE_AT])
            if pair is not None:
                pair.more = True
                self._make_ready(pair)

    def _wake_delayed(self, pair: Pair | None, prefix: bytes, tail: bytes) -> None:
        if prefix + tail in self._delayed:
            return
        if self._is_full():
            self._leave_on_disk()
            return
        message = self._hands.read_one(prefix, tail)
        if message is None:
            return
        pair = pair or self._admit(message.pair)
        if pair is not None:
            self._delayed.add(prefix + tail)
            self._load(pair, message)
            self._make_ready(pair)

    def _is_full(self) -> bool:
        limits = self._limits
        return self._loaded >= limits.sends_loaded_max or self._loaded_bytes >= limits.sends_loaded_bytes_max

    def _leave_on_disk(self) -> None:
        self._unread = self._overflowed = True

    def _admit(self, key: bytes) -> Pair | None:
        """A pair that is not known yet; None when there is no room for it."""
        if len(self._pairs) >= self._limits.send_pairs_max and not self._evict():
            self._leave_on_disk()
            return None
        pair = self._pairs[key] = Pair(key)
        pair.more = self._unread
        return pair

    def _evict(self) -> bool:
        """Forgets a pair that waits in a pause: others may have something to deliver now."""
        for pair in list(islice(self._paused.values(), _EVICTION_LOOKS)):
            if not pair.unconfirmed:
                self._unload(pair)
                del self._paused[pair.key], self._pairs[pair.key]
                pair.gone = True
                self._leave_on_disk()
                return True
        return False

    def _load(self, pair: Pair, message: Message) -> None:
        pair.queue.append(message)
        if message.lane == ORDERED:
            pair.loaded_to = message.sequence
        self._loaded += 1
        self._loaded_bytes += message.size

    def _unload(self, pair: Pair) -> None:
        """The pair's messages are read again when it goes on."""
        for message in pair.queue:
            self._loaded -= 1
            self._loaded_bytes -= message.size
            if message.lane == DELAYED:
                self._delayed.discard(message.prefix + message.tail)
                self._leave_on_disk()
            elif not pair.more:
                pair.more = True
        first = next((message.sequence for message in pair.queue if message.lane == ORDERED), None)
        if first is not None:
            pair.loaded_to = first - 1
        pair.queue.clear()

    def _make_ready(self, pair: Pair) -> None:
        if not pair.ready and pair.flying is None:
            pair.ready = True
            self._ready.append(pair)

    # --- messages leave

    def pump(self) -> None:
        """Delivers what can be delivered now."""
        if self._pumping:
            return  # a delivery ended before it began; the loop below goes on
        self._pumping = True
        try:
            while self._ready and self._flying < self._limits.sends_in_flight_max and not self.stopped:
                pair = self._ready.popleft()
                pair.ready = False
                self._next_of(pair)
        finally:
            self._pumping = False

    def _next_of(self, pair: Pair) -> None:
        limits = self._limits
        if len(pair.unconfirmed) >= limits.sends_unconfirmed_max:
            return  # `on_removed` goes on
        if not pair.queue and pair.more:
            try:
                self._refill(pair)
            except StorageError as error:
                log.error("a durable send cannot be read from disk: %s", error)
                self._pause(pair)
                return
        if not pair.queue:
            self._drop_if_idle(pair)
            return
        message = pair.queue[0]
        key = message.key
        at_target = self._at_target.get(key, 0)
        if at_target >= limits.sends_per_target_max:
            pair.ready = True
            self._parked.setdefault(key, deque()).append(pair)
        elif not self._hands.reachable(message):
            self._pause(pair, _REACHABLE_LOOK_S)
        else:
            self._at_target[key] = at_target + 1
            self._flying += 1
            pair.flying = message
            floor = 0
            if message.lane == ORDERED:
                floor = pair.unconfirmed[0] if pair.unconfirmed else message.sequence
            self._hands.deliver(message, floor, lambda error: self._on_end(pair, message, error))

    def _refill(self, pair: Pair) -> None:
        room = 1 if self._is_full() else self._limits.sends_per_pair_loaded_max
        messages, pair.more = self._hands.read(pair.key, pair.loaded_to, room)
        for message in messages:
            self._load(pair, message)

    def _on_end(self, pair: Pair, message: Message, error: BaseException | None) -> None:
        pair.flying = None
        self._flying -= 1
        self._leave_target(message.key)
        if self.stopped:
            return
        if error is None or (isinstance(error, OutcomeUnknown) and error.reason == "answered"):
            self.delivered += 1
            self._end(pair, message, self._hands.remove)
        elif isinstance(error, _PASSING) and not _is_final(error):
            self._pause(pair)
        else:
            message.attempts += 1
            message.error = describe_error(error)[: self._limits.send_error_chars_max]
            if message.attempts < self._limits.send_attempts_max and not _is_final(error):
                self._hands.remember(message)
                self._pause(pair)
            else:
                self._bury(pair, message)
        self.pump()

    def _leave_target(self, key: bytes) -> None:
        left = self._at_target.pop(key) - 1
        if left:
            self._at_target[key] = left
        parked = self._parked.get(key)
        if parked:
            self._ready.append(parked.popleft())
            if not parked:
                del self._parked[key]

    def _bury(self, pair: Pair, message: Message) -> None:
        self.buried += 1
        log.error(
            "a durable send is given up; the sender's ctx.outbox shows it",
            extra={
                "sender": message.prefix[-32:].hex(),
                "target": f"{message.namespace}/{message.name or message.key.hex()}",
                "method": message.method,
                "error": message.error,
            },
        )
        self._end(pair, message, self._hands.bury)

    def _end(self, pair: Pair, message: Message, remove: Callable[..., None]) -> None:
        pair.queue.popleft()
        pair.failures = 0
        self._loaded -= 1
        self._loaded_bytes -= message.size
        if message.lane == ORDERED:
            pair.unconfirmed.append(message.sequence)
        remove(message, self.on_removed, pair)
        if pair.queue or pair.more:
            self._make_ready(pair)

    def on_removed(self, pair: Pair, message: Message, _: None) -> None:
        """The rows of an ended message are durably gone."""
        if message.lane == ORDERED:
            pair.unconfirmed.popleft()
        else:
            self._delayed.discard(message.prefix + message.tail)
        if (pair.queue or pair.more) and not pair.gone and pair.key not in self._paused:
            self._make_ready(pair)
            self.pump()
        else:
            self._drop_if_idle(pair)

    def _drop_if_idle(self, pair: Pair) -> None:
        if not (pair.queue or pair.more or pair.unconfirmed or pair.flying or pair.ready or pair.gone):
            del self._pairs[pair.key]
            pair.gone = True

    # --- time

    def _pause(self, pair: Pair, longest_s: float = math.inf) -> None:
        limits = self._limits
        pause = min(longest_s, limits.send_pause_first_s * 2 ** min(pair.failures, _DOUBLINGS_MAX))
        pair.failures += 1
        pair.ready = True
        self._paused[pair.key] = pair
        at = self._clock() + min(pause, limits.send_pause_max_s) * (0.5 + self._random.random())
        heappush(self._retries, (at, next(self._numbers), pair))
        if (
            self._loaded_bytes > limits.sends_loaded_bytes_max // 2
            or self._loaded > limits.sends_loaded_max // 2
        ):
            self._unload(pair)

    def tick(self) -> None:
        """Call about every 50 ms: ends pauses, and looks on disk for what memory had no room for."""
        if self.stopped:
            return
        now = self._clock()
        retries = self._retries
        while retries and retries[0][0] <= now:
            pair = heappop(retries)[2]
            if not pair.gone:
                self._paused.pop(pair.key, None)
                self._ready.append(pair)
        if self._unread and now >= self._scan_at:
            self._look_on_disk(now)
        self.pump()

    def _look_on_disk(self, now: float) -> None:
        try:
            rows = self._hands.scan(self._scanned, _SCAN_ROWS)
        except StorageError as error:
            log.error("durable sends cannot be looked for on disk: %s", error)
            self._scan_at = now + _AFTER_ERROR_S
            return
        for position, prefix, tail in rows:
            self._scanned = position
            if tail:
                self.wake(prefix, tail)
        if self._overflowed:
            self._scan_at = now + _SCAN_PAUSE_S
        if len(rows) == _SCAN_ROWS:
            return
        # The end: if everything found room, whatever is due and on disk is known now.
        self._scanned = b""
        self._unread, self._overflowed = self._overflowed, False

    def stop(self) -> None:
        """Nothing leaves any more; what is on its way may end, and is delivered again by the next start."""
        self.stopped = True

    # --- figures

    def stats(self, now_ms: int) -> dict[str, int]:
        """What is known of messages on their way; `sends_unread`: more of them are on disk only."""
        oldest = min((pair.queue[0].sent_ms for pair in self._pairs.values() if pair.queue), default=now_ms)
        return {
            "sends_pending": self._loaded,
            "sends_unread": int(self._unread or any(pair.more for pair in self._pairs.values())),
            "sends_in_flight": self._flying,
            "sends_paused": len(self._paused),
            "sends_delivered": self.delivered,
            "sends_dead": self.buried,
            "sends_oldest_ms": max(0, now_ms - oldest),
        }
