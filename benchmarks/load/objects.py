"""The objects that the load test calls.  `perdure run benchmarks/load/objects.py` serves them.

A cluster with classes of its own serves them too when its module imports `LoadCounter` from here.
"""

from __future__ import annotations

from perdure import DurableObject, durable

__all__ = ["LoadCounter"]


class LoadCounter(DurableObject):
    """Counts the writes that it executed, so that the caller can tell lost ones and repeated ones."""

    writes: int = durable(0)

    async def increment(self, by: int = 1) -> int:
        """A small write; gives the number of writes so far."""
        self.writes += by
        return self.writes

    async def store(self, payload: bytes) -> int:
        """A write of `payload`'s size, which replaces the former payload; gives the number of writes."""
        self.storage.put("payload", payload)
        self.writes += 1
        return self.writes

    async def get(self) -> int:
        """The number of writes; reads and writes nothing on disk."""
        return self.writes
