"""The default engine: LevelDB through plyvel, in the worker that owns the directory.

Guarantees beyond `engine`: nothing is created unless asked for, every block that a read touches is
checked, and a write also survives when LevelDB has just begun a new log file. LevelDB syncs the log but
not the directory that names it (RELIABILITY §1.1), so after each write the directory is synced when it
has changed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import plyvel

from perdure.errors import StorageError
from perdure_storage.sequence_mirror import SequenceMirror

__all__ = ["LevelDBEngine", "error_text", "time_stamp_grain_ns"]

WRITE_BUFFER_BYTES: Final = 4 << 20
"""Size of one log file: bounds memory (two buffers) and the time of a restart, which replays them.

A memtable that outgrows the CPU's cache is slow: 512 small synced puts took 0.42 ms with 4 MiB, 0.74 with 16.
"""
COMPRESSION: Final = None
"""Objects' rows are small; without Snappy in the background thread the bare pipeline was 8 % faster."""
CACHE_BYTES: Final = 32 << 20
"""Uncompressed blocks kept in memory; LevelDB's 8 MiB suit a smaller machine."""
BLOOM_FILTER_BITS: Final = 10
"""Bits per key; 1 % of the reads of a missing key still touch a table. Must be given at every opening."""
_CLOCK_TICK_NS: Final = 20_000_000
_SECOND_NS: Final = 1_000_000_000


def error_text(error: plyvel.Error) -> str:
    """What LevelDB says, as text; plyvel hands out its bytes."""
    return ", ".join(
        arg.decode(errors="replace") if isinstance(arg, bytes) else str(arg) for arg in error.args
    )


def _unreadable(error: plyvel.Error, what: str) -> StorageError:
    return StorageError(
        f"{what} cannot be read from disk ({error_text(error)}): keep the directory as it is, check the "
        "disk, and restore the shard from a backup"
    )


class _Scan:
    """A raw iterator (`rows` steps through it) whose errors are ours.

    Raw, because it checks for errors at each step. plyvel's own iterators take a damaged block for the end
    of the data when no readable row follows it (forwards) or when they begin in it (backwards): rows were
    missing without an error (plyvel 1.5.1).
    """

    __slots__ = ("_iterator", "_next")

    def __init__(self, iterator: Any, rows: Iterator[tuple[bytes, bytes]]) -> None:
        self._iterator = iterator
        self._next: Callable[[], tuple[bytes, bytes]] = rows.__next__

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        try:
            return self._next()
        except plyvel.Error as error:
            raise _unreadable(error, "a range of rows") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._iterator.close()

    def close(self) -> None:
        self._iterator.close()


def _forwards(iterator: Any, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
    iterator.seek(start)
    while iterator.valid():
        row = iterator.item()
        if row[0] >= stop:
            return
        yield row
        iterator.next()


def _backwards(iterator: Any, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
    iterator.seek(stop)
    if iterator.valid():
        iterator.prev()
    else:
        iterator.seek_to_last()
    while iterator.valid():
        row = iterator.item()
        if row[0] < start:
            return
        yield row
        iterator.prev()


class _Reader:
    """Reads of a plyvel database or snapshot, all of them with checksums (RELIABILITY §1.4)."""

    def __init__(self, source: Any) -> None:
        self._get: Callable[..., bytes | None] = source.get
        self._raw_iterator: Callable[..., Any] = source.raw_iterator

    def get(self, key: bytes, /) -> bytes | None:
        try:
            return self._get(key, verify_checksums=True)
        except plyvel.Error as error:
            raise _unreadable(error, f"row {key[:80].hex()}") from error

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> _Scan:
        try:
            iterator = self._raw_iterator(verify_checksums=True)
        except plyvel.Error as error:
            raise _unreadable(error, "a range of rows") from error
        return _Scan(iterator, (_backwards if reverse else _forwards)(iterator, start, stop))


class _Snapshot(_Reader):
    def __init__(self, snapshot: Any) -> None:
        super().__init__(snapshot)
        self._snapshot = snapshot

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._snapshot.close()

    def close(self) -> None:
        self._snapshot.close()


class LevelDBEngine(_Reader):
    """One LevelDB directory, opened for this process alone.

    `create` makes a new database; it must never be given for a directory that once held data, because
    LevelDB deletes all tables of a database whose CURRENT file is lost (RELIABILITY §1.1). The
    constructor raises plyvel's errors; `shard` turns them into ours.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        write_buffer_bytes: int = WRITE_BUFFER_BYTES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._db = plyvel.DB(
            str(path),
            create_if_missing=create,
            error_if_exists=create,
            paranoid_checks=True,
            write_buffer_size=write_buffer_bytes,
            lru_cache_size=cache_bytes,
            bloom_filter_bits=BLOOM_FILTER_BITS,
            compression=COMPRESSION,
        )
        super().__init__(self._db)
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._synced_mtime_ns: int | None = None
        self._writes = 0
        self._directory_syncs = 0
        self._mirror: SequenceMirror | None = None
        self._closed = False

    def new_batch(self) -> Any:
        # Never used as a context manager: plyvel commits half of a batch whose block raised.
        return self._db.write_batch(sync=True)

    def write(self, batch: Any, /) -> None:
        batch.write()
        self._writes += 1
        self._sync_directory()
        if self._mirror is not None:
            self._mirror.note(self.get)

    def snapshot(self) -> _Snapshot:
        return _Snapshot(self._db.snapshot())

    def mirror_sequence(self, mirror: SequenceMirror) -> None:
        """Keeps `mirror` up to date from now on, and closes it."""
        self._mirror = mirror

    def approximate_bytes(self, start: bytes, stop: bytes) -> int:
        """Size of the tables' part between two keys; rows still in the log are not counted."""
        size: int = self._db.approximate_size(start, stop)
        return size

    def stats(self) -> dict[str, int | str]:
        def number(name: bytes) -> int:
            return int(self._db.get_property(name) or b"0")

        return {
            "engine": "leveldb",
            "writes": self._writes,
            "directory_syncs": self._directory_syncs,
            "level0_files": number(b"leveldb.num-files-at-level0"),
            "memory_bytes": number(b"leveldb.approximate-memory-usage"),
            "disk_bytes": sum(_file_sizes(self._directory)),
        }

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._mirror is not None:
                self._mirror.close(self.get)
            self._db.close()
            os.close(self._directory)

    def _sync_directory(self) -> None:
        mtime_ns = os.fstat(self._directory).st_mtime_ns
        if mtime_ns == self._synced_mtime_ns:
            return
        os.fsync(self._directory)
        self._directory_syncs += 1
        age_ns = time.time_ns() - mtime_ns
        self._synced_mtime_ns = mtime_ns if age_ns > time_stamp_grain_ns(mtime_ns) else None


def time_stamp_grain_ns(mtime_ns: int) -> int:
    """How old a directory's time stamp must be before an equal one means that nothing has changed since.

    Two changes within one tick of the kernel's clock (1 to 10 ms, doubled here) bear one time stamp. Some
    file systems keep only seconds (ext4 with small inodes), which shows as a whole number of them.
    """
    return _CLOCK_TICK_NS if mtime_ns % _SECOND_NS else 2 * _SECOND_NS


def _file_sizes(directory: int) -> Iterator[int]:
    with os.scandir(directory) as entries:
        for entry in entries:
            # A compaction may delete a file between its listing and this look at it.
            with contextlib.suppress(FileNotFoundError):
                yield entry.stat().st_size
