"""Due alarms become turns of their objects: when, how many at once, and what happens when they fail.

Guarantees: an alarm runs at least once and never before its time; its handler's batch deletes it, so a crash
runs it again without counting; a run that fails is counted durably and tried again after a growing pause,
and after the last retry the alarm stays, dead and visible; one object's alarms run one after the other, and
a slow one holds up no other object's; objects are woken for their alarms and not kept for them.

Runs in the worker's event loop.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from perdure.converter import describe_error
from perdure.errors import StorageError
from perdure_storage import keys
from perdure_storage.keys import DueRow
from perdure_storage.records import seal, unseal
from perdure_worker.alarm_rows import AlarmRow, request_client
from perdure_worker.resident import Resident
from perdure_worker.system_turns import Body, SystemTurn

if TYPE_CHECKING:
    from perdure_worker.system_work import SystemWork

__all__ = ["Alarms"]

log = logging.getLogger("perdure.worker")

_JITTER = 0.25


class _Line:
    """The due alarms of one object: one runs or waits for its turn, the others wait here."""

    __slots__ = ("busy", "rows", "starting")

    def __init__(self) -> None:
        self.rows: deque[DueRow] = deque()
        self.busy = False
        self.starting = False


class Alarms:
    """All due alarms of a worker."""

    def __init__(self, host: SystemWork, random: Callable[[], float]) -> None:
        self.host = host
        self._limits = host.limits
        self._random = random
        self._lines: dict[bytes, _Line] = {}
        self._waiting = 0  # rows in all lines
        self._failed = 0
        self._dead = 0
        self._unserved: set[str] = set()
        host.timetable.serve(keys.ALARM, self.start, self._has_room, self.stats)

    def start(self, due: DueRow) -> None:
        """An alarm is due.  Within the host's `in_turns`."""
        host = self.host
        if due.namespace not in host.classes or due.slot not in host.slots:
            if due.namespace not in self._unserved:
                self._unserved.add(due.namespace)
                log.error(
                    "an alarm is due for a class that is not served here; it stays stored",
                    extra={"namespace": due.namespace, "slot": due.slot},
                )
            return
        line = self._lines.get(due.object_id)
        if line is None:
            line = self._lines[due.object_id] = _Line()
        line.rows.append(due)
        self._waiting += 1
        self._advance(due.object_id, line)

    def stats(self) -> dict[str, int]:
        """Objects with an alarm that runs or waits for its turn, and figures since the start."""
        return {
            "alarms_running": len(self._lines),
            "alarms_waiting": self._waiting,
            "alarms_failed": self._failed,
            "alarms_dead": self._dead,
        }

    def _has_room(self) -> bool:
        return len(self._lines) < self._limits.alarms_running_max and (
            self._waiting < self._limits.alarms_waiting_max
        )

    def _advance(self, key: bytes, line: _Line) -> None:
        if line.busy or line.starting:
            return
        line.starting = True
        if line.rows and not self.host.draining:
            due = line.rows.popleft()
            self._waiting -= 1
            line.busy = True
            self.host.enqueue(due.namespace, key, AlarmTurn(self, due))
        line.starting = False
        if not line.busy:
            # Its object cannot start: the others come again in the bounded batches of the timetable.
            self._waiting -= len(line.rows)
            for due in line.rows:
                self.host.timetable.again(keys.due_key(*due))
            del self._lines[key]

    def over(self, due: DueRow) -> None:
        """The turn of an alarm is over: the next one of its object."""
        line = self._lines.get(due.object_id)
        if line is not None:
            line.busy = False
            self._advance(due.object_id, line)
        self.host.timetable.look()

    # --- failures

    def count_failure(self, due: DueRow, resident: Resident | None, error: str) -> None:
        """Records a failed run in a batch of its own, which nobody waits for."""
        host = self.host
        storage = None if resident is None else resident.storage
        if resident is not None and storage is None and resident.ticket > host.durable:
            # What its last incarnation wrote is known from the store only when it is there.
            host.gate.hold(resident.ticket, (self._count_later, due, error, None))
            return
        row = keys.object_prefix(due.slot, due.namespace, due.object_id) + keys.ALARM + due.key
        record = host.engine.get(row) if storage is None else storage._read_joined(row)
        alarm = None if record is None else AlarmRow.decode(unseal(row, record))
        if alarm is None or alarm.next_ms != due.at_ms:
            return  # deleted or set again before it failed
        self._failed += 1
        next_ms = None
        if alarm.attempt <= self._limits.alarm_retries_max:
            pause_s = self._limits.alarm_retry_s * 2 ** (alarm.attempt - 1)
            next_ms = host.timetable.now_ms() + round(1000 * pause_s * (1 + _JITTER * self._random()))
        label = f"{due.namespace}/{due.object_id.hex()}" if resident is None else resident.label
        told = {"object": label, "alarm": due.key.decode(), "attempt": alarm.attempt, "error": error}
        if next_ms is None:
            self._dead += 1
            log.error("an alarm has failed for the last time and is not tried any more", extra=told)
        else:
            log.warning("an alarm has failed and will be tried again", extra=told)
        alarm = alarm._replace(attempt=alarm.attempt + 1, next_ms=next_ms, error=error)
        rows: dict[bytes, bytes | None] = {row: seal(row, alarm.encode()), keys.due_key(*due): None}
        if next_ms is not None:
            again = keys.due_key_of(next_ms, row)
            rows[again] = seal(again, b"")
        host.write_beside(resident, rows)

    def _count_later(self, due: DueRow, error: str, _: None) -> None:
        self.count_failure(due, self.host.live.get(due.object_id), error)


class AlarmTurn(SystemTurn):
    """One run of an alarm's handler."""

    __slots__ = ("_alarms", "_begun", "_due", "request")

    title = "alarm"

    def __init__(self, alarms: Alarms, due: DueRow) -> None:
        self._alarms = alarms
        self._due = due
        self._begun = False
        self.request = None

    def begin(self, resident: Resident) -> Body | None:
        """See `SystemTurn.begin`."""
        host, due = self._alarms.host, self._due
        if host.timetable.now_ms() < due.at_ms:  # the clock was set back while it waited
            host.timetable.again(keys.due_key(*due))
            return None
        row = resident.row_prefix() + keys.ALARM + due.key
        index_row = keys.due_key(*due)
        storage = host.storage_of(resident)
        alarm = storage._begin_alarm(row, index_row)
        if alarm is None:
            # Deleted or set again meanwhile.  A row of the index that is stored all the same has no alarm.
            if storage._read_joined(index_row) is not None:
                host.write_beside(resident, {index_row: None})
            return None
        self._begun = True
        self.request = (request_client(resident.key, due.key, alarm), 1, b"", 0)
        handler = resident.cls.alarm
        function, blocking = (_no_handler, False) if handler is None else handler
        return function, (alarm.seen(due.key.decode()),), blocking

    def commit(self, resident: Resident) -> None:
        """See `SystemTurn.commit`."""
        self._alarms.host.storage_of(resident)._end_alarm()

    def ended(self, resident: Resident) -> None:
        """See `SystemTurn.ended`."""
        self._alarms.over(self._due)

    def failed(self, resident: Resident, error: BaseException) -> None:
        """See `SystemTurn.failed`."""
        if self._begun and resident.storage is not None:
            resident.storage._forget_alarm()
        if self._begun or (resident.trouble is not None and resident.trouble.error is not None):
            try:
                self._alarms.count_failure(self._due, resident, self._text(error))
            except StorageError as damage:
                log.error("a failed alarm cannot be read", extra={"object": resident.label, "error": damage})
        else:  # a call before it aborted the object
            self._alarms.host.timetable.again(keys.due_key(*self._due))
        self._alarms.over(self._due)

    def dropped(self) -> None:
        """See `SystemTurn.dropped`."""
        self._alarms.over(self._due)

    def _text(self, error: BaseException) -> str:
        return describe_error(error)[: self._alarms.host.limits.alarm_error_chars]


def _no_handler(instance: Any, alarm: Any) -> None:
    raise TypeError(f"{type(instance).__name__} has no alarm handler any more")
