"""Log lines on their way to a stream that may not take them.  Used by all of our processes, in a thread.

Guarantees that whoever logs never waits for whoever reads: lines wait in a bounded queue, a daemon thread
writes them, and what does not fit is dropped and counted.  110 objects whose `on_start` failed once
filled a pipe that nobody read; every event loop then stood in its write, and SIGTERM did nothing.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO

__all__ = ["LineWriter", "LogWriter", "line_writer"]

LineWriter = Callable[[str], None]
"""Writes one line; it may block, and raises `OSError` or `ValueError` when there is nobody to read it."""

_LOOK_S = 1.0
"""How often an idle writer asks for what else there is to say."""


class LogWriter:
    """A bounded queue of lines and the thread that writes them."""

    def __init__(
        self,
        write: LineWriter,
        queue_bytes_max: int,
        on_dropped: Callable[[int], str],
        on_idle: Callable[[], list[str]] = list,
    ) -> None:
        """`on_dropped` makes the line that tells how many were dropped; `on_idle` is asked each second."""
        self._write = write
        self._queue_bytes_max = queue_bytes_max
        self._on_dropped = on_dropped
        self._on_idle = on_idle
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._waiting_bytes = 0
        self._writing = False
        self._ended = False
        self._failed = False
        self.dropped = 0
        """Lines dropped since the last line that said so."""
        self._thread = threading.Thread(target=self._run, name="perdure-log", daemon=True)
        self._thread.start()

    def add(self, line: str, *, urgent: bool = False) -> None:
        """Queues a line, without its end; a full queue drops it unless it is urgent."""
        with self._changed:
            if self._ended:
                return
            if not urgent and self._waiting_bytes + len(line) > self._queue_bytes_max:
                self.dropped += 1
                return
            self._lines.append(line)
            self._waiting_bytes += len(line)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Waits until all lines are written, at most for `timeout_s`; whether they are."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while self._lines or self._writing:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Takes no more lines; the thread ends when it has written what waits."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            line, count = taken
            try:
                self._write(line)
                failed = False
            except (OSError, ValueError):  # nobody can read it any more, or it was closed
                failed = True
            with self._changed:
                self._failed, self._writing = failed, False
                self.dropped += count if failed else 0
                self._changed.notify_all()

    def _next(self) -> tuple[str, int] | None:
        while True:
            with self._changed:
                if not self._lines and not self._ended:
                    self._changed.wait(_LOOK_S)
                if self._lines or self._ended:
                    return self._take()
            for line in self._on_idle():
                self.add(line)

    def _take(self) -> tuple[str, int] | None:
        """The next line, and for how many lines it stands."""
        if not self._lines:
            return None
        self._writing = True
        has_room = self._waiting_bytes <= self._queue_bytes_max // 2 or len(self._lines) == 1
        if self.dropped and has_room and not self._failed:
            count, self.dropped = self.dropped, 0
            return self._on_dropped(count), count
        line = self._lines.popleft()
        self._waiting_bytes -= len(line)
        return line, 1


def line_writer(stream: IO[str]) -> LineWriter:
    """Writes lines to the stream's descriptor if it has one, each in one write of the system.

    Not through the stream: Python's exit waits for its lock, which a thread that is stuck would hold.
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):

        def write(line: str) -> None:
            stream.write(line + "\n")
            stream.flush()

        return write

    def write_whole(line: str) -> None:
        data = line.encode(errors="backslashreplace") + b"\n"
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # somebody who shares it has made it so
                select.select([], [descriptor], [])

    return write_whole
