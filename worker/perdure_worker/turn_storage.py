"""`self.storage` as turns have it: writes and `sync` only inside of a turn of the object itself.

A task or callback that outlives its turn has no batch of its own.  What it wrote would join the batch of
a turn that knows nothing of it, be dropped when that turn raises, and be lost when the object leaves
memory first.  So its write is an error where it happens.  Reads are as good as anywhere.
Runs in the worker's event loop, and in the thread of a `@blocking` method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from perdure.alarm import DEFAULT_ALARM
from perdure_storage.object_storage import StorageBackend
from perdure_worker.alarm_storage import AlarmRules, AlarmStorage

__all__ = ["TurnStorage"]


class TurnStorage(AlarmStorage):
    """An object's storage; `check_turn` raises `StorageError` outside of the object's turns."""

    __slots__ = ("_check_turn",)

    def __init__(
        self,
        backend: StorageBackend,
        *,
        prefix: bytes,
        names_row: bytes,
        commit_point: Callable[[], Awaitable[None]],
        on_delete_all: Callable[[], None],
        check_turn: Callable[[], None],
        alarm_rules: AlarmRules,
        has_handler: bool,
    ) -> None:
        super().__init__(
            backend,
            prefix=prefix,
            names_row=names_row,
            commit_point=commit_point,
            on_delete_all=on_delete_all,
            alarm_rules=alarm_rules,
            has_handler=has_handler,
        )
        self._check_turn = check_turn

    def put(self, key: str, value: Any) -> None:
        """See `Storage.put`."""
        self._check_turn()
        super().put(key, value)

    def put_many(self, values: Mapping[str, Any]) -> None:
        """See `Storage.put_many`."""
        self._check_turn()
        super().put_many(values)

    def delete(self, key: str) -> bool:
        """See `Storage.delete`."""
        self._check_turn()
        return super().delete(key)

    def delete_many(self, keys: Iterable[str]) -> int:
        """See `Storage.delete_many`."""
        self._check_turn()
        return super().delete_many(keys)

    def set_alarm(self, when: datetime | timedelta | float, name: str = DEFAULT_ALARM) -> None:
        """See `Storage.set_alarm`."""
        self._check_turn()
        super().set_alarm(when, name)

    def delete_alarm(self, name: str = DEFAULT_ALARM) -> bool:
        """See `Storage.delete_alarm`."""
        self._check_turn()
        return super().delete_alarm(name)

    async def delete_all(self) -> None:
        """See `Storage.delete_all`."""
        self._check_turn()
        await super().delete_all()

    async def sync(self) -> None:
        """See `Storage.sync`."""
        self._check_turn()
        await super().sync()
