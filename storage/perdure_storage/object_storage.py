"""`self.storage` of one live object: an ordered map from text to values. Runs in the worker's loop thread.

Guarantees:

- Reads see every write of this object so far, durable or not, and of no other object.
- Nothing reaches the store before a commit point: until then a turn's writes can be discarded whole, and
  at the commit point they join one group, all or none.
- A call that raises has stored nothing. Values are encoded when they are put, so a bad one fails its call.
- No method suspends but `sync`: what a turn reads and writes between two other awaits is one step.

A row is looked for in three places, newest first: the write-set (since the last commit point), the overlay
(commits that are not durable yet), the engine. The engine may already hold what the overlay holds; it is
then the same, so merging them is right at every instant.

Methods with one underscore are the host's. Its own rows of the same commit (META, names, fields) go to the
committer after `_join`, so that they win over what `delete_all` removed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from perdure.errors import StorageError
from perdure_storage.commit import Committer
from perdure_storage.engine import Reader
from perdure_storage.key_values import StorageBackend, WritableRows, row_size
from perdure_storage.keys import DUE_REGION, META, REPLY
from perdure_storage.records import seal
from perdure_storage.snapshot import SnapshotView
from perdure_storage.transaction import Transaction

__all__ = ["ObjectStorage", "StorageBackend"]


_DueChanges = list[tuple[bytes, bool]]


def _always() -> bool:
    return True


class ObjectStorage(WritableRows):
    """The durable key-value map of one object.

    Keys are text of up to 2 KiB in UTF-8, ordered by their UTF-8 bytes; values are those that calls can
    carry, up to 2 MiB encoded (`Limits`). All errors are `StorageError`.
    """

    __slots__ = (
        "_commit_point",
        "_due",
        "_names_row",
        "_on_delete_all",
        "_overlay",
        "_overlay_group",
        "_transaction",
    )

    def __init__(
        self,
        backend: StorageBackend,
        *,
        prefix: bytes,
        names_row: bytes,
        commit_point: Callable[[], Awaitable[None]],
        on_delete_all: Callable[[], None],
    ) -> None:
        super().__init__(backend, prefix)
        self._names_row = names_row  # keys.names_key(...) of the object
        self._commit_point = commit_point
        self._on_delete_all = on_delete_all
        self._due = False  # whether _writes may hold rows of the due index
        self._overlay: dict[bytes, tuple[int, bytes | None]] = {}  # row -> (its commit group, its record)
        self._overlay_group = 0  # the highest group in _overlay
        self._transaction: Transaction | None = None  # the last one that was opened; it may have ended

    # --- for users

    def transaction(self) -> Transaction:
        """Writes that count together or not at all: ``async with self.storage.transaction() as txn:``.

        One at a time and within one turn; `txn.transaction()` nests. It covers what goes through `txn`:
        neither `durable()` fields nor alarms, and no call to another object. See `Transaction`.
        """
        return Transaction(self, self._turn_watch())

    def snapshot(self) -> SnapshotView:
        """What storage holds now, for reads that belong together: ``with self.storage.snapshot() as view:``.

        For pages of one listing above all. It shows the turn's own writes so far and none that come
        later, nor those of an open transaction. It can be read until the block or the turn ends.
        """
        pending = {row: held[1] for row, held in self._overlay.items()}
        pending.update(self._writes)
        return SnapshotView(self._backend, self._prefix, pending, self._turn_watch())

    async def delete_all(self) -> None:
        """Removes everything that the object stores: values, `durable()` fields, alarms and its name.

        What is put afterwards, also in the same turn, stays. Not while a transaction
        is open: what that one has read and written would be of two times.
        """
        if self._transaction is not None and self._transaction._is_open():
            raise StorageError("delete_all while a transaction is open; end the transaction first")
        first, stop = self._prefix + META, self._prefix + REPLY
        rows = {self._prefix + META, self._names_row}
        with self._backend.engine.scan(first, stop) as scan:
            rows.update(row for row, _ in scan)
        for pending in (self._overlay, self._writes):
            rows.update(row for row in pending if first <= row < stop)
        # Not bounded by the turn's limit: it is one commit or none, and only keys are held.
        self._writes.update(dict.fromkeys(rows))
        self._write_bytes = sum(row_size(row, record) for row, record in self._writes.items())
        self._on_delete_all()

    async def sync(self) -> None:
        """A commit point: returns when all writes so far are durable."""
        await self._commit_point()

    # --- for the host

    @property
    def _dirty(self) -> bool:
        """Whether there are writes since the last commit point."""
        return bool(self._writes)

    @property
    def _stores(self) -> bool:
        """Whether one of those writes stores something; META and the name then belong into the commit."""
        return any(record is not None for record in self._writes.values())

    def _put_due(self, row: bytes, *, stored: bool) -> None:
        """Adds a row of the due index to the write-set, or with `stored` false its removal."""
        self._put_row(row, seal(row, b"") if stored else None)
        self._due = True

    def _due_changes(self) -> _DueChanges:
        """The rows of the due index in the write-set, and whether each is stored or removed."""
        if not self._due:
            return []
        return [
            (row, record is not None) for row, record in self._writes.items() if row.startswith(DUE_REGION)
        ]

    def _join(self, committer: Committer) -> None:
        """Commit point: all writes since the last one join the group that is open now."""
        if not self._writes:
            return
        group, put, delete, overlay = committer.group, committer.put, committer.delete, self._overlay
        for row, record in self._writes.items():
            if record is None:
                delete(row)
            else:
                put(row, record)
            overlay[row] = (group, record)
        self._overlay_group = group
        self._discard()

    def _discard(self) -> None:
        super()._discard()
        self._due = False

    def _lay_over(self, rows: Mapping[bytes, bytes | None], group: int) -> None:
        """Rows that the host put into commit group `group` itself, beside the write-set."""
        self._overlay.update((row, (group, record)) for row, record in rows.items())
        self._overlay_group = group

    def _settle(self, durable_group: int) -> None:
        """Groups up to `durable_group` are on disk: the engine knows their rows now."""
        if self._overlay_group <= durable_group:
            self._overlay = {}
        else:
            self._overlay = {row: held for row, held in self._overlay.items() if held[0] > durable_group}

    def _turn_watch(self) -> Callable[[], bool]:
        """A function that tells later whether the turn that runs now still does."""
        return _always

    # --- where the rows are

    def _read(self, row: bytes) -> bytes | None:
        if row in self._writes:
            return self._writes[row]
        if row in self._overlay:
            return self._overlay[row][1]
        return self._backend.engine.get(row)

    def _read_joined(self, row: bytes) -> bytes | None:
        """The row as of the last commit point."""
        if row in self._overlay:
            return self._overlay[row][1]
        return self._backend.engine.get(row)

    def _pending(self, first: bytes, stop: bytes) -> dict[bytes, bytes | None]:
        pending = {row: held[1] for row, held in self._overlay.items() if first <= row < stop}
        pending.update((row, record) for row, record in self._writes.items() if first <= row < stop)
        return pending

    def _reader(self) -> Reader:
        return self._backend.engine
