"""Who a reply goes to, and the replies of a tick gathered into one message each.  Pure.

A peer is a direct client (its ZeroMQ identity at the door), a client behind the router (the router's
identity and the client's origin), or this worker itself (objects that call each other).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from perdure import protocol
from perdure.limits import Limits

__all__ = ["Peer", "Peers"]

_LIMITS = Limits()


class Peer:
    """The receiver of replies; `replies` are encoded and may leave now."""

    __slots__ = ("gone", "held", "held_for", "identity", "origin", "probed", "raw", "replies", "sequences")

    def __init__(self, identity: bytes, origin: bytes | None, *, raw: bool) -> None:
        self.identity = identity
        self.origin = origin
        """The client behind the router; None for who speaks to the door itself."""
        self.raw = raw
        """A client that sends one call a message gets one reply a message."""
        self.replies: list[bytes] = []
        self.sequences: list[int] = []
        """Of a raw peer, parallel to `replies`; inverted (`~sequence`) for items of a stream."""
        self.held: list[bytes] = []
        """Replies that wait for the commit group `held_for`, the last one that any waits for."""
        self.held_for = 0
        self.gone = False
        """Whether its connection is known to be closed."""
        self.probed = False
        """Whether it gets a message that asks for nothing, which shows whether its connection stands."""


class Peers:
    """Knows the door's peers (bounded, the longest silent is forgotten) and what they are owed."""

    def __init__(self, worker: int, epoch: int) -> None:
        self._worker = worker
        self._epoch = epoch
        self._peers: OrderedDict[tuple[bytes, bytes | None, bool], Peer] = OrderedDict()
        self._header = protocol.header(protocol.REPLIES, worker, epoch)
        self._probe_header = protocol.header(protocol.STREAM, worker, epoch)
        self._bundle_header = protocol.header(protocol.BUNDLE, worker, epoch)
        self.dirty: list[Peer] = []
        """Peers with replies that may leave."""
        self.full: set[bytes] = set()
        """Identities that do not read: so much waits for them that what they call is refused."""
        self.on_many_bytes: Callable[[], None] = _wait_for_the_tick
        """Called when large replies wait, before the tick ends: a tick may run thousands of turns."""
        self._large_bytes = 0
        self.posted: list[tuple[bytes, bytes, bytes]] = []
        """Messages that are no replies, as `take_messages` gives them."""

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, identity: bytes, origin: bytes | None = None, *, raw: bool = False) -> Peer:
        """The peer of that address, made when it is new."""
        key = (identity, origin, raw)
        peer = self._peers.get(key)
        if peer is None:
            if len(self._peers) >= _LIMITS.peers_max:
                self._peers.popitem(last=False)
            peer = self._peers[key] = Peer(identity, origin, raw=raw)
        else:
            self._peers.move_to_end(key)
        return peer

    def probe(self, peer: Peer) -> None:
        """If the peer's connection is closed, the shell or the router learns it."""
        if peer.identity:
            peer.probed = True
            self.dirty.append(peer)

    def post(self, identity: bytes, kind: int, body: bytes) -> None:
        """A message to a direct peer that is no reply leaves with the tick."""
        self.posted.append((identity, protocol.header(kind, self._worker, self._epoch), body))

    def add_large(self, size: int) -> None:
        """A reply that is not small was added to a peer."""
        self._large_bytes += size
        if self._large_bytes >= _LIMITS.batch_bytes_max:
            self._large_bytes = 0
            self.on_many_bytes()

    def forget(self, identity: bytes) -> None:
        """The door's peer is gone, and with it all who spoke through it."""
        for key in [key for key in self._peers if key[0] == identity]:
            self._peers.pop(key).gone = True

    def identities(self) -> set[bytes]:
        """Everybody who spoke to this door."""
        return {identity for identity, _, _ in self._peers}

    def take_messages(self, pack: Callable[[list[bytes]], bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
        """The tick's messages as (identity, header, body), cut at about `batch_bytes_max`."""
        if self.posted:
            posted, self.posted = self.posted, []
            yield from posted
        dirty, self.dirty = self.dirty, []
        self._large_bytes = 0
        bundles: dict[bytes, list[bytes]] = {}
        sizes: dict[bytes, int] = {}
        for peer in dirty:
            identity = peer.identity
            for header, body in self._bodies(peer):
                if peer.origin is None:
                    yield identity, header, body
                    continue
                if sizes.get(identity, 0) + len(body) > _LIMITS.batch_bytes_max and identity in bundles:
                    yield identity, self._bundle_header, pack(bundles.pop(identity))
                    sizes[identity] = 0
                sizes[identity] = sizes.get(identity, 0) + len(body)
                bundles.setdefault(identity, []).extend((peer.origin, header, body))
        for identity, parts in bundles.items():
            yield identity, self._bundle_header, pack(parts)

    def _bodies(self, peer: Peer) -> Iterator[tuple[bytes, bytes]]:
        if peer.probed:
            peer.probed = False
            yield self._probe_header, b""
            if not peer.replies:
                return
        replies, peer.replies = peer.replies, []
        if peer.raw:
            sequences, peer.sequences = peer.sequences, []
            for sequence, reply in zip(sequences, replies, strict=True):
                kind, number = (
                    (protocol.REPLY, sequence) if sequence >= 0 else (protocol.REPLY_ITEM, ~sequence)
                )
                yield protocol.header(kind, self._worker, self._epoch, number), reply
            return
        if (
            len(replies) < _LIMITS.batch_calls_max
            and sum([len(reply) for reply in replies]) <= _LIMITS.batch_bytes_max
        ):
            yield self._header, protocol.array_header(len(replies)) + b"".join(replies)
            return
        chunk: list[bytes] = []
        size = 0
        for reply in replies:
            if chunk and (
                size + len(reply) > _LIMITS.batch_bytes_max or len(chunk) >= _LIMITS.batch_calls_max - 1
            ):
                yield self._header, protocol.array_header(len(chunk)) + b"".join(chunk)
                chunk, size = [], 0
            chunk.append(reply)
            size += len(reply)
        yield self._header, protocol.array_header(len(chunk)) + b"".join(chunk)


def _wait_for_the_tick() -> None:
    """Replies leave when the tick ends."""
