"""The load loop of one client: a fixed number of callers, each with one call outstanding.

Runs in a client process, on uvloop.  It adds 0.4 µs to a call (no look-ups of objects or methods, no
allocation for the figures), so that the figures are those of Perdure's own client.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import Counter
from typing import Any

from benchmarks.load.latencies import Latencies
from benchmarks.load.plan import NAMESPACE, LoadPlan, operations
from perdure import Client
from perdure.errors import NotExecuted, Overloaded, RemoteError

__all__ = ["Driver"]

_PAUSE_AFTER_ERROR_S = 0.01
"""A call can fail before it leaves the process: without a pause such callers would never let go."""


class Driver:
    """Puts the load of client number `number` on a cluster; used once."""

    def __init__(self, plan: LoadPlan, number: int, client: Client) -> None:
        self.plan = plan
        self.calls = 0
        """Calls that ended with a result."""
        self.latencies = Latencies()
        self.errors: Counter[str] = Counter()
        self.acked = array("q", bytes(8 * plan.objects))
        """Acknowledged writes of each object."""
        self.unknown = array("q", bytes(8 * plan.objects))
        """Writes of each object that may or may not have happened."""
        self.seen = array("q", bytes(8 * plan.objects))
        """The highest number of writes that each object has told."""
        self.ended_calls = 0
        """Calls that had ended when the load ended; what was outstanding then still ends, without load."""
        self.ended_after_s = 0.0
        stubs = [
            client.get(NAMESPACE, plan.name(index), timeout=plan.timeout_s) for index in range(plan.objects)
        ]
        payload = random.Random(f"{plan.seed}/payload").randbytes(plan.payload_bytes)
        self._args: tuple[Any, ...] = (payload,) if payload else ()
        self._writes = [stub.store if payload else stub.increment for stub in stubs]
        self._reads = [stub.get for stub in stubs] if plan.read_share > 0 else []
        self._operations = operations(plan, number)
        self._running = True
        self._started = 0.0

    async def run(self) -> None:
        """Calls until the plan's end or `stop`, and until everything outstanding has ended."""
        self._started = time.perf_counter()
        if self.plan.seconds is not None:
            asyncio.get_running_loop().call_later(self.plan.seconds, self.stop)
        async with asyncio.TaskGroup() as callers:
            for _ in range(self.plan.concurrency):
                callers.create_task(self._call_on())
        self.stop()

    def stop(self) -> None:
        """Starts no more calls."""
        if self._running:
            self._running = False
            self.ended_calls = self.calls
            self.ended_after_s = time.perf_counter() - self._started

    async def _call_on(self) -> None:
        clock, args = time.perf_counter, self._args
        writes, reads, counts = self._writes, self._reads, self.latencies.counts
        acked, seen = self.acked, self.seen
        for operation in self._operations:
            if not self._running:
                return
            started = clock()
            try:
                if operation >= 0:
                    index = operation
                    value = await writes[index](*args)
                    acked[index] += 1
                else:
                    index = ~operation
                    value = await reads[index]()
            except Exception as error:
                await self._failed(operation, error)
                continue
            elapsed = clock() - started
            try:
                counts[int(elapsed * 1e6)] += 1
            except IndexError:
                self.latencies.record(elapsed)
            self.calls += 1
            if value > seen[index]:
                seen[index] = value

    async def _failed(self, operation: int, error: Exception) -> None:
        self.errors[type(error).__name__] += 1
        # A call that was not executed, or whose method raised, left nothing behind.
        if operation >= 0 and not isinstance(error, NotExecuted | RemoteError):
            self.unknown[operation] += 1
        if self._running:
            await asyncio.sleep(error.retry_after if isinstance(error, Overloaded) else _PAUSE_AFTER_ERROR_S)
