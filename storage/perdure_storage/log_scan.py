"""Where a LevelDB log is damaged, and whether that is its torn end. Pure and read-only; offline commands.

A loss of power may tear the record that was being written. It was never acknowledged, but a store that is
opened with `paranoid_checks` refuses the whole log for it (RELIABILITY §1.2). Damage in the middle, before
records that can be read, is another matter: acknowledged commits are gone.

The two are told apart by what follows; a damaged last record that had been synced looks like a torn one.
So this reports and repairs nothing.

    log     = blocks of 32 KiB of records; a rest of a block under 7 bytes is zeros
    record  = masked crc32c u32 | length u16 | type u8 (1 whole, 2 first, 3 middle, 4 last part) | data,
              numbers little-endian; the checksum covers type and data
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["LogReport", "scan_log"]

_BLOCK_BYTES: Final = 32 * 1024
_HEADER_BYTES: Final = 7
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_CASTAGNOLI: Final = 0x82F63B78
_MASK_DELTA: Final = 0xA282EAD8
_U32: Final = 0xFFFFFFFF


@dataclass(frozen=True)
class LogReport:
    """What a log holds: whole batches that can be read from its start, and the first damage behind them."""

    batches: int
    end: int
    """Bytes from the start up to which every batch is whole; what is behind it is damaged or unfinished."""
    damaged: bool
    """Whether something behind `end` is neither zeros nor a record that the end of the file cuts off."""
    batches_behind: int
    """Records behind the damage that can be read and begin a batch: if there are any, it is no torn end."""


def scan_log(content: bytes) -> LogReport:
    """Reads a whole log file."""
    table = _crc_table()
    batches = end = at = 0
    inside = False  # a batch whose first part was read
    while True:
        at = _next_header(at)
        kind, stop = _record(content, at, table)
        if kind == 0:
            break
        if (kind in (_WHOLE, _FIRST)) == inside:
            kind = 0  # parts out of order
            break
        inside = kind in (_FIRST, _MIDDLE)
        at = stop
        if not inside:
            batches, end = batches + 1, at
    damaged = not _is_cut_off(content, at)
    return LogReport(batches, end, damaged, _batches_behind(content, at, table) if damaged else 0)


def _next_header(at: int) -> int:
    """Where the next record's header begins: small rests of a block are skipped."""
    left = _BLOCK_BYTES - at % _BLOCK_BYTES
    return at + left if left < _HEADER_BYTES else at


def _record(content: bytes, at: int, table: list[int]) -> tuple[int, int]:
    """``(type, end)`` of the record at `at`; type 0 when it is none that can be trusted."""
    header = content[at : at + _HEADER_BYTES]
    if len(header) < _HEADER_BYTES:
        return 0, at
    length, kind = int.from_bytes(header[4:6], "little"), header[6]
    stop = at + _HEADER_BYTES + length
    if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or stop > len(content):
        return 0, at
    if at // _BLOCK_BYTES != (stop - 1) // _BLOCK_BYTES:
        return 0, at
    if _masked_crc(content[at + 6 : stop], table) != int.from_bytes(header[:4], "little"):
        return 0, at
    return kind, stop


def _is_cut_off(content: bytes, at: int) -> bool:
    """Whether the file ends at `at`, in zeros, or within a record: what LevelDB takes for the end."""
    rest = content[at:]
    if len(rest) < _HEADER_BYTES or not any(rest):
        return True
    in_last_block = at // _BLOCK_BYTES == len(content) // _BLOCK_BYTES
    return in_last_block and len(rest) < _HEADER_BYTES + int.from_bytes(rest[4:6], "little")


def _batches_behind(content: bytes, at: int, table: list[int]) -> int:
    """How many batches begin readably behind the damaged record at `at`."""
    found = 0
    header = content[at : at + _HEADER_BYTES]
    position = at + _HEADER_BYTES + int.from_bytes(header[4:6], "little")
    if at // _BLOCK_BYTES != position // _BLOCK_BYTES:
        position = (at // _BLOCK_BYTES + 1) * _BLOCK_BYTES
    while position < len(content):
        position = _next_header(position)
        kind, stop = _record(content, position, table)
        found += kind in (_WHOLE, _FIRST)
        # After something unreadable the next block is the first place where a record surely begins.
        position = stop if kind else (position // _BLOCK_BYTES + 1) * _BLOCK_BYTES
    return found


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_CASTAGNOLI if crc & 1 else 0)
        table.append(crc)
    return table


def _masked_crc(data: bytes, table: list[int]) -> int:
    crc = _U32
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    crc ^= _U32
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _U32
