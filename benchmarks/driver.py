"""The client process: one load loop for every contender.

Runs as `python -m benchmarks.driver`: each line of standard input is one cell (JSON), each line of
standard output its figures. `outstanding` asyncio tasks under uvloop each await one increment after
another, of objects chosen uniformly at random; the same picks in the same order for every contender.

Every object is touched once first. Then `gc.freeze()` takes what exists (10,000 stubs or keys) out of the
garbage collector's sight, for all contenders alike, as a process with many long-lived objects does when it
has started: full collections that looked at all of it and freed nothing made p99 29 instead of 19 ms with
Perdure at 1,024 outstanding.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import json
import math
import random
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.contender import MODULES, Connect, Increment

__all__ = ["Load", "Window", "percentile"]

PICKS = 1 << 17
SEED = 20_240_229
TOUCH_OUTSTANDING = 256


@dataclass(frozen=True)
class Window:
    """What was seen between two moments of a load."""

    calls: int
    """Calls that ended in it."""
    seconds: float
    """Its measured length."""
    latencies_s: list[float]
    """In order, of the calls that ended in it and of those that each caller still waited for at its end.

    Without the latter, callers that a system starves would be missing from the percentiles.
    """


class Load:
    """`outstanding` callers of one client."""

    def __init__(self, increment: Increment, objects: int) -> None:
        self._increment = increment
        self._objects = objects
        self._running = True
        self._latencies_s: list[float] = []
        self.calls = 0
        """Increments so far, also those outside the window."""

    async def touch_all(self) -> int:
        """Increment every object once, so that all are in memory; gives the sum of their values."""
        indexes = iter(range(self._objects))
        total = 0

        async def caller() -> None:
            nonlocal total
            for index in indexes:
                value = await self._increment(index)
                total += value

        await asyncio.gather(*(caller() for _ in range(TOUCH_OUTSTANDING)))
        self.calls += self._objects
        return total

    async def run(self, outstanding: int, warmup_s: float, seconds: float) -> Window:
        """Load for `warmup_s` and then for `seconds`, which are the window; ends when all calls ended."""
        choose = random.Random(SEED)
        picks = itertools.cycle([choose.randrange(self._objects) for _ in range(PICKS)])
        latencies_s = self._latencies_s
        callers = [asyncio.ensure_future(self._caller(picks)) for _ in range(outstanding)]
        try:
            # When a call fails this ends at once with its exception.
            await asyncio.wait(callers, timeout=warmup_s, return_when=asyncio.FIRST_EXCEPTION)
            first, started = len(latencies_s), time.perf_counter()
            await asyncio.wait(callers, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            last, ended = len(latencies_s), time.perf_counter()
        finally:
            self._running = False
            await asyncio.gather(*callers)
        self.calls += len(latencies_s)
        return Window(last - first, ended - started, sorted(latencies_s[first:]))

    async def _caller(self, picks: Iterator[int]) -> None:
        increment, clock, record = self._increment, time.perf_counter, self._latencies_s.append
        now = clock()
        while self._running:
            started = now
            await increment(next(picks))
            now = clock()
            record(now - started)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the values of `ordered` do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


async def _measure(cell: dict[str, Any]) -> dict[str, Any]:
    connect: Connect = importlib.import_module(MODULES[cell["system"]]).connect
    objects, outstanding = cell["objects"], cell["outstanding"]
    async with connect(cell["handle"], cell["form"], objects, outstanding) as increment:
        load = Load(increment, objects)
        total = await load.touch_all()
        gc.collect()
        gc.freeze()
        started_cpu_s, touched = time.process_time(), load.calls
        window = await load.run(outstanding, cell["warmup_s"], cell["seconds"])
        cpu_s = time.process_time() - started_cpu_s
    return {
        "calls_per_s": window.calls / window.seconds,
        "p50_ms": percentile(window.latencies_s, 0.5) * 1000,
        "p99_ms": percentile(window.latencies_s, 0.99) * 1000,
        "p99_9_ms": percentile(window.latencies_s, 0.999) * 1000,
        "client_cpu_us_per_call": cpu_s / (load.calls - touched) * 1e6,
        "window_s": window.seconds,
        "calls": load.calls,
        "sum_after_touch": total,
    }


def main() -> None:
    """Serve cells until standard input closes; a cell that fails is answered with `error`."""
    for line in sys.stdin:
        cell = json.loads(line)
        # What the last cell froze is garbage now.
        gc.unfreeze()
        gc.collect()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                figures = runner.run(_measure(cell))
        except Exception as error:
            traceback.print_exc()
            figures = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
