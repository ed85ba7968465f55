"""How long a fresh `perdure run` takes until a client's first call has its answer.

Runs in the run.py process: a new data directory each time, no options, the clock from before the process is
spawned. The client's own import is not in it, its connecting is.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.contender import Handle
from benchmarks.perdure_counter import PerdureSystem
from benchmarks.perdure_counter import connect as connect_counters

__all__ = ["measure"]

RUNS = 5


def measure(directory: Path, runs: int = RUNS) -> dict[str, Any]:
    """The median of `runs` starts, and each of them, in seconds."""
    times_s = []
    for number in range(runs):
        place = directory / f"{number}"
        place.mkdir()
        times_s.append(_start_s(place))
    return {"median_s": statistics.median(times_s), "runs_s": times_s}


def _start_s(directory: Path) -> float:
    servers = PerdureSystem(options=())
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            started = time.perf_counter()
            value = runner.run(_first_call(servers.start(directory)))
            elapsed_s = time.perf_counter() - started
    finally:
        servers.stop()
    if value != 1:
        raise RuntimeError(f"the first increment of a new object gave {value!r}")
    return elapsed_s


async def _first_call(handle: Handle) -> Any:
    async with connect_counters(handle, "direct", 1, 1) as increment:
        return await increment(0)
