"""The application of `test_alarms`: alarms that write down outside of Perdure when they run."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

from perdure import Alarm, DurableObject, durable


class Witness(DurableObject):
    """Its handler writes a line into a file, and waits while another file is there."""

    path: str = durable("")
    runs: int = durable(0)

    async def arm(self, path: str, at: float) -> None:
        """Has the handler run at a time, in seconds since the epoch."""
        self.path = path
        self.storage.set_alarm(at, name="bell")

    async def count(self) -> int:
        """How many runs have ended well."""
        return self.runs

    async def alarm(self, alarm: Alarm) -> None:
        """Writes down who runs, which attempt, and whether it is early; `path`.hold makes it wait."""
        early = datetime.now(UTC) < alarm.scheduled_at
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{self.id.name} {alarm.name} {alarm.attempt} {early} {os.getpid()}\n")
        self.runs += 1
        if Path(self.path + ".hold").exists():
            await asyncio.Event().wait()


class Tick(DurableObject):
    """One of very many that are due at once."""

    runs: int = durable(0)

    async def arm(self, at: float) -> None:
        """Has the handler run at a time, in seconds since the epoch."""
        self.storage.set_alarm(at)

    async def count(self) -> int:
        """How often the handler ran."""
        return self.runs

    async def alarm(self, alarm: Alarm) -> None:
        """Counts."""
        self.runs += 1


class Bystander(DurableObject):
    """Whoever else is served meanwhile."""

    async def ping(self) -> str:
        """An answer."""
        return "pong"
