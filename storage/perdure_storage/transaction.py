"""`storage.transaction()`: writes of one turn that count together or not at all. Runs in the loop thread.

Guarantees:

- A transaction sees its own writes over what lies below it (storage, or the transaction that it is nested
  in); below, nothing is seen of them until its block ends.
- The end of the block takes all of its writes one layer down. A block that raises, whatever it raises, and
  `rollback()` drop them; what was written below, before or meanwhile, stays.
- At most one transaction is open in each layer, so none meets another's half-done work. Opening a second
  one is an error and not a wait: the task that would have to end the first may be the one that waits.
- It ends with its turn at the latest, as rolled back. Used after its end, it raises `StorageError`.

A commit point (`sync`, a call to another object) inside the block commits what was written below and
nothing of the transaction. Where a direct write and a transaction's meet in one row, the transaction's
wins at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from perdure.errors import StorageError
from perdure_storage.engine import Reader
from perdure_storage.key_values import WritableRows

if TYPE_CHECKING:
    from perdure_storage.object_storage import ObjectStorage

__all__ = ["Transaction"]

_NEW: Final = "has not begun: use it as `async with self.storage.transaction() as txn:`"
_OPEN: Final = ""
_COMMITTED: Final = "has ended"
_ROLLED_BACK: Final = "was rolled back"
_TURN_ENDED: Final = "was rolled back when its turn ended"


class Transaction(WritableRows):
    """A layer of writes over an object's storage or over another transaction; see the module's guarantees."""

    __slots__ = ("_below", "_in_turn", "_state", "_transaction")

    def __init__(self, below: ObjectStorage | Transaction, in_turn: Callable[[], bool]) -> None:
        super().__init__(below._backend, below._prefix)
        self._below = below
        self._in_turn = in_turn  # whether the turn that made it still runs
        self._state = _NEW
        self._transaction: Transaction | None = None  # the last one nested in it; it may have ended

    # --- for users

    def transaction(self) -> Transaction:
        """A transaction in this one: its end brings its writes here, its rollback leaves this one's alone."""
        return Transaction(self, self._in_turn)

    def rollback(self) -> None:
        """Drops what the transaction wrote and ends it; the block may go on without it and end well."""
        self._check_readable()
        self._end(_ROLLED_BACK)

    async def delete_all(self) -> None:
        """Always an error: `delete_all` is no part of a transaction."""
        raise StorageError("delete_all is no part of a transaction; call it on self.storage, outside of one")

    async def __aenter__(self) -> Self:
        if self._state != _NEW:
            raise StorageError("a transaction is used once; make another")
        self._below._check_writable()
        other = self._below._transaction
        if other is not None and other._is_open():
            raise StorageError(
                "a transaction is open here already: nest with `txn.transaction()`; in @interleaved methods "
                "keep others out with `async with self.ctx.exclusive():` around it"
            )
        self._below._transaction = self
        self._state = _OPEN
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            if self._state == _OPEN:
                self._end(_ROLLED_BACK)
            return
        if self._state == _ROLLED_BACK:
            return
        try:
            self._check_writable()
            if self._transaction is not None and self._transaction._is_open():
                raise StorageError("a transaction nested in this one is still open; nothing was written")
            self._below._check_growth(
                sum(self._below._growth(row, record) for row, record in self._writes.items())
            )
        except StorageError:
            self._end(_ROLLED_BACK)
            raise
        for row, record in self._writes.items():
            self._below._put_row(row, record)
        self._end(_COMMITTED)

    # --- its life

    def _is_open(self) -> bool:
        if self._state == _OPEN and not self._in_turn():
            self._end(_TURN_ENDED)
        return self._state == _OPEN

    def _end(self, state: str) -> None:
        if self._state == _OPEN:
            self._state = state
        self._discard()
        if self._transaction is not None and self._transaction._state == _OPEN:
            self._transaction._end(_ROLLED_BACK)
        self._transaction = None
        if self._below._transaction is self:
            self._below._transaction = None

    def _check_readable(self) -> None:
        if not self._is_open():
            raise StorageError(f"this transaction {self._state}")

    def _check_writable(self) -> None:
        self._check_readable()
        self._below._check_writable()

    # --- where the rows are

    def _held_bytes(self) -> int:
        return self._write_bytes + self._below._held_bytes()

    def _read(self, row: bytes) -> bytes | None:
        return self._writes[row] if row in self._writes else self._below._read(row)

    def _pending(self, first: bytes, stop: bytes) -> dict[bytes, bytes | None]:
        pending = self._below._pending(first, stop)
        pending.update((row, record) for row, record in self._writes.items() if first <= row < stop)
        return pending

    def _reader(self) -> Reader:
        return self._backend.engine
