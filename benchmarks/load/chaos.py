"""What happens to the cluster under load: workers are killed.  Runs in the load test's main process.

Only workers that serve are killed, those that the current slot map has a door of: killing what is just
starting would measure how fast Python starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from pathlib import Path

from perdure import connect

__all__ = ["Chaos"]


class Chaos:
    """``async with Chaos(url, supervisor_pid, interval_s, seed) as chaos``: kills until the block ends."""

    def __init__(self, url: str, supervisor_pid: int, interval_s: float, seed: int) -> None:
        self.kills = 0
        self._url = url
        self._supervisor_pid = supervisor_pid
        self._interval_s = interval_s
        self._random = random.Random(f"{seed}/chaos")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Chaos:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        async with connect(self._url) as client:
            while True:
                await asyncio.sleep(self._interval_s)
                slot_map = client.slot_map
                serving = {
                    (i, s.epoch) for i, s in enumerate(slot_map.seats if slot_map else ()) if s.endpoint
                }
                victims = [pid for who, pid in _workers(self._supervisor_pid) if who in serving]
                if victims:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._random.choice(victims), signal.SIGKILL)
                        self.kills += 1


def _workers(supervisor_pid: int) -> list[tuple[tuple[int, int], int]]:
    """((index, epoch), process id) of the supervisor's workers, in their order."""
    found = []
    for children in Path(f"/proc/{supervisor_pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if "perdure_worker" in command:
                    config = json.loads(command[command.index("perdure_worker") + 1])
                    found.append(((config["index"], config["epoch"]), int(pid)))
    return sorted(found)
