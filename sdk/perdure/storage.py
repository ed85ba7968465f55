"""What objects can do with parts of their storage: read it, read one instant of it, change it as a whole.

Types only; the worker hands in what they describe.  `Storage` itself, which has all of it, is in `object`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Protocol, Self, overload

__all__ = ["ReadableStorage", "Snapshot", "Transaction"]

# Inside of the classes `list` is the method.
_Keys = Iterable[str]
_KeyList = list[str]


class ReadableStorage(Protocol):
    """Reads of keys (str, ordered by their UTF-8 bytes) and their values."""

    async def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` when there is none."""

    async def get_many(self, keys: _Keys) -> dict[str, Any]:
        """The values that exist, in key order; missing keys are left out."""

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
    ) -> _KeyList: ...
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
    ) -> Any:
        """The entries of a range as a dict in key order, or with `keys_only` a list of keys.

        Page with ``limit=n`` and then ``cursor=`` the last key of the page before; an empty page is the
        end.  Each page is one instant; pages of one and the same instant come from `Storage.snapshot`.
        """


class Snapshot(ReadableStorage, Protocol):
    """One instant of an object's values, until its ``with`` block or its turn ends."""

    def close(self) -> None:
        """Ends it, as the end of the block does."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Transaction(ReadableStorage, Protocol):
    """Writes that count together at the end of their ``async with`` block, or not at all when it raises.

    Its reads see its own writes; `self.storage` sees none of them before the end.  `sync()` and calls to
    other objects inside of the block commit what was written through `self.storage`, not the transaction.
    It covers values alone: durable fields and alarms are not part of it, and `delete_all` is an error.
    After its end, by the turn's end at the latest, everything raises `StorageError`.
    """

    def put(self, key: str, value: Any) -> None:
        """See `Storage.put`."""

    def put_many(self, values: Mapping[str, Any]) -> None:
        """See `Storage.put_many`."""

    def delete(self, key: str) -> bool:
        """See `Storage.delete`."""

    def delete_many(self, keys: _Keys) -> int:
        """See `Storage.delete_many`."""

    def transaction(self) -> Transaction:
        """A nested transaction: its rollback leaves what this one wrote, this one's rollback takes both."""

    def rollback(self) -> None:
        """Drops what was written and ends the transaction; the block goes on without it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
