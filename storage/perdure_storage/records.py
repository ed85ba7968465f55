"""Records on disk: what a row holds. Pure; runs wherever rows are written or read.

    record = format u8 (0x01) | crc32 u32 big-endian over key + payload | payload

Guarantees: a payload comes back exactly as it was sealed under the same key, or not at all. The checksum
covers the key, so a record that a bug put under another key is found too (LevelDB's own checksums cover
blocks, and are not checked by default: RELIABILITY §1.4). Every format ever written stays readable; a
newer one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final
from zlib import crc32

from perdure_storage.errors import DamagedRecord, NewerFormat

__all__ = ["FORMAT", "HEADER_BYTES", "seal", "seal_number", "unseal", "unseal_number"]

FORMAT: Final = 1
"""Format that `seal` writes."""

_NUMBER_BYTES: Final = 8
HEADER_BYTES: Final = 5
"""Bytes of a record before its payload."""
_FORMAT_1: Final = 1 << 32
# The header is made as one 40-bit number because these two functions run for every row of every turn:
# 250 ns and 310 ns for a short row, of which the checksum is 180 (struct.pack, slices: 300 to 380).


def seal(key: bytes, payload: bytes) -> bytes:
    """The record that keeps `payload` under `key`."""
    return (_FORMAT_1 | crc32(payload, crc32(key))).to_bytes(HEADER_BYTES, "big") + payload


def unseal(key: bytes, record: bytes) -> bytes:
    """The payload of `record`, which was read under `key`.

    Raises `DamagedRecord` when the checksum is wrong and `NewerFormat` for a format of the future.
    """
    payload = record[HEADER_BYTES:]
    if int.from_bytes(record[:HEADER_BYTES], "big") == _FORMAT_1 | crc32(payload, crc32(key)):
        return payload
    return _unseal_unusual(key, record)


def seal_number(key: bytes, number: int) -> bytes:
    """The record of one of the shard's own numbers: u64 big-endian."""
    return seal(key, number.to_bytes(_NUMBER_BYTES, "big"))


def unseal_number(key: bytes, record: bytes | None) -> int | None:
    """The number that `seal_number` sealed; None for a row that is not there."""
    return None if record is None else int.from_bytes(unseal(key, record), "big")


def _unseal_unusual(key: bytes, record: bytes) -> bytes:
    found = record[0] if record else 0
    if found > FORMAT:
        raise NewerFormat(
            f"a record of format {found} was written by a newer version of Perdure (this one reads up to "
            f"{FORMAT}): run that version",
            found=found,
            supported=FORMAT,
        )
    reader = _READERS.get(found)
    if reader is None:
        raise DamagedRecord(f"the record of row {key[:80].hex()} has no valid format byte", key=key)
    return reader(key, record)


def _read_1(key: bytes, record: bytes) -> bytes:
    payload = record[HEADER_BYTES:]
    stored = int.from_bytes(record[1:HEADER_BYTES], "big")
    if len(record) < HEADER_BYTES or stored != crc32(payload, crc32(key)):
        raise DamagedRecord(f"the record of row {key[:80].hex()} does not match its checksum", key=key)
    return payload


_READERS: Final[Mapping[int, Callable[[bytes, bytes], bytes]]] = {1: _read_1}
"""Reader of each format ever written. A new format adds a line; none is ever removed."""
