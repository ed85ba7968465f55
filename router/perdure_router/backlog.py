"""Answers that slow clients have not taken yet.  Pure; runs in the router process.

Guarantees that a client which does not read costs a bounded number of bytes, delays nobody else, and
gets what it gets in order.
"""

from __future__ import annotations

from collections import deque

from perdure_router.links import Entry

__all__ = ["Backlog"]


class Backlog:
    """Queues of answers by client, bounded in bytes for each client and for all of them together."""

    def __init__(self, client_bytes_max: int, total_bytes_max: int) -> None:
        self._client_bytes_max = client_bytes_max
        self._total_bytes_max = total_bytes_max
        self._queues: dict[bytes, deque[Entry]] = {}
        self._sizes: dict[bytes, int] = {}
        self.total_bytes = 0

    def __len__(self) -> int:
        """Clients with something waiting."""
        return len(self._queues)

    def __contains__(self, origin: bytes) -> bool:
        return origin in self._queues

    def origins(self) -> list[bytes]:
        """Clients with something waiting."""
        return list(self._queues)

    def hold(self, answer: Entry) -> bool:
        """Keeps the answer behind the others of its client; False when a bound forbids it."""
        origin, header, body = answer
        size = len(header) + len(body)
        held = self._sizes.get(origin, 0)
        if held + size > self._client_bytes_max or self.total_bytes + size > self._total_bytes_max:
            return False
        self._queues.setdefault(origin, deque()).append(answer)
        self._sizes[origin] = held + size
        self.total_bytes += size
        return True

    def first(self, origin: bytes) -> Entry | None:
        """The client's oldest answer; it stays until `sent`."""
        queue = self._queues.get(origin)
        return queue[0] if queue else None

    def sent(self, origin: bytes) -> None:
        """The answer that `first` gave has left."""
        _, header, body = self._queues[origin].popleft()
        size = len(header) + len(body)
        self._sizes[origin] -= size
        self.total_bytes -= size
        if not self._queues[origin]:
            self.forget(origin)

    def forget(self, origin: bytes) -> int:
        """Drops all that waits for the client; returns how many answers."""
        dropped = len(self._queues.pop(origin, ()))
        self.total_bytes -= self._sizes.pop(origin, 0)
        return dropped
