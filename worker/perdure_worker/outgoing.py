"""What a worker's door sends: at once, or when a peer that was slow takes it.  Worker's event loop.

Guarantees that the messages of a peer leave in order, that a peer which does not read delays nobody and
holds a bounded number of bytes here (`Backlog`) and in ZeroMQ (`Channel`).  What a peer calls while half
of its bound is taken is refused before it runs; replies of what ran before are dropped at the bound, and
counted: whoever waits for one learns by its deadline.

A router gets large bundles only as fast as it says that it has read them (TAKEN): its ZeroMQ reads ahead up
to `pipe_messages_received_max` messages whatever they weigh, so that a router whose loop was late held more
than is allowed for a client that does not read (159 MB once).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from perdure import protocol
from perdure.backlog import Backlog, Entry
from perdure.channel import PeerGone, WouldBlock
from perdure.limits import Limits

__all__ = ["Outgoing"]

_PEERS_TRIED = 8
"""Slow peers that are tried again after each reading of the door, which is how ZeroMQ tells of room."""
_PEERS_TRIED_BY_TIME = 256
"""The same each few milliseconds, so that a thousand peers that do not read take a tenth of the time."""


class Outgoing:
    """The sending side of a door."""

    def __init__(
        self,
        send: Callable[[Sequence[bytes]], None],
        on_gone: Callable[[bytes], None],
        again_later: Callable[[], None],
        full: set[bytes],
        limits: Limits,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`send` is a `Channel`'s; `again_later` asks that `send_waiting` be called in some milliseconds.

        `full` is kept as the set of those whose queue is half full: what they call need not even run.
        """
        self._send = send
        self._on_gone = on_gone
        self._again_later = again_later
        self._full = full
        self._clock = clock
        self._untaken: dict[bytes, tuple[int, float]] = {}
        """Of each router the bytes of large bundles that it has not read, and when it got the last one."""
        self._untaken_bytes_max = limits.pipe_bytes_max
        self._untaken_s = limits.heartbeat_lost_s
        self._large_bytes = limits.large_message_bytes
        self._full_bytes = limits.reply_queue_bytes_max // 2
        self.waiting = Backlog(limits.reply_queue_bytes_max, limits.reply_queues_bytes_max)
        self.dropped = 0
        """Messages that a bound took."""

    def send(self, identity: bytes, header: bytes, body: bytes) -> None:
        """Sends now, or keeps the message until its peer takes it."""
        waiting = self.waiting
        if identity not in waiting:
            try:
                self._hand_over((identity, header, body))
                return
            except WouldBlock:
                self._again_later()
            except PeerGone:
                self._on_gone(identity)
                return
        self.dropped += waiting.hold((identity, header, body))
        if waiting.bytes_for(identity) > self._full_bytes:
            self._full.add(identity)

    def try_send(self, identity: bytes, header: bytes, body: bytes) -> bool | None:
        """Sends now or not at all: false while the peer has no room, None when it is gone."""
        if identity in self.waiting:
            return False
        try:
            self._send((identity, header, body))
        except WouldBlock:
            return False
        except PeerGone:
            self._on_gone(identity)
            return None
        return True

    def taken(self, identity: bytes, size: int) -> None:
        """A router has read so many bytes of large bundles."""
        untaken, since = self._untaken.pop(identity, (0, 0.0))
        if untaken > size:
            self._untaken[identity] = untaken - size, since
        if identity in self.waiting:
            self._try_one(identity)

    def send_some(self) -> None:
        """The door was read: some of those who wait may have room."""
        if self.waiting:
            self._try(_PEERS_TRIED)

    def send_waiting(self) -> None:
        """Time has passed: tries again, and asks to be called again if somebody still waits."""
        self._try(_PEERS_TRIED_BY_TIME)
        if self.waiting:
            self._again_later()

    def _try(self, peers: int) -> None:
        for identity in self.waiting.some_peers(peers):
            self._try_one(identity)

    def _try_one(self, identity: bytes) -> None:
        waiting = self.waiting
        while (message := waiting.first(identity)) is not None:
            try:
                self._hand_over(message)
            except WouldBlock:
                break
            except PeerGone:
                waiting.forget(identity)
                self._on_gone(identity)
                break
            waiting.sent(identity)
        if waiting.bytes_for(identity) <= self._full_bytes:
            self._full.discard(identity)

    def _hand_over(self, message: Entry) -> None:
        identity, header, body = message
        size = len(body)
        if size < self._large_bytes or header[1] != protocol.BUNDLE:
            self._send(message)
            return
        now = self._clock()
        untaken, since = self._untaken.get(identity, (0, now))
        if untaken and untaken + size > self._untaken_bytes_max:
            if now - since < self._untaken_s:
                raise WouldBlock("the router has not read the large bundles before this one")
            untaken = 0  # a living router would have been killed by now: the send says whether it is gone
        self._send(message)
        if not untaken:  # routers that are no more have left something, too
            self._untaken = {k: v for k, v in self._untaken.items() if now - v[1] < self._untaken_s}
        self._untaken[identity] = untaken + size, now
