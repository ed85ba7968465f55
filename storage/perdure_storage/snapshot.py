"""`storage.snapshot()`: one instant of an object's values, read-only. Runs in the worker's loop thread.

Guarantees: every read sees exactly what storage held when the snapshot was made, durable or not, however
many awaits and commits lie between; and it ends with its block, or with its turn when the block was left
open. Then it raises `StorageError`: an open one keeps deleted rows on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from perdure.errors import StorageError
from perdure_storage.engine import Reader
from perdure_storage.key_values import ReadableRows, StorageBackend

__all__ = ["SnapshotView", "close_abandoned"]


class SnapshotView(ReadableRows):
    """Reads of one instant: `get`, `get_many` and `list` as of storage."""

    __slots__ = ("_closed", "_in_turn", "_rows_over", "_snapshot")

    def __init__(
        self,
        backend: StorageBackend,
        prefix: bytes,
        rows_over: dict[bytes, bytes | None],
        in_turn: Callable[[], bool],
    ) -> None:
        super().__init__(backend, prefix)
        self._rows_over = rows_over  # what was written and may not be in the engine's snapshot; ours
        self._in_turn = in_turn  # whether the turn that made it still runs
        self._snapshot = backend.engine.snapshot()
        self._closed = False
        backend.open_views.add(self)

    def close(self) -> None:
        """Ends it, as the end of the ``with`` block does; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._rows_over = {}
            self._snapshot.close()
            self._backend.open_views.discard(self)

    def __enter__(self) -> Self:
        self._check_readable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_readable(self) -> None:
        if not self._closed and not self._in_turn():
            self.close()
        if self._closed:
            raise StorageError("this snapshot has ended: it can be read inside of its block, in its turn")

    def _read(self, row: bytes) -> bytes | None:
        return self._rows_over[row] if row in self._rows_over else self._snapshot.get(row)

    def _pending(self, first: bytes, stop: bytes) -> dict[bytes, bytes | None]:
        return {row: record for row, record in self._rows_over.items() if first <= row < stop}

    def _reader(self) -> Reader:
        return self._snapshot


def close_abandoned(views: Iterable[SnapshotView]) -> None:
    """Closes those whose turn has ended, for the case that nobody asks them again."""
    for view in tuple(views):
        if not view._in_turn():
            view.close()
