"""A lower bound of a store's commit sequence, kept outside of it: what a lost end of its log is noticed by.

LevelDB opens without a word when its newest log is missing, or ends early at a record's boundary: synced
commits are gone and nothing tells (RELIABILITY §1.1). So the commit thread writes the sequence of a commit
that is on disk into a small file beside the store, and a store that ends before it is refused.

Guarantees:

- No false alarm. The number is written after the commit was synced, so it can only be too low: after a kill
  by what was committed within `MIRROR_INTERVAL_S`, after a loss of power by what the kernel had not yet
  written back by itself (the file is never synced). A file that is missing, torn or unreadable says nothing.
- It costs the commit thread a look at the clock (0.1 µs), and 20 times a second 2 µs and a hand-over of the
  interpreter. It stands in nobody's way: an error ends the mirroring, never a commit.

    <data>/shard-0000.sequence    record of the commit sequence, as in the store
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from perdure.errors import StorageError
from perdure_storage.keys import SEQUENCE_KEY
from perdure_storage.records import seal_number, unseal_number

__all__ = ["MIRROR_INTERVAL_S", "SequenceMirror", "mirror_path", "read_mirror"]

MIRROR_INTERVAL_S: Final = 0.05
"""Commits within this time after a mirrored one are not mirrored each."""
_RECORD_BYTES: Final = len(seal_number(SEQUENCE_KEY, 0))


def mirror_path(path: Path) -> Path:
    """The mirror of the shard at `path`."""
    return path.with_name(path.name + ".sequence")


def read_mirror(path: Path) -> int | None:
    """A commit that was durable in the shard at `path`; None when there is no telling."""
    with suppress(OSError, StorageError):
        return unseal_number(SEQUENCE_KEY, mirror_path(path).read_bytes()[:_RECORD_BYTES])
    return None


class SequenceMirror:
    """Writes the mirror of one shard; `note` belongs to the commit thread, `close` comes after it."""

    __slots__ = ("_clock", "_due", "_file")

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = clock()
        self._file = -1
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(mirror_path(path), flags, 0o600)

    def note(self, read: Callable[[bytes], bytes | None]) -> None:
        """A batch is on disk; `read` gives rows of the store."""
        now = self._clock()
        if now >= self._due:
            self._due = now + MIRROR_INTERVAL_S
            self._write(read)

    def close(self, read: Callable[[bytes], bytes | None]) -> None:
        """Writes the last sequence."""
        self._write(read)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, read: Callable[[bytes], bytes | None]) -> None:
        if self._file < 0:
            return
        try:
            record = read(SEQUENCE_KEY)
            if record is not None:
                # In place: all records have one length, so a reader finds the old one or the new one.
                os.pwrite(self._file, record, 0)
        except (OSError, StorageError):
            os.close(self._file)
            self._file = -1
