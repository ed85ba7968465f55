"""How long turns may run in one iteration of the loop before everything else gets its turn.  Pure.

Guarantees that however much there is to do, and however long each turn takes, the loop comes round after
about `start_batch_s` and the turn that ran then: replies and commits leave, heartbeats and other clients'
messages come between.  The slice begins with the first turn after `end`.  Runs in the worker's event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["LOOKS_APART_MAX", "Pace"]

LOOKS_APART_MAX: Final = 8
"""Quick calls between two looks at the clock, which cost 0.05 µs each; slow ones are noticed at the first."""


class Pace:
    """The slice of this iteration."""

    __slots__ = ("_clock", "_slice_s", "_want_turns", "until")

    def __init__(self, slice_s: float, clock: Callable[[], float], want_turns: Callable[[], None]) -> None:
        self._slice_s = slice_s
        self._clock = clock
        self._want_turns = want_turns
        self.until = 0.0
        """When the slice ends; 0 while none has begun."""

    def begin(self, now: float) -> float:
        """When the slice ends, which begins now if none has begun."""
        if not self.until:
            self.until = now + self._slice_s
        return self.until

    def half(self, now: float) -> float:
        """As `begin`, for who leaves time for another."""
        return min(self.begin(now), now + self._slice_s / 2)

    def is_over(self) -> bool:
        """Whether what would run now has to wait for the next iteration, which then comes."""
        now = self._clock()
        if now < self.begin(now):
            return False
        self._want_turns()
        return True

    def end(self) -> None:
        """The iteration ends, or a new one has begun."""
        self.until = 0.0
