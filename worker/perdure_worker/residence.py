"""Which objects are in memory: they leave when they are idle, the longest unused for new ones.  Pure.

Guarantees that an object leaves only when nothing of it is running, waiting or not yet durable, and that
looking for those which may leave never holds the loop up for long.  Runs in the worker's event loop.
"""

from __future__ import annotations

from perdure_worker.resident import Resident
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.system_work import SystemWork

__all__ = ["Residence"]


class Residence(SystemWork):
    """The side of the host that knows how much fits into memory."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        super().__init__(settings, parts)
        self.idle_evict_s = settings.idle_evict_s
        self.live_objects_max = settings.live_objects_max

    def touch(self, resident: Resident) -> None:
        """The object was in use until now."""
        resident.used = self.clock()
        self.live.move_to_end(resident.key)

    def evict_idle(self) -> int:
        """Drops objects without events for `idle_evict_s`, a bounded number at a time; how many went."""
        before = self.clock() - self.idle_evict_s
        gone = 0
        for resident in self._oldest(before):
            if self._leaves_memory(resident):
                gone += 1
            else:
                self.touch(resident)  # in use; so that many of them do not hide the idle ones behind them
        return gone

    def _oldest(self, before: float) -> list[Resident]:
        residents: list[Resident] = []
        for resident in self.live.values():
            if resident.used > before or len(residents) >= self.limits.evictions_max:
                break
            residents.append(resident)
        return residents

    def _evict_least_recently_used(self) -> None:
        # The busy ones are passed over; when many are busy the cap gives way, never an object in use.
        for _ in range(min(len(self.live), self.limits.eviction_looks_max)):
            resident = next(iter(self.live.values()))
            if not self._leaves_memory(resident):
                self.touch(resident)
            elif len(self.live) < self.live_objects_max:
                return

    def _leaves_memory(self, resident: Resident) -> bool:
        """Drops the object if nothing of it is open; whether it went."""
        if (
            resident.turn is not None
            or resident.mailbox is not None
            or resident.calls
            or resident.ticket > self.durable
            or (resident.instance is not None and self.save_strays(resident))
        ):
            return False
        self.windows.leave(resident)
        self.sends.evict(resident)
        del self.live[resident.key]
        return True
