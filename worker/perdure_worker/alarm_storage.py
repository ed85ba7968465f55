"""The alarms of one object: set, read, deleted and run as part of its storage.

Guarantees: what is set or deleted is part of the turn's batch, with its row of the due index, and rolled
back with it.  While an alarm's handler runs the alarm looks deleted, but its rows leave the store with the
last batch of that turn and not with an earlier one (`sync`, a call to another object), so that a crash in
between runs it again; so does what the handler sets under the same name.

Runs in the worker's event loop, and in the thread of a `@blocking` method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from perdure import codec
from perdure.alarm import DEFAULT_ALARM, Alarm
from perdure.errors import PerdureError, StorageError
from perdure_storage import keys
from perdure_storage.object_storage import ObjectStorage
from perdure_storage.records import seal, unseal
from perdure_worker.alarm_rows import AlarmRow, due_ms_of, instant, microseconds

__all__ = ["AlarmRules", "AlarmStorage"]

_NONCE_BYTES = 8
_FIRST_NAME = b"\x00"
"""The first key in byte order behind the empty one, under which the number of alarms is kept."""

# Inside the class `list` is a method.
_Alarms = list[Alarm]
_Held = dict[bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class AlarmRules:
    """What the alarms of all objects of a worker share."""

    now_us: Callable[[], int]
    """The wall clock."""
    random_bytes: Callable[[int], bytes]
    alarms_max: int
    name_bytes_max: int


class AlarmStorage(ObjectStorage):
    """An object's storage, with its alarms."""

    __slots__ = ("_alarm_rules", "_has_handler", "_running", "_running_due")

    def __init__(self, *args: Any, alarm_rules: AlarmRules, has_handler: bool, **named: Any) -> None:
        super().__init__(*args, **named)
        self._alarm_rules = alarm_rules
        self._has_handler = has_handler
        self._running: bytes | None = None  # row of the alarm whose handler runs; it looks deleted
        self._running_due = b""  # and its row of the due index

    # --- for users

    def set_alarm(self, when: datetime | timedelta | float, name: str = DEFAULT_ALARM) -> None:
        """See `Storage.set_alarm`."""
        if not self._has_handler:
            raise StorageError(
                "this class has no alarm handler, so an alarm would reach nobody: "
                "define `async def alarm(self, alarm)`"
            )
        row = self._alarm_row(name)
        at_us = microseconds(when, self._alarm_rules.now_us())
        next_ms = due_ms_of(at_us)
        old = self._alarm(row)
        if old is not None and (old.at_us, old.attempt, old.next_ms) == (at_us, 1, next_ms):
            return  # as it is already
        if old is not None:
            self._disarm(row, old)
        elif row != self._running:
            self._count_alarms(1)
        arm = AlarmRow(at_us, 1, next_ms, self._alarm_rules.random_bytes(_NONCE_BYTES), None)
        self._put_row(row, seal(row, arm.encode()))
        self._put_due(keys.due_key_of(next_ms, row), stored=True)

    async def get_alarm(self, name: str = DEFAULT_ALARM) -> datetime | None:
        """See `Storage.get_alarm`."""
        alarm = self._alarm(self._alarm_row(name))
        return None if alarm is None or alarm.next_ms is None else instant(alarm.at_us)

    def delete_alarm(self, name: str = DEFAULT_ALARM) -> bool:
        """See `Storage.delete_alarm`."""
        row = self._alarm_row(name)
        alarm = self._alarm(row)
        if alarm is None:
            return False
        self._disarm(row, alarm)
        self._put_row(row, None)
        if row != self._running:
            self._count_alarms(-1)
        return True

    async def list_alarms(self) -> _Alarms:
        """See `Storage.list_alarms`."""
        alarms = []
        for row, record in self._alarm_records():
            if row != self._running or row in self._writes:
                name = row[len(self._prefix) + len(keys.ALARM) :].decode()
                alarms.append(AlarmRow.decode(unseal(row, record)).seen(name))
        return sorted(alarms, key=lambda alarm: (alarm.scheduled_at, alarm.name))

    async def delete_all(self) -> None:
        """See `Storage.delete_all`."""
        armed = []
        for row, record in self._alarm_records():
            with contextlib.suppress(PerdureError):  # a damaged one can be deleted too
                next_ms = AlarmRow.decode(unseal(row, record)).next_ms
                if next_ms is not None:
                    armed.append(keys.due_key_of(next_ms, row))
        await super().delete_all()
        for due in armed:
            self._put_due(due, stored=False)

    # --- for the host

    def _begin_alarm(self, row: bytes, due: bytes) -> AlarmRow | None:
        """The alarm whose time has come, if `due` is its row of the index: from now on it looks deleted."""
        alarm = self._alarm(row)
        if alarm is None or alarm.next_ms is None or keys.due_key_of(alarm.next_ms, row) != due:
            return None
        self._running, self._running_due = row, due
        return alarm

    def _end_alarm(self) -> None:
        """The handler has ended well: the alarm is deleted with what is written now, if not set again."""
        row, due = self._running, self._running_due
        if row is None:
            return
        self._forget_alarm()
        again = self._writes.get(row)
        if again is None:
            self._put_row(row, None)
            self._count_alarms(-1)
        if again is None or AlarmRow.decode(unseal(row, again)).next_ms != keys.due_at_ms(due):
            self._put_due(due, stored=False)

    def _forget_alarm(self) -> None:
        """The handler has ended: its alarm is seen as it is stored."""
        self._running = None

    def _hold_back(self) -> _Held:
        """Takes what concerns the alarm that runs out of the write-set, before a commit within its turn."""
        row = self._running
        if row is None:
            return {}
        mine = {
            row,
            *(due for due in self._writes if due.startswith(keys.DUE_REGION) and _is_due_of(due, row)),
        }
        held = {key: self._writes[key] for key in mine & self._writes.keys()}
        for key in held:
            self._put_row(key, None)
            del self._writes[key]
            self._write_bytes -= len(key)
        return held

    def _bring_back(self, held: _Held) -> None:
        """Puts what `_hold_back` took into the write-set again."""
        for row, record in held.items():
            self._put_row(row, record)
        self._due = self._due or bool(held)

    # --- rows

    def _alarm_row(self, name: str) -> bytes:
        try:
            encoded = name.encode() if isinstance(name, str) else b""
        except UnicodeEncodeError:
            encoded = b""
        limit = self._alarm_rules.name_bytes_max
        if not 1 <= len(encoded) <= limit:
            raise StorageError(
                f"the name of an alarm is text of 1 to {limit} bytes in UTF-8, not {name!r:.80}"
            )
        return self._prefix + keys.ALARM + encoded

    def _alarm(self, row: bytes) -> AlarmRow | None:
        """The alarm as the running turn sees it, dead or not."""
        if row == self._running and row not in self._writes:
            return None
        record = self._read(row)
        return None if record is None else AlarmRow.decode(unseal(row, record))

    def _alarm_records(self) -> list[tuple[bytes, bytes]]:
        first = self._prefix + keys.ALARM
        return list(self._merged(first + _FIRST_NAME, keys.prefix_end(first), reverse=False))

    def _disarm(self, row: bytes, alarm: AlarmRow) -> None:
        if alarm.next_ms is not None:
            self._put_due(keys.due_key_of(alarm.next_ms, row), stored=False)

    def _count_alarms(self, change: int) -> None:
        # Beside the alarms, so that it is rolled back with them and setting one of many stays cheap.
        row = self._prefix + keys.ALARM
        record = self._read(row)
        count = (0 if record is None else codec.decode(unseal(row, record))) + change
        limit = self._alarm_rules.alarms_max
        if change > 0 and count > limit:
            raise StorageError(f"this object has {limit} alarms; delete some, or spread them over objects")
        self._put_row(row, seal(row, codec.encode(count)) if count > 0 else None)


def _is_due_of(due: bytes, row: bytes) -> bool:
    return due == keys.due_key_of(keys.due_at_ms(due), row)
