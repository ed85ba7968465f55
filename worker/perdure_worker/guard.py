"""What keeps one object's misbehaviour from the others of its worker, put together for one incarnation.

Marks of what runs, the watchdog that reads them, the quarantine that outlives both, and tasks that cannot
end the loop.  Made before the host, which it serves.  Runs in the worker's event loop.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from perdure.limits import Limits
from perdure_storage.engine import Engine
from perdure_worker.child_tasks import ChildTasks
from perdure_worker.config import WorkerConfig
from perdure_worker.marks import Marks
from perdure_worker.quarantine import Blame, Quarantine
from perdure_worker.watchdog import Watchdog

if TYPE_CHECKING:
    from perdure_worker.host import Host

__all__ = ["Guard"]


class Guard:
    """The guard of one worker."""

    def __init__(self, config: WorkerConfig, engine: Engine, limits: Limits) -> None:
        self._limits = limits
        self.marks = Marks(config.marks if config.marks >= 0 else None)
        self.quarantine = Quarantine(limits, time.time)
        blame = Blame(**config.blame) if config.blame is not None else None
        self.quarantine.open(engine, blame, first=config.first)

    def watch(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        """Called in the loop, before the worker serves."""

        def label(key: bytes) -> str:
            resident = host.live.get(key)
            return resident.label if resident is not None else key.hex()

        loop.set_task_factory(ChildTasks(self.marks))
        self._watchdog = Watchdog(self.marks, self._limits, lambda: host.turns + self.marks.steps, label)
        self._watchdog.start()

    def close(self) -> None:
        """The worker ends."""
        self._watchdog.close()
