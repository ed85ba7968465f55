"""When something is due: gives rows of the due index to who serves their kind, a bounded number at a time.

Guarantees: nothing is given out before its time by the wall clock, also when that is set back; a clock set
forward, and a worker that was down, give out what was missed once; however much is due at once, other work
gets its turn between batches; a worker that stops gives out nothing more.

The host looks every 50 ms (which is also how soon a change of the wall clock is noticed); a timer serves
what is due sooner than the next look.  Runs in the worker's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from perdure.errors import StorageError
from perdure.limits import Limits
from perdure_storage.engine import Scan
from perdure_storage.keys import DueRow
from perdure_worker.due import DueIndex

__all__ = ["Timetable"]

log = logging.getLogger("perdure.worker")

_LOOK_S = 0.05
_WAIT_MIN_S = 0.001  # what the index tells apart; and a timer that fires too early must not spin
_AGAIN_AFTER_ERROR_S = 5.0


class Timetable:
    """The due index of a worker and who is told of its rows."""

    def __init__(
        self,
        scan: Callable[[bytes, bytes], Scan],
        loop: asyncio.AbstractEventLoop,
        wall_clock: Callable[[], float],
        want_start: Callable[[], None],
        limits: Limits,
    ) -> None:
        self._index = DueIndex(scan, page_rows=limits.due_page_rows, rows_max=limits.due_rows_max)
        self._batch_rows = limits.due_batch_rows
        self._loop = loop
        self._wall_clock = wall_clock
        self._want_start = want_start  # calls `start` in a context that may start turns
        self._kinds: dict[bytes, tuple[Callable[[DueRow], None], Callable[[], bool]]] = {}
        self._stats: list[Callable[[], dict[str, int]]] = []
        self._timer: asyncio.Handle | None = None
        self._quiet_until = 0.0  # of the loop's clock, after an error of the store
        self._stopped = False

    def serve(
        self,
        kind: bytes,
        start: Callable[[DueRow], None],
        has_room: Callable[[], bool],
        stats: Callable[[], dict[str, int]] = dict,
    ) -> None:
        """From now on `start` gets the due rows of `kind`; it must not raise.

        While `has_room` says no, nothing is given out; whoever makes room calls `look`.  `stats` are added
        to those of the timetable.
        """
        self._kinds[kind] = start, has_room
        self._stats.append(stats)

    def now_ms(self) -> int:
        """The wall clock in whole milliseconds; what is due at a time is due when this has reached it."""
        return self.now_us() // 1000

    def now_us(self) -> int:
        """The wall clock in microseconds."""
        return round(self._wall_clock() * 1_000_000)

    def committed(self, rows: Sequence[tuple[bytes, bool]], *_: Any) -> None:
        """Rows of the due index are durably stored (true) or removed (false).  An output of the gate."""
        for row, stored in rows:
            if stored:
                self._index.add(row)
            else:
                self._index.discard(row)
        self.look()

    def again(self, row: bytes) -> None:
        """A row that was given out, and is stored still, is to be given out again."""
        self._index.add(row)

    def look(self) -> None:
        """Looks whether something is due, or will be before the next look."""
        if self._timer is not None or self._stopped:
            return
        at_ms = self._next_at_ms()
        if at_ms is None:
            return
        wait_s = at_ms / 1000 - self.now_us() / 1_000_000
        if wait_s > _LOOK_S or not all(has_room() for _, has_room in self._kinds.values()):
            return
        if wait_s > 0:
            self._timer = self._loop.call_later(max(_WAIT_MIN_S, wait_s), self._on_time)
        else:
            self._timer = self._loop.call_soon(self._on_time)

    def start(self) -> None:
        """Gives out what is due, a bounded number of rows; the rest in a later iteration of the loop."""
        try:
            rows = self._index.due(self.now_ms(), self._batch_rows)
        except StorageError as error:
            self._pause(error)
            return
        for row in rows:
            served = self._kinds.get(row.kind)
            if served is None:
                log.warning("nobody serves due rows of this kind", extra={"kind": row.kind.hex()})
            else:
                served[0](row)

    def stop(self) -> None:
        """Gives out nothing more; what is due stays in the store for the next incarnation."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def stats(self) -> dict[str, int]:
        """Rows in memory (those that are far away are on disk only), and how late the soonest one is."""
        at_ms = self._next_at_ms() if len(self._index) else None
        late_ms = 0 if at_ms is None else max(0, self.now_ms() - at_ms)
        figures = {"due_rows_known": len(self._index), "due_late_ms": late_ms}
        for stats in self._stats:
            figures.update(stats())
        return figures

    def _on_time(self) -> None:
        self._timer = None
        self._want_start()
        self.look()

    def _next_at_ms(self) -> int | None:
        if self._loop.time() < self._quiet_until:
            return None
        try:
            return self._index.next_at_ms
        except StorageError as error:
            self._pause(error)
            return None

    def _pause(self, error: StorageError) -> None:
        self._quiet_until = self._loop.time() + _AGAIN_AFTER_ERROR_S
        log.error("what is due cannot be read from the store: %s", error)
