"""Large messages that ZeroMQ has taken and not yet given to the kernel, counted by peer.  Pure.

Guarantees that one peer which does not read holds a bounded number of bytes of them, and all peers
together too.  ZeroMQ's own bound of a pipe counts messages, whatever they weigh: 150 results of 8 MiB
for one raw client took a worker from 33 to 1,369 MB.  Used by each `Channel`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

__all__ = ["Unsent"]

_OTHERS_LOOKED_AT = 2
"""Other peers whose messages are looked at with each new one: those that are gone are forgotten so."""


class Unsent:
    """What is on its way to each peer.  `left` of a message tells whether it is on its way no more."""

    def __init__(self, peer_bytes_max: int, total_bytes_max: int) -> None:
        self._peer_bytes_max = peer_bytes_max
        self._total_bytes_max = total_bytes_max
        self._messages: dict[bytes, deque[tuple[int, Callable[[], bool]]]] = {}
        self._sizes: dict[bytes, int] = {}
        self.total_bytes = 0
        """As of the last look at each peer."""

    def __len__(self) -> int:
        """Peers with messages on their way, as of the last look at each."""
        return len(self._messages)

    def takes(self, peer: bytes, size: int) -> bool:
        """Whether one more message may be handed over; one that is larger than the bound goes alone."""
        self._look(peer)
        for other in list(islice(self._messages, _OTHERS_LOOKED_AT)):
            self._look(other)
            if other in self._messages:  # to the end, so that the next time it is others' turn
                self._messages[other] = self._messages.pop(other)
        held = self._sizes.get(peer, 0)
        if held and held + size > self._peer_bytes_max:
            return False
        if self.total_bytes + size > self._total_bytes_max:
            for other in list(self._messages):
                self._look(other)
        return not self.total_bytes or self.total_bytes + size <= self._total_bytes_max

    def add(self, peer: bytes, size: int, left: Callable[[], bool]) -> None:
        """The message was handed over."""
        self._messages.setdefault(peer, deque()).append((size, left))
        self._sizes[peer] = self._sizes.get(peer, 0) + size
        self.total_bytes += size

    def _look(self, peer: bytes) -> None:
        messages = self._messages.get(peer)
        while messages and messages[0][1]():
            size, _ = messages.popleft()
            self._sizes[peer] -= size
            self.total_bytes -= size
        if messages is not None and not messages:
            del self._messages[peer], self._sizes[peer]
