"""The interface of a store: what the commit thread, the objects and offline commands need, no more.

An engine is an ordered map from bytes to bytes with atomic, durable batches. Its guarantees:

- `write` returns when the whole batch would survive a loss of power; a crash before that leaves all of
  it or nothing, and never a later batch without an earlier one.
- When `write` raises, the state of the batch is unknown and so is the handle's: the caller ends the
  process and never writes again (RELIABILITY §0 rules 1 and 2: later synced writes were lost otherwise).
- Reads see every batch whose `write` has returned. A scan sees one instant, that of its creation.
- Reads check what they read. Damage is a `StorageError`, never a wrong or missing row.

Threads: reads on the loop thread, `write` on the commit thread, at the same time. `close` only when no
other thread is in a call (LevelDB crashes otherwise: RELIABILITY §0 rule 6).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self

__all__ = ["Batch", "Engine", "Reader", "Scan", "Snapshot"]


class Batch(Protocol):
    """Writes that become durable together; a later one of the same key wins. Used by one thread at a time."""

    def put(self, key: bytes, value: bytes, /) -> None:
        """Adds a write of `key`."""

    def delete(self, key: bytes, /) -> None:
        """Adds the removal of `key`, which need not exist."""


class Scan(Iterator[tuple[bytes, bytes]], Protocol):
    """Rows ``(key, value)`` in key order from one instant. Close it when leaving early: it pins old files."""

    def close(self) -> None:
        """Frees what the scan holds; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Reader(Protocol):
    """Reads of a store, or of one instant of it."""

    def get(self, key: bytes, /) -> bytes | None:
        """The value of `key`, None when there is none."""

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Scan:
        """Rows with ``start <= key < stop``, the greatest key first when `reverse`."""


class Snapshot(Reader, Protocol):
    """The store as it was when the snapshot was taken, until it is closed."""

    def close(self) -> None:
        """Frees the snapshot; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Engine(Reader, Protocol):
    """A store that one process owns; see the module's guarantees."""

    def new_batch(self) -> Batch:
        """An empty batch, to be written by this engine once."""

    def write(self, batch: Any, /) -> None:
        """Makes a batch of `new_batch` durable. Any exception means: end the process."""

    def snapshot(self) -> Snapshot:
        """The store at this instant; close it soon, it keeps deleted rows on disk."""

    def approximate_bytes(self, start: bytes, stop: bytes) -> int:
        """About how many bytes the rows with ``start <= key < stop`` have on disk, without reading them."""

    def stats(self) -> dict[str, int | str]:
        """Figures for operators: at least `engine` (its name) and `writes` (batches since it was opened)."""

    def close(self) -> None:
        """Ends all use; a second call does nothing. What was written stays."""
