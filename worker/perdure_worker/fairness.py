"""Whose turn it is when several clients want something: one after the other, whatever each has queued.  Pure.

Guarantees that what one client queues comes out in its own order, and that between two things of one
client every other client with something queued gets its turn.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["RoundRobin"]

T = TypeVar("T")


class RoundRobin(Generic[T]):
    """Queues of clients that are served in turns; true while anything is queued."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: OrderedDict[Hashable, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, client: Hashable, thing: T) -> None:
        """Queues behind what the client has queued before."""
        queue = self._queues.get(client)
        if queue is None:
            self._queues[client] = deque((thing,))
        else:
            queue.append(thing)

    def put_back(self, client: Hashable, thing: T) -> None:
        """Queues in front of what the client has queued: the rest of what `take` gave."""
        queue = self._queues.get(client)
        if queue is None:
            self._queues[client] = deque((thing,))
        else:
            queue.appendleft(thing)

    def take(self) -> tuple[Hashable, T]:
        """The first thing of the client whose turn it is; raises KeyError when nothing is queued."""
        client, queue = self._queues.popitem(last=False)
        thing = queue.popleft()
        if queue:
            self._queues[client] = queue  # behind all others
        return client, thing
