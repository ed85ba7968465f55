"""`client.list` in one worker: a page of the names index, with facts about each object.

Guarantees that one answer's work is bounded, whatever the objects hold: it ends early, and says so, when
it has read as much as `Limits` allows. Names and sizes are those on disk; an object whose first commit is
not durable yet is not listed. Runs in the worker's event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from perdure.errors import InvalidArgument
from perdure_storage import keys, records
from perdure_storage.engine import Engine
from perdure_worker.alarm_rows import AlarmRow

if TYPE_CHECKING:
    from perdure_worker.host import Host

__all__ = ["list_objects"]

_SIZED_ROWS_MAX: Final = 64
_SIZED_BYTES_MAX: Final = 64 * 1024
"""So much of an object is read to size it; the rest of a larger one is the store's own estimate."""


def list_objects(host: Host, namespace: str, prefix: str, limit: int, after: bytes) -> list[Any]:
    """``[more, rows, known]``: objects behind `after`, in the order of their positions.

    Rows are ``[position, id, name, size, live, next alarm]``: the size in bytes of rows on disk, the alarm in
    milliseconds since the epoch or None. `more` tells whether objects follow the last row, of which there is
    at least one then; `known` whether a class of this namespace is loaded or anything of one is stored.
    """
    if not isinstance(namespace, str) or not isinstance(prefix, str) or not isinstance(after, bytes):
        raise InvalidArgument("list takes a namespace, a prefix (str), a limit and a position (bytes)")
    if not isinstance(limit, int) or not 1 <= limit <= host.limits.list_entries_max:
        raise InvalidArgument(f"limit is 1 to {host.limits.list_entries_max}, not {limit!r:.80}")
    base = keys.names_prefix(namespace, named=False)[:-1]
    start = keys.names_key(namespace, prefix, b"") if prefix else base
    stop = keys.prefix_end(start)
    if after:
        start = max(start, base + after + b"\x00")
    rows: list[list[Any]] = []
    rows_left, bytes_left = host.limits.listing_rows_max, host.limits.listing_bytes_max
    with host.engine.scan(start, stop) as scan:
        for key, record in scan:
            if len(rows) == limit or rows_left <= 0 or bytes_left <= 0:
                return [True, rows, True]
            row = keys.parse_names_row(key)
            slot, object_id = keys.parse_names_value(records.unseal(key, record))
            facts = _Facts(host.engine, keys.object_prefix(slot, namespace, object_id))
            rows_left -= facts.rows + 1
            bytes_left -= facts.bytes
            resident = host.live.get(object_id)
            live = resident is not None and resident.instance is not None
            rows.append([key[len(base) :], object_id, row.name, facts.size, live, facts.next_alarm_ms])
    return [False, rows, namespace in host.classes or _has_rows(host.engine, base)]


def _has_rows(engine: Engine, prefix: bytes) -> bool:
    with engine.scan(prefix, keys.prefix_end(prefix)) as scan:
        return any(True for _ in scan)


class _Facts:
    """What the rows of one object tell, and how many rows and bytes were read for it."""

    __slots__ = ("_alarms", "bytes", "next_alarm_ms", "rows", "size")

    def __init__(self, engine: Engine, prefix: bytes) -> None:
        self.rows = self.bytes = 0
        self.next_alarm_ms: int | None = None
        self._alarms = prefix + keys.ALARM
        stop = keys.prefix_end(prefix)
        last = self._read(engine, prefix, stop, _SIZED_ROWS_MAX, _SIZED_BYTES_MAX)
        self.size = self.bytes
        if last is not None:
            after = last + b"\x00"
            self.size += engine.approximate_bytes(after, stop)
            # All of its alarms, of which there are `Limits.alarms_max` at most: the soonest may be the last.
            self._read(engine, max(after, self._alarms), keys.prefix_end(self._alarms), None, None)

    def _read(
        self, engine: Engine, start: bytes, stop: bytes, rows_max: int | None, bytes_max: int | None
    ) -> bytes | None:
        """Reads rows; the key of the last one if it stopped early."""
        rows = size = 0
        alarms = self._alarms
        last = None
        with engine.scan(start, stop) as scan:
            for key, record in scan:
                rows += 1
                size += len(key) + len(record)
                if key.startswith(alarms) and len(key) > len(alarms):
                    self._look_at_alarm(key, record)
                if rows == rows_max or (bytes_max is not None and size >= bytes_max):
                    last = key
                    break
        self.rows += rows
        self.bytes += size
        return last

    def _look_at_alarm(self, key: bytes, record: bytes) -> None:
        next_ms = AlarmRow.decode(records.unseal(key, record)).next_ms
        if next_ms is not None and (self.next_alarm_ms is None or next_ms < self.next_alarm_ms):
            self.next_alarm_ms = next_ms
