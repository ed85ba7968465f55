"""The client process: one load loop for every contender.

Runs as `python -m benchmarks.driver`: each line of standard input is one cell (JSON), each line of
standard output its figures. `outstanding` asyncio tasks under uvloop each await one increment after
another, of objects chosen uniformly at random; the same picks in the same order for every contender.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import json
import random
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import uvloop

from benchmarks.contender import Connect, Increment

__all__ = ["MODULES", "percentile"]

MODULES = {
    "limit": "benchmarks.limit",
    "perdure": "benchmarks.perdure_counter",
    "redis": "benchmarks.redis_incr",
}
"""Where each system's `system` and `connect` are; imported when they are used."""

PICKS = 1 << 17
SEED = 20_240_229
TOUCH_OUTSTANDING = 256


class Load:
    """`outstanding` callers; every call's time is kept, and a window of them is reported."""

    def __init__(self, increment: Increment, objects: int) -> None:
        self._increment = increment
        self._objects = objects
        self._running = True
        self.calls = 0
        self.latencies_s: list[float] = []

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

    async def run(self, outstanding: int, warmup_s: float, seconds: float) -> tuple[list[float], float]:
        """The latencies of the calls that ended within the window, and the window's real length."""
        choose = random.Random(SEED)
        picks = itertools.cycle([choose.randrange(self._objects) for _ in range(PICKS)])
        callers = [asyncio.ensure_future(self._caller(picks)) for _ in range(outstanding)]
        try:
            await asyncio.sleep(warmup_s)
            first, started = len(self.latencies_s), time.perf_counter()
            await asyncio.sleep(seconds)
            last, ended = len(self.latencies_s), time.perf_counter()
        finally:
            self._running = False
            await asyncio.gather(*callers)
        self.calls += len(self.latencies_s)
        return self.latencies_s[first:last], ended - started

    async def _caller(self, picks: Iterator[int]) -> None:
        increment, clock, record = self._increment, time.perf_counter, self.latencies_s.append
        now = clock()
        while self._running:
            started = now
            await increment(next(picks))
            now = clock()
            record(now - started)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of `ordered` lies (nearest rank); `ordered` is not empty."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def _measure(cell: dict[str, Any]) -> dict[str, Any]:
    connect: Connect = importlib.import_module(MODULES[cell["system"]]).connect
    objects, outstanding = cell["objects"], cell["outstanding"]
    async with connect(cell["handle"], cell["form"], objects, outstanding) as increment:
        load = Load(increment, objects)
        total = await load.touch_all()
        latencies_s, window_s = await load.run(outstanding, cell["warmup_s"], cell["seconds"])
    latencies_s.sort()
    return {
        "calls_per_s": len(latencies_s) / window_s,
        "p50_ms": percentile(latencies_s, 0.5) * 1000,
        "p99_ms": percentile(latencies_s, 0.99) * 1000,
        "p99_9_ms": percentile(latencies_s, 0.999) * 1000,
        "window_s": window_s,
        "calls": load.calls,
        "sum_after_touch": total,
    }


def main() -> None:
    """Serve cells until standard input closes; a cell that fails is answered with `error`."""
    for line in sys.stdin:
        cell = json.loads(line)
        gc.collect()
        started_cpu_s = time.process_time()
        try:
            # uvloop.run would also work; the runner's debug flag off and a fresh loop are what matters.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                figures = runner.run(_measure(cell))
            figures["client_cpu_us_per_call"] = (time.process_time() - started_cpu_s) / figures["calls"] * 1e6
        except Exception as error:
            traceback.print_exc()
            figures = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
