"""Calls that have come in and that nobody has looked at yet, of all clients in turns.  Pure.

Guarantees that a long batch neither holds the loop up for long nor keeps another client's call waiting, and
that each client's calls are looked at in their order.  Runs in the worker's event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from perdure import codec
from perdure.errors import InvalidArgument
from perdure.limits import Limits
from perdure_worker.clients import Client
from perdure_worker.fairness import RoundRobin
from perdure_worker.peers import Peer

__all__ = ["PORTION", "Intake", "readable_items"]

PORTION: Final = 32
"""Calls of one client before another's come."""

LookAt = Callable[[Peer, Client, list[Any], int, float, float, int | None, float], int]


class Intake:
    """Batches that have come in; true while something of them is left."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._calls_max = limits.waiting_items_max
        self._clock = clock
        self._batches: RoundRobin[tuple[Client, list[Any], int, float, int | None]] = RoundRobin()
        self.unread = 0
        """Calls that nobody has looked at."""

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def has_room(self) -> bool:
        """Whether more may be read: what has been read is in memory."""
        return self.unread < self._calls_max

    def add(
        self, peer: Peer, client: Client, items: list[Any], start: int, base: float, size: int | None
    ) -> None:
        """A batch whose calls, from its element `start` on, are looked at in `take`."""
        self.unread += len(items) - start
        self._batches.add(peer, (client, items, start, base, size))

    def take(self, look_at: LookAt, now: float, until: float) -> bool:
        """Has calls looked at, in small portions of one client after the other; whether some are left."""
        batches = self._batches
        while batches and now < until:
            peer, (client, items, start, base, size) = batches.take()
            stop = look_at(cast(Peer, peer), client, items, start, base, now, size, until)
            if stop < len(items):
                batches.put_back(peer, (client, items, stop, base, size))
            self.unread -= stop - start
            now = self._clock()
        return bool(batches)


def readable_items(body: bytes) -> tuple[list[Any], list[tuple[int | None, InvalidArgument]]]:
    """A batch that cannot be decoded as a whole: its readable items, and of the others sequence and error.

    One undecodable call (say of a newer client's type) is refused alone, the others run.  Raises
    `InvalidArgument` when it is no list, or its first element cannot be read.
    """
    parts = codec.split_array(body)
    items = [codec.decode(part) for part in parts[:1]]
    unreadable: list[tuple[int | None, InvalidArgument]] = []
    for part in parts[1:]:
        try:
            items.append(codec.decode(part))
        except InvalidArgument as error:
            unreadable.append((_sequence_of(part), error))
    return items, unreadable


def _sequence_of(item: bytes) -> int | None:
    """The sequence of an encoded call that cannot be decoded as a whole."""
    try:
        sequence = codec.decode(codec.split_array(item)[0])
    except (InvalidArgument, IndexError):
        return None
    return sequence if type(sequence) is int else None
