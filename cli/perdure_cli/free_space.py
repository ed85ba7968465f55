"""When the operator is warned that the disk gets full.  Pure; decides for the supervisor.

Guarantees one warning when free space falls below the reserve, and one word when it is back: a worker
whose disk is full ends, and no start succeeds before there is room (docs/operations.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from perdure.limits import MIB, Limits

__all__ = ["FreeSpace"]


@dataclass
class FreeSpace:
    """Remembers what was last said."""

    limits: Limits
    _is_short: bool = False
    _look_at: float = 0.0

    def is_due(self, now: float) -> bool:
        """Whether it is time for another look at the disk; counts as having looked."""
        if now < self._look_at:
            return False
        self._look_at = now + self.limits.disk_look_s
        return True

    def look(self, free_bytes: int, total_bytes: int) -> str | None:
        """What to tell the operator of this much free space; None while nothing has changed."""
        reserve = max(self.limits.disk_free_min_bytes, int(total_bytes * self.limits.disk_free_min_share))
        was_short, self._is_short = self._is_short, free_bytes < reserve
        if self._is_short and not was_short:
            return (
                f"the disk gets full: {free_bytes // MIB} MiB are free, fewer than {reserve // MIB}; free "
                "space now: on a full disk nothing can be read or written until there is room"
            )
        if was_short and not self._is_short:
            return f"the disk has room again: {free_bytes // MIB} MiB are free"
        return None
