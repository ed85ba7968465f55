"""The soonest rows of the store's due index, in memory: what is to be done next, and when.  Pure.

Guarantees: bounded memory however many rows there are (the soonest ones are here, the rest stays on disk
until its time comes near); a start reads one page; asking what is due costs one comparison while nothing is.
A row is given out once, unless it is added again; after a restart all that are still stored are given out.

The index follows what is durable: `add` and `discard` are called when the commit that put or deleted a row
is on disk, in the order of the commits.  A row given out is a hint: its object's own row, which is checked
when the turn has come, says whether there is something to do (an alarm may have been deleted meanwhile).
So the checksums of these rows, which hold nothing, are not looked at, and no damaged one stops the others.

Runs in the worker's event loop.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from itertools import islice

from perdure.limits import Limits
from perdure_storage.engine import Scan
from perdure_storage.keys import DUE_REGION, DueRow, due_at_ms, parse_due_row, prefix_end

__all__ = ["DueIndex"]

log = logging.getLogger("perdure.worker")

_END = prefix_end(DUE_REGION)


class DueIndex:
    """Rows of the due index in the order of their times; `scan` is the engine's.

    `page_rows` are read from disk in one go; over `rows_max` in memory, the latest of them are forgotten.

    `next_at_ms` and `due` read a page from disk when those in memory are used up, and raise `StorageError`
    when the store cannot give it.
    """

    __slots__ = ("_horizon", "_page_rows", "_rows", "_rows_max", "_scan")

    def __init__(
        self,
        scan: Callable[[bytes, bytes], Scan],
        *,
        page_rows: int = Limits.due_page_rows,
        rows_max: int = Limits.due_rows_max,
    ) -> None:
        self._scan = scan
        self._page_rows = page_rows
        self._rows_max = rows_max
        self._rows: list[bytes] = []  # sorted: every row that is stored, not given out, and below the horizon
        self._horizon = DUE_REGION  # rows from here on are on disk only

    def __len__(self) -> int:
        """Rows in memory."""
        return len(self._rows)

    @property
    def complete(self) -> bool:
        """Whether no more rows than those in memory are known to be on disk."""
        return self._horizon == _END

    @property
    def next_at_ms(self) -> int | None:
        """When the soonest row is due, in milliseconds since the epoch; None when there is none."""
        rows = self._rows or self._load()
        return due_at_ms(rows[0]) if rows else None

    def add(self, row: bytes) -> None:
        """A row (`keys.due_key`) was stored and is durable; to add it again does nothing."""
        rows = self._rows
        if row >= self._horizon:
            return  # it is read from disk when it is near
        if not rows or row > rows[-1]:
            rows.append(row)
        else:
            at = bisect_left(rows, row)
            if rows[at] != row:
                insort(rows, row)
        if len(rows) > self._rows_max:
            # Half of them, so that this is rare, and so that what comes next need not be read at once.
            self._horizon = rows[self._rows_max // 2]
            del rows[self._rows_max // 2 :]

    def discard(self, row: bytes) -> None:
        """A row was deleted, durably."""
        at = bisect_left(self._rows, row)
        if at < len(self._rows) and self._rows[at] == row:
            del self._rows[at]

    def due(self, now_ms: int, limit: int) -> list[DueRow]:
        """Gives out at most `limit` rows whose time has come, the soonest first.  `now_ms`: wall clock."""
        at_ms = self.next_at_ms
        if at_ms is None or at_ms > now_ms:
            return []
        rows = self._rows
        count = bisect_right(rows, now_ms, hi=min(limit, len(rows)), key=due_at_ms)
        taken = rows[:count]
        del rows[:count]
        return [due for row in taken if (due := _parsed(row)) is not None]

    def _load(self) -> list[bytes]:
        if self._horizon == _END:
            return self._rows
        with self._scan(self._horizon, _END) as scan:
            self._rows = [row for row, _ in islice(scan, self._page_rows)]
        self._horizon = self._rows[-1] + b"\x00" if len(self._rows) == self._page_rows else _END
        return self._rows


def _parsed(row: bytes) -> DueRow | None:
    try:
        return parse_due_row(row)
    except ValueError as error:
        log.error("a row of the due index is damaged and is passed over: %s", error)
        return None
