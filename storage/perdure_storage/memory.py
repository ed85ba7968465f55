"""An engine in memory, for tests and simulation: the visible behaviour of LevelDB without a disk.

What was written lives as long as the object, also after `close`: handing the same `MemoryEngine.disk` to
a new engine is a restart. `faults` runs before each write and may raise, which is a write that failed
with nothing stored.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from threading import Lock
from types import TracebackType
from typing import Any, Self

__all__ = ["MemoryBatch", "MemoryDisk", "MemoryEngine"]


class MemoryDisk:
    """The durable content. Each method is one step for threads: a commit thread may write beside reads."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._order: list[bytes] = []  # exactly the keys of _rows, sorted
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            return self._rows.get(key)

    def between(self, start: bytes, stop: bytes) -> list[tuple[bytes, bytes]]:
        """The rows with ``start <= key < stop``, in key order."""
        with self._lock:
            keys = self._order[bisect_left(self._order, start) : bisect_left(self._order, stop)]
            return [(key, self._rows[key]) for key in keys]

    def apply(self, writes: list[tuple[bytes, bytes | None]]) -> None:
        """All of `writes` in their order; the value None removes."""
        with self._lock:
            for key, value in writes:
                if value is not None:
                    if key not in self._rows:
                        insort(self._order, key)
                    self._rows[key] = value
                elif self._rows.pop(key, None) is not None:
                    del self._order[bisect_left(self._order, key)]

    def copy(self) -> MemoryDisk:
        """What is durable now, as a disk of its own: the machine at the moment of a power loss."""
        twin = MemoryDisk()
        with self._lock:
            twin._rows = self._rows.copy()
            twin._order = self._order.copy()
        return twin


class MemoryBatch:
    """Writes in the order in which they were added; the value None removes."""

    def __init__(self) -> None:
        self.writes: list[tuple[bytes, bytes | None]] = []

    def put(self, key: bytes, value: bytes, /) -> None:
        self.writes.append((key, value))

    def delete(self, key: bytes, /) -> None:
        self.writes.append((key, None))


class _Scan:
    def __init__(self, rows: Iterator[tuple[bytes, bytes]]) -> None:
        self._rows = rows

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        return next(self._rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._rows = _after_close("this scan is closed")


class _Reader:
    def __init__(self, disk: MemoryDisk) -> None:
        self.disk = disk
        self._closed = False

    def get(self, key: bytes, /) -> bytes | None:
        self._check_open()
        return self.disk.get(key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> _Scan:
        self._check_open()
        rows = self.disk.between(start, stop)
        return _Scan(reversed(rows) if reverse else iter(rows))

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the store is closed")


class _Snapshot(_Reader):
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryEngine(_Reader):
    """A store in memory. `faults`, when given, is called before each write and may raise."""

    def __init__(self, disk: MemoryDisk | None = None, *, faults: Callable[[], None] | None = None) -> None:
        super().__init__(disk if disk is not None else MemoryDisk())
        self._faults = faults
        self._writes = 0

    def new_batch(self) -> MemoryBatch:
        self._check_open()
        return MemoryBatch()

    def write(self, batch: Any, /) -> None:
        self._check_open()
        if self._faults is not None:
            self._faults()
        self.disk.apply(batch.writes)
        self._writes += 1

    def snapshot(self) -> _Snapshot:
        self._check_open()
        return _Snapshot(self.disk.copy())

    def approximate_bytes(self, start: bytes, stop: bytes) -> int:
        return sum(len(key) + len(value) for key, value in self.disk.between(start, stop))

    def stats(self) -> dict[str, int | str]:
        return {"engine": "memory", "writes": self._writes, "rows": len(self.disk)}


def _after_close(message: str) -> Iterator[tuple[bytes, bytes]]:
    raise RuntimeError(message)
    yield  # makes this a generator: the error comes at the first use, not here
