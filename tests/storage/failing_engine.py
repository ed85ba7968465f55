"""A store whose n-th call fails, or in which the process dies: for tests that try every n.

Counted is each call that may touch the disk: reads, steps of scans, snapshots and writes; `new_batch`
only takes memory. What was written stands in the engine below, which outlives the process.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from perdure.errors import StorageError
from perdure_storage.engine import Engine

__all__ = ["Fate", "FailingEngine", "ReadFailed", "Killed", "WriteFailed"]

T = TypeVar("T")


class Fate(Enum):
    """What becomes of the n-th call, and of the process."""

    ERROR = "the call fails and has done nothing"
    ERROR_AFTER = "the call fails although it has done its work"
    KILLED = "the process dies before the call"
    KILLED_AFTER = "the process dies when the call has done its work"


class ReadFailed(StorageError):
    """What the engines make of a read that fails."""


class WriteFailed(OSError):
    """What a write raises: nobody knows what is on disk."""


class Killed(BaseException):
    """The end of the process: nothing handles it."""


class FailingEngine:
    """An engine over `below` whose call number `fail_at` (from 1) meets its `fate`; 0: none does."""

    def __init__(self, below: Engine, fail_at: int = 0, fate: Fate = Fate.ERROR) -> None:
        self.below = below
        self.calls = 0
        self._fail_at = fail_at
        self._fate = fate
        self.new_batch = below.new_batch
        self.stats = below.stats
        self.close = below.close
        self.approximate_bytes = below.approximate_bytes

    @property
    def failed(self) -> bool:
        """Whether the n-th call has come."""
        return 0 < self._fail_at <= self.calls

    def get(self, key: bytes, /) -> bytes | None:
        return self._call(ReadFailed, self.below.get, key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> FailingScan:
        return FailingScan(self, self._call(ReadFailed, self.below.scan, start, stop, reverse=reverse))

    def snapshot(self) -> FailingSnapshot:
        return FailingSnapshot(self, self._call(ReadFailed, self.below.snapshot))

    def write(self, batch: Any, /) -> None:
        self._call(WriteFailed, self.below.write, batch)

    def _call(self, error: type[Exception], run: Callable[..., T], *args: Any, **options: Any) -> T:
        self.calls += 1
        if self.calls != self._fail_at:
            return run(*args, **options)
        if self._fate in (Fate.ERROR_AFTER, Fate.KILLED_AFTER):
            run(*args, **options)
        if self._fate in (Fate.ERROR, Fate.ERROR_AFTER):
            raise error(f"call {self.calls} failed")
        raise Killed


class FailingScan:
    """A scan each step of which is a call of the engine."""

    def __init__(self, engine: FailingEngine, rows: Any) -> None:
        self._engine = engine
        self._rows = rows
        self.close = rows.close

    def __iter__(self) -> FailingScan:
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        # A next() that raises StopIteration would end a generator that calls it; the sentinel does not.
        row = self._engine._call(ReadFailed, next, self._rows, None)
        if row is None:
            raise StopIteration
        return row

    def __enter__(self) -> FailingScan:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()


class FailingSnapshot:
    """A snapshot whose reads are calls of the engine."""

    def __init__(self, engine: FailingEngine, below: Any) -> None:
        self._engine = engine
        self._below = below
        self.close = below.close

    def get(self, key: bytes, /) -> bytes | None:
        return self._engine._call(ReadFailed, self._below.get, key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> FailingScan:
        scan = self._engine._call(ReadFailed, self._below.scan, start, stop, reverse=reverse)
        return FailingScan(self._engine, scan)
