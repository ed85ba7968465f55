"""An event loop whose clock only tests move."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

LOOP_START_S = 1_000.0


class _ImpatientSelector(selectors.SelectSelector):
    """Waits for nothing but what a test allows: `patience_s` is for threads, which take real time."""

    patience_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        return super().select(0 if timeout == 0 else self.patience_s)


class SteppedLoop(asyncio.SelectorEventLoop):
    """asyncio's loop with a clock that only tests move."""

    def __init__(self) -> None:
        self.now = LOOP_START_S
        self.selector = _ImpatientSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.now

    @property
    def at_rest(self) -> bool:
        return not self._ready  # type: ignore[attr-defined]

    @property
    def next_timer(self) -> float | None:
        handles = [handle for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        return min((handle.when() for handle in handles), default=None)
