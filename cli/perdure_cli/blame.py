"""Which object a worker's death is blamed on, from how it died and what it left marked.  Pure; supervisor.

- A fatal signal of its own making (a fault, an abort) and an exit that is not the worker's own blame what
  ran in the thread that died: a turn, or a `@blocking` method.
- Silence that the supervisor ended blames the turn that was seen to block the loop.  A process that was
  merely stopped for a while, or got no processor, has no such mark.
- SIGKILL from outside (the kernel's memory killer among others) blames a turn that had blocked the loop.
- A failed write, an ordered stop and other signals from outside blame nobody.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Final

from perdure.exits import WorkerExit
from perdure_cli.events import Role
from perdure_worker.marks import Marked, Seen

__all__ = ["Ending", "how_it_ended", "judge", "last_stack"]

_OWN_SIGNALS: Final = frozenset(
    -number
    for number in (
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGTRAP,
        signal.SIGSYS,
    )
)
_FATAL: Final = "Fatal Python error"
_FRAME: Final = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
_FRAMES_MAX: Final = 16
_DRIVERS: Final = tuple(f"/perdure_worker/{name}.py" for name in ("execution", "turns", "child_tasks"))
"""What runs a turn's steps: below it there is nothing of the user's."""
_DYING_THREAD: Final = re.compile(r"^Current thread 0x([0-9a-f]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker ended."""

    code: int
    """Exit code, or the signal's number negated."""
    silent_s: float
    """Since its last heartbeat."""
    killed_by_supervisor: bool
    """Because it had fallen silent."""
    ordered: bool
    """Everything was being stopped."""


def judge(ending: Ending, seen: Seen, *, silence_s: float) -> Marked | None:
    """The step to blame, None where nothing tells.

    `silence_s` is how long a worker says nothing only when something blocks its loop.
    """
    code, running = ending.code, seen.running
    if ending.ordered or code in (WorkerExit.WRITE_FAILED, WorkerExit.NO_SPACE):
        return None
    if ending.killed_by_supervisor or code == -signal.SIGKILL:
        held = running is not None and running == seen.blocked
        # A lock that is held keeps the watchdog too from seeing it: then faulthandler has written, or,
        # when the kill came before that, the silence alone tells.
        held = held or bool(seen.stacks)
        held = held or (not ending.killed_by_supervisor and ending.silent_s >= silence_s)
        return running if held else None
    if code in _OWN_SIGNALS:
        return _of_dying_thread(seen)
    if code >= 0:
        if running is None and len(seen.threads) == 1:
            return next(iter(seen.threads.values()))
        return running
    return None


def _of_dying_thread(seen: Seen) -> Marked | None:
    if _FATAL not in seen.stacks:  # too broken for a word, or the application took the handler away
        return seen.running
    found = _DYING_THREAD.search(seen.stacks)
    if found is None:  # a thread that is not Python's: ZeroMQ's, LevelDB's
        return None
    ident = int(found[1], 16)
    return seen.running if ident == seen.loop_thread else seen.threads.get(ident)


def last_stack(seen: Seen) -> str:
    """Where the thread was that died, or the loop that hung: ``app.py:12 spin < ...``, or ""."""
    found = _DYING_THREAD.search(seen.stacks)
    if found is None:
        found = re.search(rf"^Thread 0x0*{seen.loop_thread:x} ", seen.stacks, re.MULTILINE)
    if found is None:
        return ""
    thread, _, _ = seen.stacks[found.end() :].partition("\n\n")
    places: list[str] = []
    for path, line, function in _FRAME.findall(thread):
        if path.endswith(_DRIVERS) or len(places) == _FRAMES_MAX:
            break
        if "/perdure_worker/" not in path:
            places.append(f"{path.rpartition('/')[2]}:{line} {function}")
    return " < ".join(places)


def how_it_ended(role: Role, code: int, *, asked: bool) -> str:
    """The end of a process in words; `asked` tells whether it was to stop."""
    if role is Role.WORKER and code == WorkerExit.STOPPED and not asked:
        return "exit code 0, though nobody asked it to stop: does the application call exit()?"
    try:
        if code < 0:
            return signal.Signals(-code).name
        if role is Role.WORKER or (role is Role.GATEWAY and code == WorkerExit.APP_NOT_LOADED):
            return f"exit code {code}: {WorkerExit(code).meaning}"
        return f"exit code {code}"
    except ValueError:  # a real-time signal, or a code of the user's own
        return f"signal {-code}" if code < 0 else f"exit code {code}"
