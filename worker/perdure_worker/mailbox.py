"""Calls that wait for their object's turn, bounded in count, bytes and age.  Pure.

Only calls that cannot start at once get here, so a lone caller never pays for a queue.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from perdure.errors import Overloaded
from perdure.limits import Limits
from perdure_worker.clients import Request
from perdure_worker.peers import Peer

__all__ = ["ExpiryWheel", "Mailbox", "Waiting"]

_TICKS_PER_S = 20
_EXPIRED_KEPT = 64


class Waiting:
    """One waiting call."""

    __slots__ = ("arrived", "bucket", "deadline", "item", "peer", "request", "size")

    def __init__(
        self,
        peer: Peer,
        item: list[Any],
        deadline: float,
        arrived: float,
        size: int,
        request: Request | None = None,
    ) -> None:
        self.peer = peer
        self.item: list[Any] | None = item
        """The call, with its chain in place of the context.

        None once it was answered without having run (its deadline passed).
        """
        self.deadline = deadline
        self.arrived = arrived
        self.size = size
        self.request = request
        self.bucket = 0
        """Where the `ExpiryWheel` keeps it."""


class Mailbox:
    """FIFO of one object's waiting calls."""

    __slots__ = ("_calls", "bytes", "count")

    def __init__(self) -> None:
        self._calls: deque[Waiting] = deque()
        self.count = 0
        """Calls that still wait; expired ones stay in the queue but do not count."""
        self.bytes = 0

    def push(self, waiting: Waiting, limits: Limits) -> None:
        """Queues a call; raises `Overloaded` when a bound is reached."""
        if self.count >= limits.mailbox_calls_max:
            raise Overloaded(
                f"{self.count} calls wait at this object already", limit="mailbox_calls_max", retry_after=1.0
            )
        if self.bytes + waiting.size > limits.mailbox_bytes_max:
            raise Overloaded(
                f"{self.bytes} bytes of calls wait at this object already",
                limit="mailbox_bytes_max",
                retry_after=1.0,
            )
        oldest = self._oldest()
        if oldest is not None and waiting.arrived - oldest.arrived > limits.mailbox_age_max_s:
            raise Overloaded(
                "the oldest call at this object has waited too long; its turns do not keep up",
                limit="mailbox_age_max_s",
                retry_after=limits.mailbox_age_max_s / 10,
            )
        self._calls.append(waiting)
        self.count += 1
        self.bytes += waiting.size

    def pop(self) -> Waiting | None:
        """The next call that still waits, or None."""
        while self._calls:
            waiting = self._calls.popleft()
            if waiting.item is not None:
                self._left(waiting)
                return waiting
        return None

    def expire(self, waiting: Waiting) -> list[Any] | None:
        """Takes a waiting call out because its deadline passed; None if it is gone already."""
        item = waiting.item
        if item is not None:
            waiting.item = None
            self._left(waiting)
            if len(self._calls) > 2 * self.count + _EXPIRED_KEPT:
                # Behind a call that waits for long, expired ones would pile up without a bound.
                self._calls = deque(call for call in self._calls if call.item is not None)
        return item

    def _left(self, waiting: Waiting) -> None:
        self.count -= 1
        self.bytes -= waiting.size

    def _oldest(self) -> Waiting | None:
        while self._calls and self._calls[0].item is None:
            self._calls.popleft()
        return self._calls[0] if self._calls else None


class ExpiryWheel:
    """Waiting calls by deadline, in buckets of 50 ms.  It holds no call that has started."""

    def __init__(self, now: float) -> None:
        self._buckets: dict[int, dict[Waiting, Mailbox]] = {}
        self._done = int(now * _TICKS_PER_S)

    def __len__(self) -> int:
        return sum(len(calls) for calls in self._buckets.values())

    def add(self, mailbox: Mailbox, waiting: Waiting) -> None:
        """The call is given back by `due` within 50 ms after its deadline, unless it is removed before."""
        bucket = waiting.bucket = max(int(waiting.deadline * _TICKS_PER_S) + 1, self._done)
        calls = self._buckets.get(bucket)
        if calls is None:
            self._buckets[bucket] = {waiting: mailbox}
        else:
            calls[waiting] = mailbox

    def remove(self, waiting: Waiting) -> None:
        """The call starts, or was answered."""
        calls = self._buckets.get(waiting.bucket)
        if calls is not None:
            calls.pop(waiting, None)
            if not calls:
                del self._buckets[waiting.bucket]

    def due(self, now: float) -> list[tuple[Peer, list[Any]]]:
        """(peer, item) of calls that waited past their deadline; they have left their mailboxes."""
        current = int(now * _TICKS_PER_S)
        expired: list[tuple[Peer, list[Any]]] = []
        for bucket in range(self._done, current + 1) if self._buckets else ():
            for waiting, mailbox in self._buckets.pop(bucket, {}).items():
                item = mailbox.expire(waiting)
                if item is not None:
                    expired.append((waiting.peer, item))
        self._done = max(self._done, current)
        return expired
