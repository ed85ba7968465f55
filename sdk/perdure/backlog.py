"""Messages for peers that do not take them yet.  Pure; runs in the router process and in workers.

Guarantees that a peer which does not read costs a bounded number of bytes, delays nobody else, and
gets what it gets in order; and that when all of them together hold too much, whoever holds most loses.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

__all__ = ["Backlog", "Entry"]

Entry = tuple[bytes, bytes, bytes]
"""Peer, header and body."""


class Backlog:
    """Queues of messages by peer, bounded in bytes for each peer and for all of them together."""

    def __init__(self, peer_bytes_max: int, total_bytes_max: int) -> None:
        self._peer_bytes_max = peer_bytes_max
        self._total_bytes_max = total_bytes_max
        self._queues: dict[bytes, deque[Entry]] = {}
        self._sizes: dict[bytes, int] = {}
        self.total_bytes = 0

    def __len__(self) -> int:
        """Peers with something waiting."""
        return len(self._queues)

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._queues

    def bytes_for(self, peer: bytes) -> int:
        """What waits for the peer."""
        return self._sizes.get(peer, 0)

    def some_peers(self, count: int) -> list[bytes]:
        """Peers with something waiting, at most `count` of them; the next time it is others' turn."""
        peers = list(islice(self._queues, count))
        if len(peers) < len(self._queues):
            for peer in peers:
                self._queues[peer] = self._queues.pop(peer)
        return peers

    def hold(self, message: Entry) -> int:
        """Keeps the message behind the others of its peer; how many messages a bound took for it.

        That is this one when its peer has no room, else the latest ones of whoever holds most.
        """
        peer = message[0]
        size = _size(message)
        held = self._sizes.get(peer, 0)
        if held + size > self._peer_bytes_max:
            return 1
        dropped = 0
        while self.total_bytes + size > self._total_bytes_max:
            largest = max(self._sizes, key=self._sizes.__getitem__, default=peer)
            if self._sizes.get(largest, 0) <= held + size:
                return dropped + 1
            self._take(largest, self._queues[largest].pop())
            dropped += 1
        self._queues.setdefault(peer, deque()).append(message)
        self._sizes[peer] = held + size
        self.total_bytes += size
        return dropped

    def first(self, peer: bytes) -> Entry | None:
        """The peer's oldest message; it stays until `sent`."""
        queue = self._queues.get(peer)
        return queue[0] if queue else None

    def sent(self, peer: bytes) -> None:
        """The message that `first` gave has left."""
        self._take(peer, self._queues[peer].popleft())

    def forget(self, peer: bytes) -> int:
        """Drops all that waits for the peer; returns how many messages."""
        dropped = len(self._queues.pop(peer, ()))
        self.total_bytes -= self._sizes.pop(peer, 0)
        return dropped

    def _take(self, peer: bytes, message: Entry) -> None:
        size = _size(message)
        self._sizes[peer] -= size
        self.total_bytes -= size
        if not self._queues[peer]:
            self.forget(peer)


def _size(message: Entry) -> int:
    return len(message[1]) + len(message[2])
