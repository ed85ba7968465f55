"""A job queue for each key: one job runs, up to QUEUED_MAX wait, what comes beyond is refused at once.

Run it with `perdure run examples/jobs.py`.  Each environment deploys on its own, one deployment at a time:

    client.get("Deployments", "production").deploy("build-17")

`deploy` and `status` are interleaved, so `status` answers while a deployment runs.  Who is next is kept by an
`asyncio.Lock` in the object's memory, and those who wait for it are the calls themselves: should the worker
die, their callers learn it.  `ctx.exclusive()` would let one job run as well, but keep `status` out.
"""

import asyncio

from perdure import DurableObject, durable, interleaved, register_exception

QUEUED_MAX = 3
HISTORY_MAX = 100


@register_exception
class QueueFull(Exception):
    """Too many jobs wait already."""


class Deployments(DurableObject):
    count: int = durable(0)
    history: list[str] = durable(default_factory=list)

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._running: str | None = None
        self._queued: list[str] = []

    @interleaved
    async def deploy(self, build: str, seconds: float = 0.5) -> int:
        """Deploys a build when its turn comes; gives how many deployments there were with it."""
        if self._turn.locked() and len(self._queued) >= QUEUED_MAX:
            raise QueueFull(f"{len(self._queued)} deployments wait for {self.id.name} already")
        self._queued.append(build)
        try:
            await self._turn.acquire()
        finally:
            self._queued.remove(build)
        self._running = build
        try:
            await asyncio.sleep(seconds)  # sleep: stands for the work
        finally:
            self._running = None
            self._turn.release()
        # One span, from the last await to the end: both fields are stored together.
        self.count += 1
        self.history = [*self.history, build][-HISTORY_MAX:]
        return self.count

    @interleaved
    async def status(self) -> tuple[str | None, list[str], list[str]]:
        """What runs, what waits, what was done last."""
        return self._running, self._queued, self.history
