"""What a worker is running right now, in memory that outlives it.  Written by the worker, read by others.

Guarantees that whoever looks at any instant, also after the worker's death by any cause, finds the object
and the method of the step that the loop was in, and of each `@blocking` method in its thread.  The
supervisor makes the memory (a memfd: a file would be written back to the disk, and a write to a page that
is on its way there can wait for it), hands it to one incarnation, and reads it when that has ended.

A note costs a turn 0.12 µs (docs/decisions/0013-what-kills-a-worker.md).
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

__all__ = ["MARK", "NOTHING", "Marked", "Marks", "Seen", "describe", "new_memory", "read_memory"]

_WHAT_BYTES: Final = 128
_KEY_BYTES: Final = 32
MARK: Final = struct.Struct(f"={_WHAT_BYTES}s{_KEY_BYTES}s")
"""What runs, and the id of its object.  Its first byte is 0 while nothing runs."""
NOTHING: Final = bytes(MARK.size)
_BLOCKED: Final = MARK.size
_THREADS: Final = 512
_THREAD: Final = struct.Struct(f"=Q{MARK.size}s")
_THREADS_NOTED: Final = 64
_LOOP_THREAD: Final = 2 * MARK.size
_STACKS: Final = 16_384
"""Up to here marks, from here on the text that faulthandler writes."""
_STACKS_BYTES_MAX: Final = 65_536


class Marked(NamedTuple):
    """A step of a turn, as a mark tells it."""

    namespace: str
    method: str
    key: bytes


class Seen(NamedTuple):
    """All that one incarnation left behind."""

    running: Marked | None
    """What the loop was in."""
    blocked: Marked | None
    """The same, if the watchdog had seen it block the loop."""
    threads: dict[int, Marked]
    """Blocking methods by the ident of their thread."""
    loop_thread: int
    stacks: str
    """What faulthandler wrote: at a fatal signal, or when the interpreter's lock was held for long."""


def describe(namespace: str, method: str) -> bytes:
    """The constant part of a method's marks; names that are too long for it are cut."""
    return b"\x01" + b"\0".join((namespace.encode()[:64], method.encode()[:60]))


class Marks:
    """The writing side.  Without a descriptor nobody else sees the marks, and they go with the process."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = descriptor
        self.page: mmap.mmap | bytearray = (
            bytearray(_STACKS) if descriptor is None else mmap.mmap(descriptor, _STACKS)
        )
        self.steps = 0
        """Steps of all kinds but first ones of calls, which the host counts: together they show progress."""
        self.figures = {"blocked_turns": 0, "blocked_longest_ms": 0}
        """What the watchdog found, for the worker's stats."""
        self._free = list(range(_THREADS_NOTED))

    def begin(self, what: bytes, key: bytes) -> None:
        """A step begins."""
        self.steps += 1
        MARK.pack_into(self.page, 0, what, key)

    def resume(self, mark: bytes) -> bytes:
        """A step of a turn or task that was suspended begins; gives the mark that it replaces."""
        self.steps += 1
        before = bytes(self.page[: MARK.size])
        self.page[: MARK.size] = mark
        return before

    def end(self) -> None:
        """No step runs."""
        self.page[0] = 0

    def current(self) -> bytes:
        """The mark of the step that runs; its first byte is 0 when none does."""
        return bytes(self.page[: MARK.size])

    def note_loop(self) -> None:
        """This thread is the loop's."""
        struct.pack_into("=Q", self.page, _LOOP_THREAD, threading.get_ident())

    def note_blocked(self, mark: bytes) -> None:
        """What blocks the loop, as the watchdog sees it; `NOTHING` when it has ended."""
        self.page[_BLOCKED : _BLOCKED + MARK.size] = mark

    def in_thread(self, mark: bytes, run: Callable[..., Any], *args: Any) -> Any:
        """Runs a function in a thread beside the loop, under a mark of its own."""
        if not self._free:
            return run(*args)
        slot = self._free.pop()
        at = _THREADS + slot * _THREAD.size
        _THREAD.pack_into(self.page, at, threading.get_ident(), mark)
        try:
            return run(*args)
        finally:
            _THREAD.pack_into(self.page, at, 0, NOTHING)
            self._free.append(slot)

    def clear_stacks(self) -> None:
        """The next text of faulthandler stands alone."""
        if self.descriptor is not None:
            os.ftruncate(self.descriptor, _STACKS)
            os.lseek(self.descriptor, _STACKS, os.SEEK_SET)


def new_memory(name: str) -> int:
    """A descriptor of empty memory for one incarnation's marks."""
    descriptor = os.memfd_create(name)
    os.ftruncate(descriptor, _STACKS)
    os.lseek(descriptor, _STACKS, os.SEEK_SET)
    return descriptor


def read_memory(descriptor: int) -> Seen:
    """What is marked in the memory now; marks that make no sense count as none."""
    page = os.pread(descriptor, _STACKS, 0).ljust(_STACKS, b"\0")
    threads = {}
    for slot in range(_THREADS_NOTED):
        ident, mark = _THREAD.unpack_from(page, _THREADS + slot * _THREAD.size)
        if ident and (marked := _read(mark)):
            threads[ident] = marked
    return Seen(
        running=_read(page[: MARK.size]),
        blocked=_read(page[_BLOCKED : _BLOCKED + MARK.size]),
        threads=threads,
        loop_thread=struct.unpack_from("=Q", page, _LOOP_THREAD)[0],
        stacks=os.pread(descriptor, _STACKS_BYTES_MAX, _STACKS).decode(errors="replace"),
    )


def _read(mark: bytes) -> Marked | None:
    what, key = MARK.unpack(mark)
    namespace, _, method = what[1:].rstrip(b"\0").partition(b"\0")
    if what[0] != 1 or not namespace or not method:
        return None
    return Marked(namespace.decode(errors="replace"), method.decode(errors="replace"), key)
