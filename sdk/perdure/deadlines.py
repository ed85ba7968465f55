"""The deadlines of a client's calls, in buckets of 50 ms.  Pure; runs in every caller.

Runs of sequences, because an entry stays until the deadline, also when its call has long ended: a number
for each call would be 200 MB at 180,000 calls a second.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["TICKS_PER_S", "Deadlines"]

TICKS_PER_S = 20
"""Deadlines are looked at this often; a call ends at most this much later than promised."""


class Deadlines:
    """Which sequences are due; whoever asks knows which of them are still open."""

    def __init__(self, now: float) -> None:
        self._runs: dict[int, list[tuple[int, int]]] = {}
        """Bucket -> first and last sequence of each run of calls with that deadline."""
        self.bucket = -1
        """That of the run in the making."""
        self._first = 0
        self._done = int(now * TICKS_PER_S)

    def __len__(self) -> int:
        return sum([len(runs) for runs in self._runs.values()])

    def begin(self, bucket: int, sequence: int) -> None:
        """The next call has another deadline than the one before: `bucket` is its time in ticks."""
        self._end_run(sequence - 1)
        self.bucket, self._first = bucket, sequence

    def again(self, sequence: int, when: float) -> None:
        """The call is due once more, at another time."""
        self._runs.setdefault(int(when * TICKS_PER_S), []).append((sequence, sequence))

    def due(self, now: float, last: int) -> Iterator[int]:
        """Sequences whose time has passed; `last` is that of the latest call."""
        current = int(now * TICKS_PER_S)
        for bucket in range(self._done, current):
            if bucket == self.bucket:
                self._end_run(last)
            for first, stop in self._runs.pop(bucket, ()):
                yield from range(first, stop + 1)
        self._done = max(self._done, current)

    def clear(self) -> None:
        """Forgets all."""
        self._runs.clear()
        self.bucket = -1

    def _end_run(self, last: int) -> None:
        if self.bucket >= 0:
            self._runs.setdefault(self.bucket, []).append((self._first, last))
            self.bucket = -1
