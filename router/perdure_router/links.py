"""One incarnation of a worker as the router sees it: what waits for it, what it has not answered.

Pure; runs in the router process.  Guarantees that what was queued leaves in order, coalesced into
bundles, and that at the worker's death the router can tell apart the calls that may have run (they
were handed to ZeroMQ) from those that surely did not (they are still here).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgpack

from perdure import codec, protocol

__all__ = ["Entry", "Link", "call_key"]

Entry = tuple[bytes, bytes, bytes]
"""Origin, header and body of a client's message."""

_TAIL: Final = slice(-8, None)


def call_key(origin: bytes, header: bytes) -> bytes:
    """What a raw call and its reply have in common: the client, and the last eight bytes of the header.

    Those are the sequence in CALL's header and the stamp, which repeats it, in REPLY's: no integer is
    made and no header unpacked on the way there and back.
    """
    return origin + header[_TAIL]


class _Sealed:
    """A message that is ready to leave, what it holds of the queue's bytes, and the raw calls in it."""

    __slots__ = ("calls", "frames", "size")

    def __init__(self, frames: list[bytes], calls: list[bytes], size: int) -> None:
        self.frames = frames
        self.calls = calls
        self.size = size


class Link:
    """The queue to one worker's incarnation and the table of the raw calls that it holds."""

    __slots__ = (
        "_bundle_bytes_max",
        "_header",
        "_open",
        "_open_bytes",
        "_open_calls",
        "_pack",
        "_sealed",
        "_taken_bytes",
        "_waiting_calls",
        "closing",
        "ended",
        "endpoint",
        "epoch",
        "in_flight",
        "queued_bytes",
        "ready",
        "worker",
    )

    def __init__(self, worker: int, epoch: int, endpoint: str, bundle_bytes_max: int) -> None:
        self.worker = worker
        self.epoch = epoch
        self.endpoint = endpoint
        self.closing = False
        """The worker said GOODBYE: nothing more is queued."""
        self.ended = False
        """The incarnation is gone; the link only passes out of use."""
        self.ready = False
        """The router has told the shell that something waits here."""
        self.in_flight: dict[bytes, float] = {}
        """Raw calls that were handed to ZeroMQ and not answered: key -> time of sending, oldest first."""
        self.queued_bytes = 0
        self._header = protocol.header(protocol.BUNDLE, worker, epoch)
        self._bundle_bytes_max = bundle_bytes_max
        self._pack: Callable[[list[bytes]], bytes] = codec.make_packer()
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._open_calls: list[bytes] = []
        self._sealed: deque[_Sealed] = deque()
        self._taken_bytes = 0
        self._waiting_calls = 0

    def took(self, size: int) -> None:
        """A large message of the worker's was read here: it hears so before all else, and may send more."""
        self._taken_bytes += size

    def add(self, entry: Sequence[bytes], size: int) -> None:
        """Queues a client's message that weighs `size` bytes; a full bundle is cut before it."""
        if self._open_bytes + size > self._bundle_bytes_max and self._open:
            self._seal()
        self._open += entry
        self._open_bytes += size
        self.queued_bytes += size

    def add_call(self, entry: Sequence[bytes], size: int) -> None:
        """`add` for a raw call, which is remembered from the moment it was sent."""
        self.add(entry, size)
        self._open_calls.append(call_key(entry[0], entry[1]))
        self._waiting_calls += 1

    @property
    def known_calls(self) -> int:
        """Raw calls that wait here or at the worker."""
        return len(self.in_flight) + self._waiting_calls

    def next_message(self) -> list[bytes] | None:
        """The message to send next; it stays queued until `sent`."""
        if self._taken_bytes:
            header = protocol.header(protocol.TAKEN, self.worker, self.epoch, self._taken_bytes)
            self._sealed.appendleft(_Sealed([header, b""], [], 0))
            self._taken_bytes = 0
        if not self._sealed:
            if not self._open:
                return None
            self._seal()
        return self._sealed[0].frames

    def sent(self, now: float) -> None:
        """ZeroMQ has taken the message that `next_message` gave: its calls may run from now on."""
        sealed = self._sealed.popleft()
        self.queued_bytes -= sealed.size
        if sealed.calls:
            self._waiting_calls -= len(sealed.calls)
            self.in_flight.update(dict.fromkeys(sealed.calls, now))

    def take_unsent(self) -> Iterator[Entry]:
        """Empties the queue; each message in it surely did not reach the worker."""
        sealed, self._sealed = self._sealed, deque()
        parts, self._open = self._open, []
        self._open_calls = []
        self._open_bytes = self.queued_bytes = self._waiting_calls = self._taken_bytes = 0
        for message in sealed:
            if message.size:
                yield from entries(msgpack.unpackb(message.frames[1]))
        yield from entries(parts)

    def say_last(self, header: bytes) -> None:
        """Queues a message of the router's own; the caller has emptied the queue and adds nothing more."""
        self._sealed.append(_Sealed([header, b""], [], 0))

    def forget_older(self, than: float) -> int:
        """Drops calls that were sent before `than`, whose replies were lost; returns how many."""
        old = 0
        for sent_at in self.in_flight.values():
            if sent_at >= than:
                break
            old += 1
        for key in list(self.in_flight)[:old] if old else ():
            del self.in_flight[key]
        return old

    def _seal(self) -> None:
        # The packer keeps a buffer of the largest bundle it ever made, so it only gets the usual sizes.
        small = self._open_bytes <= 2 * self._bundle_bytes_max
        body = self._pack(self._open) if small else msgpack.packb(self._open)
        self._sealed.append(_Sealed([self._header, body], self._open_calls, self._open_bytes))
        self._open = []
        self._open_calls = []
        self._open_bytes = 0


def entries(parts: Sequence[bytes]) -> Iterator[Entry]:
    """The (origin, header, body) of a bundle's flat list."""
    at = iter(parts)
    return zip(at, at, at, strict=True)
