"""What a turn sends to its object's sockets, gathered into records for their gateways.  Pure.

Guarantees that a socket gets what it was sent in that order, that the same data for many sockets travels
once, and that a record can be decoded within the bounds of every message.

A record is a list of entries ``[kind, payload, [numbers of sockets]]``.  Runs in the worker's event loop, and
in the thread of a `@blocking` method.
"""

from __future__ import annotations

from typing import Any, Final

from perdure import codec
from perdure.limits import Limits

__all__ = ["AUTO", "BINARY", "CLOSE", "TEXT", "Frames", "entries_of"]

TEXT: Final = 0
BINARY: Final = 1
CLOSE: Final = 2
"""Payload: code and reason."""
AUTO: Final = 3
"""The automatic response; payload: request and response, or nil to end it."""

_ENTRY_BYTES = 16
"""About what an entry weighs beside its payload, and each further socket of it."""


class _ForGateway:
    """What one gateway gets."""

    __slots__ = ("entries", "last", "latest")

    def __init__(self) -> None:
        self.entries: list[list[Any]] = []
        self.latest: dict[tuple[int, Any], int] = {}
        """Kind and payload -> the last entry with them."""
        self.last: dict[int, int] = {}
        """Socket -> its last entry: what it is sent afterwards stands behind it."""


class Frames:
    """The frames of one turn since its last commit point."""

    __slots__ = ("_gateways", "size")

    def __init__(self) -> None:
        self._gateways: dict[bytes, _ForGateway] = {}
        self.size = 0
        """About how many bytes they are encoded."""

    def __bool__(self) -> bool:
        return bool(self._gateways)

    def join(self, gateway: bytes, number: int, kind: int, payload: Any) -> bool:
        """Adds the frame to an entry with the same data, if one stands behind all that the socket has."""
        mine = self._gateways.get(gateway)
        if mine is None:
            return False
        at = mine.latest.get((kind, payload), -1)
        if at <= mine.last.get(number, -1):
            return False
        mine.entries[at][2].append(number)
        mine.last[number] = at
        self.size += _ENTRY_BYTES
        return True

    @staticmethod
    def growth(kind: int, payload: Any) -> int:
        """By how much `size` grows with another entry."""
        return _ENTRY_BYTES + (len(payload) if kind in (TEXT, BINARY) else 0)

    def add(self, gateway: bytes, number: int, kind: int, payload: Any) -> None:
        """Adds the frame as another entry; `payload` is hashable."""
        mine = self._gateways.get(gateway)
        if mine is None:
            mine = self._gateways[gateway] = _ForGateway()
        mine.last[number] = mine.latest[kind, payload] = len(mine.entries)
        mine.entries.append([kind, list(payload) if type(payload) is tuple else payload, [number]])
        self.size += self.growth(kind, payload)

    def records(self, limits: Limits) -> dict[bytes, list[bytes]]:
        """The encoded records of each gateway, in order: one, unless they are many or large frames."""
        return {gateway: _cut(mine.entries, limits) for gateway, mine in self._gateways.items()}


def _cut(entries: list[list[Any]], limits: Limits) -> list[bytes]:
    records: list[bytes] = []
    part: list[list[Any]] = []
    size = 0
    for entry in entries:
        payload = entry[1]
        grown = _ENTRY_BYTES * len(entry[2]) + (len(payload) if type(payload) in (str, bytes) else 0)
        if part and (size + grown > limits.batch_bytes_max or len(part) >= limits.frames_record_entries_max):
            records.append(codec.encode(part))
            part, size = [], 0
        part.append(entry)
        size += grown
    records.append(codec.encode(part))
    return records


def entries_of(record: bytes) -> int:
    """How many entries an encoded record has."""
    first = record[0]
    if first == 0xDC:
        return int.from_bytes(record[1:3], "big")
    return int.from_bytes(record[1:5], "big") if first == 0xDD else first & 0x0F
