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

from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, overload

from perdure.errors import StorageError
from perdure.limits import Limits
from perdure_storage.commit import Committer
from perdure_storage.engine import Engine
from perdure_storage.keys import DUE_REGION, META, REPLY, VALUE, prefix_end
from perdure_storage.records import seal, unseal

__all__ = ["ObjectStorage", "StorageBackend"]

LIST_BYTES_MAX: Final = 256 << 20
"""Encoded values that one `list` gives at most: what `get_many` can give (128 values of 2 MiB)."""

_AFTER: Final = b"\x00"
"""Appended to a key it gives the next key in byte order."""

# Inside the class `list` is the method.
_Keys = list[str]
_Rows = list[tuple[bytes, bytes]]
_DueChanges = list[tuple[bytes, bool]]


@dataclass(frozen=True, slots=True)
class StorageBackend:
    """What the storages of all objects of one worker share."""

    engine: Engine
    limits: Limits
    encode: Callable[[Any], bytes]
    """Value to bytes; raises for what cannot be stored."""
    decode: Callable[[bytes], Any]
    list_bytes_max: int = LIST_BYTES_MAX


class ObjectStorage:
    """The durable key-value map of one object.

    Keys are text of up to 2 KiB in UTF-8, ordered by their UTF-8 bytes; values are those that calls can
    carry, up to 2 MiB encoded (`Limits`). All errors are `StorageError`.
    """

    __slots__ = (
        "_backend",
        "_commit_point",
        "_due",
        "_names_row",
        "_on_delete_all",
        "_overlay",
        "_overlay_group",
        "_prefix",
        "_write_bytes",
        "_writes",
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
        self._backend = backend
        self._prefix = prefix  # keys.object_prefix(...) of the object
        self._names_row = names_row  # keys.names_key(...) of the object
        self._commit_point = commit_point
        self._on_delete_all = on_delete_all
        self._writes: dict[bytes, bytes | None] = {}  # row -> sealed record, None: deleted
        self._write_bytes = 0  # of _writes: rows and records
        self._due = False  # whether _writes may hold rows of the due index
        self._overlay: dict[bytes, tuple[int, bytes | None]] = {}  # row -> (its commit group, as above)
        self._overlay_group = 0  # the highest group in _overlay

    # --- for users

    async def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default` when there is none (a stored None is a value)."""
        row = self._row(key)
        record = self._read(row)
        return default if record is None else self._open(row, record)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of up to 128 keys, sorted by key; missing keys are left out."""
        found = {}
        for key, row in sorted(self._rows(keys).items()):
            record = self._read(row)
            if record is not None:
                found[key] = self._open(row, record)
        return found

    def put(self, key: str, value: Any) -> None:
        """Stores `value` under `key`, at once for this object and durably at the next commit point."""
        row = self._row(key)
        record = self._seal(key, row, value)
        growth = self._growth(row, record)
        self._check_growth(growth)
        self._writes[row] = record
        self._write_bytes += growth

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Stores up to 128 values; when one of them is wrong, none is stored."""
        if not isinstance(values, Mapping):
            raise StorageError(f"put_many takes a mapping of keys to values, not {type(values).__name__}")
        records = {row: self._seal(key, row, values[key]) for key, row in self._rows(values).items()}
        self._check_growth(sum(self._growth(row, record) for row, record in records.items()))
        for row, record in records.items():
            self._put_row(row, record)

    def delete(self, key: str) -> bool:
        """Removes `key`; tells whether it was there."""
        row = self._row(key)
        if self._read(row) is None:
            return False
        self._put_row(row, None)
        return True

    def delete_many(self, keys: Iterable[str]) -> int:
        """Removes up to 128 keys; tells how many were there."""
        existing = [row for row in self._rows(keys).values() if self._read(row) is not None]
        for row in existing:
            self._put_row(row, None)
        return len(existing)

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
        page before; an empty page is the end. Each page is one instant, that of its call. Without a limit,
        more than 10,000 entries are an error.
        """
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

    async def delete_all(self) -> None:
        """Removes everything that the object stores: values, `durable()` fields, alarms and its name.

        What is put afterwards, also in the same turn, stays.
        """
        first, stop = self._prefix + META, self._prefix + REPLY
        rows = {self._prefix + META, self._names_row}
        with self._backend.engine.scan(first, stop) as scan:
            rows.update(row for row, _ in scan)
        for pending in (self._overlay, self._writes):
            rows.update(row for row in pending if first <= row < stop)
        # Not bounded by the turn's limit: it is one commit or none, and only keys are held.
        self._writes.update(dict.fromkeys(rows))
        self._write_bytes = sum(_size(row, record) for row, record in self._writes.items())
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

    def _put_row(self, row: bytes, record: bytes | None) -> None:
        """Adds a row, also one of the host's, to the write-set: sealed, or None to remove it."""
        self._write_bytes += self._growth(row, record)
        self._writes[row] = record

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
        """Forgets the writes since the last commit point."""
        self._writes = {}
        self._write_bytes = 0
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
        pending = {row: held[1] for row, held in self._overlay.items() if first <= row < stop}
        pending.update((row, record) for row, record in self._writes.items() if first <= row < stop)
        waiting = sorted(pending, reverse=not reverse)  # the next one is at the end, where pop is cheap
        with self._backend.engine.scan(first, stop, reverse=reverse) as stored:
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

    def _seal(self, key: str, row: bytes, value: Any) -> bytes:
        try:
            payload = self._backend.encode(value)
        except Exception as error:
            raise StorageError(f"the value of key {key[:40]!r} cannot be stored: {error}") from error
        limit = self._backend.limits.value_bytes_max
        if len(payload) > limit:
            raise StorageError(f"the value of key {key[:40]!r} has {len(payload)} bytes; {limit} are allowed")
        return seal(row, payload)

    def _open(self, row: bytes, record: bytes) -> Any:
        payload = unseal(row, record)
        try:
            return self._backend.decode(payload)
        except Exception as error:
            key = row[len(self._prefix) + len(VALUE) :].decode()
            raise StorageError(f"the stored value of key {key[:40]!r} cannot be read: {error}") from error

    def _growth(self, row: bytes, record: bytes | None) -> int:
        """By how many bytes the write-set grows when `row` gets `record` (less than 0: it shrinks)."""
        size = _size(row, record)
        return size - _size(row, self._writes[row]) if row in self._writes else size

    def _check_growth(self, growth: int) -> None:
        limit = self._backend.limits.uncommitted_bytes_max
        if growth > 0 and self._write_bytes + growth > limit:
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


def _size(row: bytes, record: bytes | None) -> int:
    return len(row) + (0 if record is None else len(record))


def _present(row: bytes, pending: Mapping[bytes, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    record = pending[row]
    if record is not None:
        yield row, record
