"""What is to be done at later times, for cores that have no loop.  Pure; runs in the gateway."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

__all__ = ["Timers"]


class Timers:
    """Actions by time; those of one time run in the order in which they were given."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    @property
    def wake_at(self) -> float:
        """When `tick` is needed next; infinity if never."""
        return self._heap[0][0] if self._heap else float("inf")

    def at(self, when: float, action: Callable[[], None]) -> None:
        """`action` runs in the first `tick` from `when` on."""
        heappush(self._heap, (when, next(self._numbers), action))

    def tick(self, now: float) -> None:
        """Runs what is due; what that gives new times runs in a later tick."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heappop(self._heap)[2])
        for action in due:
            action()
