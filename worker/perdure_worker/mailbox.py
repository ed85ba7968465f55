"""Calls that wait for their object's turn, bounded in count, bytes and age.  Pure.

Guarantees that each client's calls come out in their order and the clients take turns, so that what one
has queued delays another's call by one turn; and that who has more than its share gives way when it is full.

Only calls that cannot start at once get here, so a lone caller never pays for a queue.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final

from perdure.errors import Overloaded
from perdure.limits import Limits
from perdure_worker.peers import Peer

if TYPE_CHECKING:
    from perdure_worker.clients import Client, Request
    from perdure_worker.system_turns import SystemTurn

__all__ = ["ExpiryWheel", "Mailbox", "Waiting"]

_TICKS_PER_S = 20
_EXPIRED_KEPT = 64
_TURNS_AVERAGED = 64
_OWN_WORK: Final = "the worker's own"
"""The client of system turns: all of them share one line."""


class Waiting:
    """One waiting call."""

    __slots__ = ("arrived", "bucket", "deadline", "item", "line", "nested", "peer", "request", "size")

    def __init__(
        self,
        peer: Peer | SystemTurn,
        item: list[Any],
        deadline: float,
        arrived: float,
        size: int,
        request: Client | Request | None = None,
        *,
        nested: bool = False,
    ) -> None:
        self.peer = peer
        """Who gets the answer, or the system turn itself."""
        self.request = request
        self.item: list[Any] | None = item
        """The call; None once it was answered without having run (its deadline passed)."""
        self.deadline = deadline
        self.arrived = arrived
        self.size = size
        self.nested = nested
        """Whether a turn waits for it: such a call is never given up for others."""
        self.bucket = 0
        """Where the `ExpiryWheel` keeps it."""
        self.line: _Line | None = None
        """Where its mailbox keeps it; None for those that go before all others."""


class _Line:
    """One client's calls."""

    __slots__ = ("bytes", "calls", "count")

    def __init__(self) -> None:
        self.calls: deque[Waiting] = deque()
        self.count = 0
        self.bytes = 0

    def newest_first(self) -> list[Waiting]:
        """The calls that may be given up for another client's."""
        return [call for call in reversed(self.calls) if call.item is not None and not call.nested]


class Mailbox:
    """One object's waiting calls: of each client in order, and the clients in turns."""

    __slots__ = ("_began", "_entries", "_first", "_lines", "_served", "bytes", "count")

    def __init__(self) -> None:
        self._first: deque[Waiting] | None = None
        """Calls that go before all others; few objects ever have any."""
        self._lines: OrderedDict[Hashable, _Line] = OrderedDict()
        """The client whose call is next comes first."""
        self._entries = 0
        self.count = 0
        """Calls that still wait; expired ones stay in their lines but do not count."""
        self.bytes = 0
        self._began = 0.0
        self._served = 0
        """Calls that left for their turns since then: how long one takes."""

    def push(self, waiting: Waiting, limits: Limits, *, first: bool = False) -> list[Waiting]:
        """Queues a call, with `first` before those without it; raises `Overloaded` when a bound is reached.

        Gives the calls that had to leave for it: the newest of the client that has most, when this one's
        has less than its share.
        """
        line = self._lines.get(_client_of(waiting))
        oldest = self._oldest(line) if line is not None else None
        if oldest is not None and waiting.arrived - oldest.arrived > limits.mailbox_age_max_s:
            raise self._overloaded(
                "the oldest call of this client at this object has waited too long; its turns do not keep up",
                "mailbox_age_max_s",
                waiting.arrived,
                limits,
            )
        displaced: list[Waiting] = []
        if self.count >= limits.mailbox_calls_max or self.bytes + waiting.size > limits.mailbox_bytes_max:
            displaced = self._make_room(waiting, line, limits)
        self.append(waiting, first=first)
        return displaced

    def append(self, waiting: Waiting, *, first: bool = False) -> None:
        """Queues what is bounded elsewhere; `first` are those that a turn inside the object waits for."""
        if self._entries == 0:
            self._began, self._served = waiting.arrived, 0
        elif self._served >= 2 * _TURNS_AVERAGED:  # what was long ago counts less and less
            self._began += (waiting.arrived - self._began) / 2
            self._served //= 2
        if first:
            self._first = self._first or deque()
            self._first.append(waiting)
        else:
            client = _client_of(waiting)
            line = self._lines.get(client)
            if line is None:
                line = self._lines[client] = _Line()
            line.calls.append(waiting)
            waiting.line = line
        self._entries += 1
        self._entered(waiting, 1)

    def pop(self) -> Waiting | None:
        """The next call that still waits, or None."""
        waiting = self.first()
        if waiting is None:
            return None
        self._entries -= 1
        self._served += 1
        self._entered(waiting, -1)
        line = waiting.line
        if line is None:
            assert self._first is not None
            self._first.popleft()
            return waiting
        line.calls.popleft()
        client, _ = self._lines.popitem(last=False)
        if line.calls:
            self._lines[client] = line  # behind all other clients
        return waiting

    def first(self) -> Waiting | None:
        """What `pop` would give; it stays."""
        while self._first:
            if self._first[0].item is not None:
                return self._first[0]
            self._first.popleft()
            self._entries -= 1
        lines = self._lines
        while lines:
            client, line = next(iter(lines.items()))
            waiting = self._oldest(line)
            if waiting is not None:
                return waiting
            del lines[client]
        return None

    @property
    def next_client(self) -> Hashable:
        """Whose call comes next."""
        return next(iter(self._lines), None)

    def expire(self, waiting: Waiting) -> list[Any] | None:
        """Takes a waiting call out because its deadline passed; None if it is gone already."""
        item = waiting.item
        if item is not None:
            waiting.item = None
            self._entered(waiting, -1)
            if self._entries > 2 * self.count + _EXPIRED_KEPT:
                # Behind a call that waits for long, expired ones would pile up without a bound.
                for client, line in list(self._lines.items()):
                    line.calls = deque(call for call in line.calls if call.item is not None)
                    if not line.calls:
                        del self._lines[client]
                if self._first:
                    self._first = deque(call for call in self._first if call.item is not None)
                self._entries = self.count
        return item

    @property
    def entries(self) -> int:
        """Calls in the lines, expired ones too."""
        return self._entries

    def _oldest(self, line: _Line) -> Waiting | None:
        calls = line.calls
        while calls:
            if calls[0].item is not None:
                return calls[0]
            calls.popleft()
            self._entries -= 1
        return None

    def _entered(self, waiting: Waiting, sign: int) -> None:
        self.count += sign
        self.bytes += sign * waiting.size
        if waiting.line is not None:
            waiting.line.count += sign
            waiting.line.bytes += sign * waiting.size

    def _make_room(self, waiting: Waiting, line: _Line | None, limits: Limits) -> list[Waiting]:
        clients = len(self._lines) + (line is None)
        calls, size = (line.count, line.bytes) if line is not None else (0, 0)
        calls_over = self.count + 1 - limits.mailbox_calls_max
        bytes_over = self.bytes + waiting.size - limits.mailbox_bytes_max
        calls_share = limits.mailbox_calls_max // clients
        bytes_share = limits.mailbox_bytes_max // clients
        if calls_over > 0 and calls >= calls_share:
            raise self._full_of_calls(waiting, limits)
        if bytes_over > 0 and size + waiting.size > bytes_share:
            raise self._full_of_bytes(waiting, limits)
        displaced: list[Waiting] = []
        if calls_over > 0:
            others = [other for other in self._lines.values() if other.count > calls_share]
            others.sort(key=lambda other: other.count, reverse=True)
        else:
            others = [other for other in self._lines.values() if other.bytes > bytes_share]
            others.sort(key=lambda other: other.bytes, reverse=True)
        for other in others:
            for call in other.newest_first():
                displaced.append(call)
                calls_over -= 1
                bytes_over -= call.size
                if calls_over <= 0 and bytes_over <= 0:
                    self._give_up(displaced)
                    return displaced
        if calls_over > 0:
            raise self._full_of_calls(waiting, limits)
        raise self._full_of_bytes(waiting, limits)

    def _give_up(self, displaced: list[Waiting]) -> None:
        for call in displaced:
            line = call.line
            assert line is not None
            line.calls.remove(call)
            self._entries -= 1
            self._entered(call, -1)
            if not line.calls:
                del self._lines[_client_of(call)]

    def _full_of_calls(self, waiting: Waiting, limits: Limits) -> Overloaded:
        text = f"{self.count} calls wait at this object already"
        return self._overloaded(text, "mailbox_calls_max", waiting.arrived, limits)

    def _full_of_bytes(self, waiting: Waiting, limits: Limits) -> Overloaded:
        text = f"{self.bytes} bytes of calls wait at this object already"
        return self._overloaded(text, "mailbox_bytes_max", waiting.arrived, limits)

    def _overloaded(self, text: str, limit: str, now: float, limits: Limits) -> Overloaded:
        return Overloaded(text, limit=limit, retry_after=self.wait_s(now, limits))

    def wait_s(self, now: float, limits: Limits) -> float:
        """About how long the calls here will take, from how long the last ones took; within its bounds.

        While none has left, the one that runs has taken at least the time since the first came.
        """
        turn_s = (now - self._began) / max(1, self._served)
        return round(min(max(self.count * turn_s, limits.retry_after_min_s), limits.retry_after_max_s), 3)


def _client_of(waiting: Waiting) -> Hashable:
    return waiting.peer if type(waiting.peer) is Peer else _OWN_WORK


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

    def due(self, now: float) -> list[tuple[Peer | SystemTurn, list[Any]]]:
        """(peer, item) of calls that waited past their deadline; they have left their mailboxes."""
        current = int(now * _TICKS_PER_S)
        expired: list[tuple[Peer | SystemTurn, list[Any]]] = []
        for bucket in range(self._done, current + 1) if self._buckets else ():
            for waiting, mailbox in self._buckets.pop(bucket, {}).items():
                item = mailbox.expire(waiting)
                if item is not None:
                    expired.append((waiting.peer, item))
        self._done = max(self._done, current)
        return expired
