"""`self.storage` as turns have it: what writes, and `snapshot`, only inside of a turn of the object.

A task or callback that outlives its turn has no batch of its own.  What it wrote would join the batch of
a turn that knows nothing of it, be dropped when that turn raises, and be lost when the object leaves
memory first.  So its write is an error where it happens.  Reads are as good as anywhere, save those of a
snapshot, which ends with its turn.
Runs in the worker's event loop, and in the thread of a `@blocking` method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import copy_context
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from perdure.alarm import DEFAULT_ALARM
from perdure_storage.object_storage import StorageBackend
from perdure_storage.snapshot import SnapshotView
from perdure_storage.transaction import Transaction
from perdure_worker.alarm_storage import AlarmRules, AlarmStorage

if TYPE_CHECKING:
    from perdure_worker.sockets import ObjectSockets

__all__ = ["TurnStorage"]


class TurnStorage(AlarmStorage):
    """An object's storage; `in_turn` tells whether a turn of the object runs, `check_turn` raises if not."""

    __slots__ = ("_check_turn", "_in_turn", "_sockets")

    def __init__(
        self,
        backend: StorageBackend,
        *,
        prefix: bytes,
        names_row: bytes,
        commit_point: Callable[[], Awaitable[None]],
        on_delete_all: Callable[[], None],
        check_turn: Callable[[], None],
        in_turn: Callable[[], bool],
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
        self._in_turn = in_turn
        self._sockets: ObjectSockets | None = None  # of an object that has asked for them

    def transaction(self) -> Transaction:
        """See `Storage.transaction`."""
        self._check_turn()
        return super().transaction()

    def snapshot(self) -> SnapshotView:
        """See `Storage.snapshot`."""
        self._check_turn()
        return super().snapshot()

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

    def _check_writable(self) -> None:
        self._check_turn()

    def _turn_watch(self) -> Callable[[], bool]:
        # Asked in today's context variables, from wherever: is the turn of now still the running one?
        return partial(copy_context().run, self._in_turn)
