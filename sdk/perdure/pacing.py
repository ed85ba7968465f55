"""When a call is sent again: growing pauses with jitter, and a budget for all calls together.  Pure.

The budget keeps a client from being a second blow to a cluster that has just lost a worker: retries beyond
it wait longer, none is given up before its deadline.
"""

from __future__ import annotations

import random

from perdure.limits import Limits

__all__ = ["Pacing"]

_FIRST_S = 0.02
_MAX_S = 0.5
_DOUBLINGS_MAX = 5  # 0.02 s * 2**5 is beyond _MAX_S; without a bound the power overflows
_BURST_S = 1.0


class Pacing:
    """The pauses of one client."""

    def __init__(self, random_source: random.Random) -> None:
        self._random = random_source
        self._step_s = 1 / Limits.client_retries_per_second_max
        self._next = 0.0
        """When the next retry would leave if all left at the budget's even pace."""

    def pause(self, attempts: int) -> float:
        """Seconds until the next try of a call that came back `attempts` times before."""
        pause: float = min(_MAX_S, _FIRST_S * 2 ** min(attempts, _DOUBLINGS_MAX))
        return pause * (0.5 + self._random.random())

    def allow(self, when: float) -> float:
        """The time at which the budget lets a retry leave that is wanted for `when`; counts it."""
        self._next = max(self._next, when) + self._step_s
        return max(when, self._next - self._step_s - _BURST_S)
