"""Sees that a turn blocks the worker's loop, and says which.  A thread of the worker around a pure core.

Guarantees: a step of a turn that keeps the loop for longer than `turn_blocked_s` is counted and logged
with object, method and the stack that was seen meanwhile; one line with its duration when it ends, and one
before the supervisor kills the worker, should it not end.  Code that holds the interpreter's lock keeps
this thread from running too: then faulthandler's own thread, which needs no lock, writes the stacks into the
marks' memory, where the supervisor finds them.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from perdure.limits import Limits
from perdure_worker.marks import MARK, NOTHING, Marks

__all__ = ["Blockage", "Watch", "Watchdog", "stack_text"]

log = logging.getLogger("perdure.worker")

_LOOKS_PER_LIMIT: Final = 4
_FRAMES_MAX: Final = 16
_OURS: Final = str(Path(__file__).parent)
_DRIVERS: Final = tuple(f"{_OURS}/{name}.py" for name in ("execution", "turns", "child_tasks"))


class Blockage(NamedTuple):
    """A step that keeps the loop, at one of three moments."""

    mark: bytes
    seconds: float
    moment: str
    """"begins", "hangs" (it will cost the worker its life) or "ends"."""


class Watch:
    """The decision: one look after the other at what runs."""

    def __init__(self, limit_s: float, hang_s: float) -> None:
        self._limit_s = limit_s
        self._hang_s = hang_s
        self._seen: tuple[int, bytes] = (-1, NOTHING)
        self._since = 0.0
        self._told = 0

    def look(self, now: float, progress: int, mark: bytes) -> Blockage | None:
        """`progress` grows with each step, `mark` names the present one; what is to be told, if anything."""
        seen = (progress, mark)
        if seen != self._seen or mark[0] == 0:
            ended = Blockage(self._seen[1], now - self._since, "ends") if self._told else None
            self._seen, self._since, self._told = seen, now, 0
            return ended
        seconds = now - self._since
        if self._told == 0 and seconds >= self._limit_s:
            self._told = 1
            return Blockage(mark, seconds, "begins")
        if self._told == 1 and seconds >= self._hang_s:
            self._told = 2
            return Blockage(mark, seconds, "hangs")
        return None


class Watchdog:
    """The thread; `start` and `close` are called by the loop's."""

    def __init__(
        self, marks: Marks, limits: Limits, progress: Callable[[], int], label: Callable[[bytes], str]
    ) -> None:
        self._marks = marks
        self._progress = progress
        self._label = label
        self._interval_s = limits.turn_blocked_s / _LOOKS_PER_LIMIT
        # Between two heartbeats and the end; the stacks of a held lock come at the same moment.
        self._hang_s = (limits.heartbeat_interval_s + limits.heartbeat_lost_s) / 2
        self._arm_s = limits.heartbeat_interval_s
        self._armed_at = 0.0
        self._watch = Watch(limits.turn_blocked_s, self._hang_s)
        self._stack = ""
        self._stop = threading.Event()
        self._loop_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="perdure-watchdog", daemon=True)

    def start(self) -> None:
        """From now on the calling thread, which is the loop's, is watched."""
        self._loop_thread = threading.get_ident()
        self._marks.note_loop()
        if self._marks.descriptor is not None:
            faulthandler.enable(self._marks.descriptor)
        self._arm(time.monotonic())  # the first call may come before this thread's first look
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()
        if self._marks.descriptor is not None:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """One look, and what follows from it."""
        blockage = self._watch.look(now, self._progress(), self._marks.current())
        if blockage is not None:
            self._tell(blockage)
        if now - self._armed_at >= self._arm_s:
            self._arm(now)

    def _arm(self, now: float) -> None:
        self._armed_at = now
        if self._marks.descriptor is not None:
            faulthandler.cancel_dump_traceback_later()
            self._marks.clear_stacks()
            faulthandler.dump_traceback_later(self._hang_s, file=self._marks.descriptor)

    def _tell(self, blockage: Blockage) -> None:
        figures = self._marks.figures
        what, key = MARK.unpack(blockage.mark)
        facts = {
            "object": self._label(key),
            "method": what[1:].rstrip(b"\0").rpartition(b"\0")[2].decode(errors="replace"),
            "seconds": round(blockage.seconds, 3),
        }
        if blockage.moment != "ends":
            frame = sys._current_frames().get(self._loop_thread)
            self._stack = stack_text(frame) or self._stack
        if blockage.moment == "begins":
            figures["blocked_turns"] += 1
            self._marks.note_blocked(blockage.mark)
        elif blockage.moment == "hangs":
            log.error("a turn does not let go of the loop", extra={**facts, "stack": self._stack})
        else:
            self._marks.note_blocked(NOTHING)
            log.warning("a turn blocked the loop", extra={**facts, "stack": self._stack})
        longest = max(figures["blocked_longest_ms"], int(blockage.seconds * 1000))
        figures["blocked_longest_ms"] = longest


def stack_text(frame: FrameType | None) -> str:
    """Where a thread is, innermost first, up to what runs the turn: ``app.py:12 spin < app.py:30 start``."""
    places: list[str] = []
    while frame is not None and len(places) < _FRAMES_MAX:
        code = frame.f_code
        if code.co_filename in _DRIVERS:
            break
        if not code.co_filename.startswith(_OURS):
            places.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return " < ".join(places)
