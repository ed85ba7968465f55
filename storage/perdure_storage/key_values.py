"""Keys and values over layers of rows: the calls that storage, transactions and snapshots share. Pure.

Guarantees, for whatever lies below:

- Keys are checked text in UTF-8 byte order, values are encoded when they are put, and every bound of
  `Limits` holds; a call that raises has changed nothing.
- A read sees the newest layer first. The engine is the lowest one, and what lies over it (`_pending`) is
  merged into a listing row by row, so that memory follows what is pending and not what is stored.

A class of these says where its rows are looked for; `object_storage`, `transaction` and `snapshot` do.
Runs in the worker's loop thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from perdure.errors import StorageError
from perdure.limits import Limits
from perdure_storage.engine import Engine, Reader
from perdure_storage.keys import VALUE, prefix_end
from perdure_storage.records import seal, unseal

if TYPE_CHECKING:
    from perdure_storage.snapshot import SnapshotView

__all__ = ["ReadableRows", "StorageBackend", "WritableRows", "row_size"]

LIST_BYTES_MAX: Final = 256 << 20
"""Encoded values that one `list` gives at most: what `get_many` can give (128 values of 2 MiB)."""

_AFTER: Final = b"\x00"
"""Appended to a key it gives the next key in byte order."""

# Inside the class `list` is the method.
_Keys = list[str]
_Rows = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class StorageBackend:
    """What the storages of all objects of one worker share."""

    engine: Engine
    limits: Limits
    encode: Callable[[Any], bytes]
    """Value to bytes; raises for what cannot be stored."""
    decode: Callable[[bytes], Any]
    list_bytes_max: int = LIST_BYTES_MAX
    open_views: set[SnapshotView] = field(default_factory=set, compare=False)
    """Snapshots that turns have not closed yet."""


class ReadableRows(ABC):
    """Reads of one object's values, from wherever `_read`, `_pending` and `_reader` find its rows."""

    __slots__ = ("_backend", "_prefix")

    def __init__(self, backend: StorageBackend, prefix: bytes) -> None:
        self._backend = backend
        self._prefix = prefix  # keys.object_prefix(...) of the object

    # --- for users

    async def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default` when there is none (a stored None is a value)."""
        self._check_readable()
        row = self._row(key)
        record = self._read(row)
        return default if record is None else self._open(row, record)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of up to 128 keys, sorted by key; missing keys are left out."""
        self._check_readable()
        found = {}
        for key, row in sorted(self._rows(keys).items()):
            record = self._read(row)
            if record is not None:
                found[key] = self._open(row, record)
        return found

    @overload
    async def list(
        self,
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys_only: Literal[False] = False,
        cursor: str | None = None,
    ) -> dict[str, Any]: ...
    @overload
    async def list(
        self,
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys_only: Literal[True],
        cursor: str | None = None,
    ) -> _Keys: ...
    async def list(
        self,
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys_only: bool = False,
        cursor: str | None = None,
    ) -> dict[str, Any] | _Keys:
        """The entries with ``start <= key < end`` that begin with `prefix`, as a dict in key order.

        `start_after` excludes its key and takes the place of `start`. `reverse` gives the greatest keys
        first. `keys_only` gives a list of keys. Bounds that contradict each other give nothing.

        Page with ``limit=n`` and then, with otherwise the same arguments, ``cursor=`` the last key of the
        page before; an empty page is the end. Each page is one instant, that of its call; pages of one
        instant come from `storage.snapshot()`. Without a limit, more than 10,000 entries are an error.
        """
        self._check_readable()
        if start is not None and start_after is not None:
            raise StorageError("list takes start or start_after, not both")
        count = self._count(limit)
        first, stop = self._bounds(start, start_after, end, prefix)
        if cursor is not None:
            if reverse:
                stop = min(stop, self._bound(cursor, "cursor"))
            else:
                first = max(first, self._bound(cursor, "cursor") + _AFTER)
        rows = self._collect(first, stop, reverse=reverse, count=count, limited=limit is not None)
        at = len(self._prefix) + len(VALUE)
        if keys_only:
            return [row[at:].decode() for row, _ in rows]
        return {row[at:].decode(): self._open(row, record) for row, record in rows}

    # --- where the rows are

    @abstractmethod
    def _read(self, row: bytes) -> bytes | None:
        """The newest record of a row, None when there is none."""

    @abstractmethod
    def _pending(self, first: bytes, stop: bytes) -> dict[bytes, bytes | None]:
        """The rows of ``first <= row < stop`` that lie over those of `_reader`; None removes one."""

    @abstractmethod
    def _reader(self) -> Reader:
        """The store, or the instant of it, below everything pending."""

    def _check_readable(self) -> None:  # noqa: B027 - storage itself can always be read
        """Raises `StorageError` when nothing can be read here any more."""

    # --- rows

    def _row(self, key: str) -> bytes:
        encoded = _encoded(key, "key")
        limit = self._backend.limits.key_bytes_max
        if len(encoded) > limit:
            raise StorageError(f"the key {key[:40]!r} has {len(encoded)} bytes in UTF-8; {limit} are allowed")
        return self._prefix + VALUE + encoded

    def _rows(self, keys: Iterable[str]) -> dict[str, bytes]:
        if isinstance(keys, str) or not isinstance(keys, Iterable):
            raise StorageError("this takes several keys; for a single one there are get, put and delete")
        limit = self._backend.limits.multi_keys_max
        several = tuple(islice(keys, limit + 1))
        if len(several) > limit:
            raise StorageError(f"more than {limit} keys in one call; split them")
        return {key: self._row(key) for key in several}

    def _bound(self, key: str, what: str) -> bytes:
        return self._prefix + VALUE + _encoded(key, what)

    def _bounds(
        self, start: str | None, start_after: str | None, end: str | None, prefix: str | None
    ) -> tuple[bytes, bytes]:
        first = self._bound("" if prefix is None else prefix, "prefix")
        stop = prefix_end(first)
        if start is not None:
            first = max(first, self._bound(start, "start"))
        if start_after is not None:
            first = max(first, self._bound(start_after, "start_after") + _AFTER)
        if end is not None:
            stop = min(stop, self._bound(end, "end"))
        return first, stop

    def _count(self, limit: int | None) -> int:
        most = self._backend.limits.list_entries_max
        if limit is None:
            return most
        if not isinstance(limit, int) or not 1 <= limit <= most:
            raise StorageError(f"the limit of a list is 1 to {most}, not {limit!r}; page with cursor=")
        return limit

    def _collect(self, first: bytes, stop: bytes, *, reverse: bool, count: int, limited: bool) -> _Rows:
        if first >= stop:
            return []
        rows: _Rows = []
        size = 0
        with closing(self._merged(first, stop, reverse=reverse)) as merged:
            for row, record in merged:
                if len(rows) == count:
                    if limited:
                        break
                    raise StorageError(f"over {count} entries in this list; page with limit= and cursor=")
                rows.append((row, record))
                size += len(record)
                if size > self._backend.list_bytes_max:
                    raise StorageError(
                        f"the values of this list are over {self._backend.list_bytes_max} bytes; page with "
                        "a smaller limit= and cursor="
                    )
        return rows

    def _merged(
        self, first: bytes, stop: bytes, *, reverse: bool
    ) -> Generator[tuple[bytes, bytes], None, None]:
        """The rows of ``first <= row < stop`` in order: the engine's, with pending writes laid over them."""
        pending = self._pending(first, stop)
        waiting = sorted(pending, reverse=not reverse)  # the next one is at the end, where pop is cheap
        with self._reader().scan(first, stop, reverse=reverse) as stored:
            for row, record in stored:
                while waiting and (waiting[-1] > row if reverse else waiting[-1] < row):
                    yield from _present(waiting.pop(), pending)
                if row in pending:
                    yield from _present(waiting.pop(), pending)
                else:
                    yield row, record
        while waiting:
            yield from _present(waiting.pop(), pending)

    # --- values

    def _open(self, row: bytes, record: bytes) -> Any:
        payload = unseal(row, record)
        try:
            return self._backend.decode(payload)
        except Exception as error:
            key = row[len(self._prefix) + len(VALUE) :].decode()
            raise StorageError(f"the stored value of key {key[:40]!r} cannot be read: {error}") from error


class WritableRows(ReadableRows):
    """Reads and writes; what is written waits in `_writes` for whoever takes it further."""

    __slots__ = ("_write_bytes", "_writes")

    def __init__(self, backend: StorageBackend, prefix: bytes) -> None:
        super().__init__(backend, prefix)
        self._writes: dict[bytes, bytes | None] = {}  # row -> sealed record, None: deleted
        self._write_bytes = 0  # of _writes: rows and records

    # --- for users

    def put(self, key: str, value: Any) -> None:
        """Stores `value` under `key`, at once for this object and durably at the next commit point."""
        self._check_writable()
        row = self._row(key)
        record = self._seal(key, row, value)
        growth = self._growth(row, record)
        self._check_growth(growth)
        self._writes[row] = record
        self._write_bytes += growth

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Stores up to 128 values; when one of them is wrong, none is stored."""
        self._check_writable()
        if not isinstance(values, Mapping):
            raise StorageError(f"put_many takes a mapping of keys to values, not {type(values).__name__}")
        records = {row: self._seal(key, row, values[key]) for key, row in self._rows(values).items()}
        self._check_growth(sum(self._growth(row, record) for row, record in records.items()))
        for row, record in records.items():
            self._put_row(row, record)

    def delete(self, key: str) -> bool:
        """Removes `key`; tells whether it was there."""
        self._check_writable()
        row = self._row(key)
        if self._read(row) is None:
            return False
        self._put_row(row, None)
        return True

    def delete_many(self, keys: Iterable[str]) -> int:
        """Removes up to 128 keys; tells how many were there."""
        self._check_writable()
        existing = [row for row in self._rows(keys).values() if self._read(row) is not None]
        for row in existing:
            self._put_row(row, None)
        return len(existing)

    # --- for the layer above and the host

    def _check_writable(self) -> None:
        """Raises `StorageError` when nothing can be written here now."""

    def _put_row(self, row: bytes, record: bytes | None) -> None:
        """Adds a row, also one of the host's, to what is written: sealed, or None to remove it."""
        self._write_bytes += self._growth(row, record)
        self._writes[row] = record

    def _discard(self) -> None:
        """Forgets what is written here and was not taken further."""
        self._writes = {}
        self._write_bytes = 0

    def _held_bytes(self) -> int:
        """Rows and records that wait for the next commit point, here and below."""
        return self._write_bytes

    def _seal(self, key: str, row: bytes, value: Any) -> bytes:
        try:
            payload = self._backend.encode(value)
        except Exception as error:
            raise StorageError(f"the value of key {key[:40]!r} cannot be stored: {error}") from error
        limit = self._backend.limits.value_bytes_max
        if len(payload) > limit:
            raise StorageError(f"the value of key {key[:40]!r} has {len(payload)} bytes; {limit} are allowed")
        return seal(row, payload)

    def _growth(self, row: bytes, record: bytes | None) -> int:
        """By how many bytes the write-set grows when `row` gets `record` (less than 0: it shrinks)."""
        size = row_size(row, record)
        return size - row_size(row, self._writes[row]) if row in self._writes else size

    def _check_growth(self, growth: int) -> None:
        limit = self._backend.limits.uncommitted_bytes_max
        if growth > 0 and self._held_bytes() + growth > limit:
            raise StorageError(
                f"the writes of this turn would be over {limit} bytes, which is what may wait for one commit "
                "point: call `await self.storage.sync()` in between"
            )


def _encoded(key: str, what: str) -> bytes:
    if not isinstance(key, str):
        raise StorageError(f"a {what} is a str, not {type(key).__name__}")
    try:
        return key.encode()
    except UnicodeEncodeError:
        raise StorageError(
            f"the {what} {key[:40]!r} holds a lone surrogate, which is no valid Unicode"
        ) from None


def row_size(row: bytes, record: bytes | None) -> int:
    """Bytes of a row and its record; a removal has no record."""
    return len(row) + (0 if record is None else len(record))


def _present(row: bytes, pending: Mapping[bytes, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    record = pending[row]
    if record is not None:
        yield row, record
