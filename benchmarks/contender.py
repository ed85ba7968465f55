"""What the benchmark compares: the interface of a system under test, and its child processes.

A module with a contender offers two names: `system()`, called by run.py, which starts and ends the
servers, and `connect(...)`, called in the client process. They share nothing but a JSON-able handle.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

__all__ = [
    "Child",
    "Connect",
    "Handle",
    "Increment",
    "System",
    "Unavailable",
    "cpu_seconds",
    "object_name",
    "stop_all",
]

Handle = dict[str, Any]
"""What a client needs to find the servers; crosses a pipe as JSON."""

Increment = Callable[[int], Awaitable[Any]]
"""Increment the object of this index; the awaited value is its new value, durable."""

Connect = Callable[[Handle, str, int, int], AbstractAsyncContextManager[Increment]]
"""`connect(handle, form, objects, outstanding)`."""

STOP_TIMEOUT_S = 10.0
ROOT = Path(__file__).resolve().parent.parent


class Unavailable(Exception):
    """This system cannot run here; the text says what is missing. The others run without it."""


class System(Protocol):
    """The servers of one contender; lives in the run.py process."""

    forms: Sequence[str]
    """The ways a client can reach it; each is a contender of its own."""

    def start(self, directory: Path) -> Handle:
        """Start the servers with their files under `directory`; raises Unavailable."""

    def pids(self) -> list[int]:
        """The servers' processes, for their CPU time."""

    def stop(self) -> None:
        """End every process that `start` started."""


class Child:
    """A child process that prints one line when it is ready and ends when its standard input closes."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )

    def wait_ready(self) -> None:
        """Block until the child's first line; raises RuntimeError when it ends instead."""
        line = self.read_line()
        if line.strip() != "ready":
            raise RuntimeError(f"child {self.process.args!r} said {line!r} instead of 'ready'")

    def write_line(self, line: str) -> None:
        """Send one line to the child."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read_line(self) -> str:
        """The child's next line; raises RuntimeError when the child has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"child {self.process.args!r} ended with status {self.process.wait()}")
        return line

    def stop(self) -> None:
        """Close its input, wait, and kill this one process when that does not end it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        stop_process(self.process)
        self.process.stdout.close()


def stop_process(process: subprocess.Popen[str]) -> None:
    """Wait for `process` to end by itself for STOP_TIMEOUT_S, then kill it."""
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop_all(children: list[Child]) -> None:
    """Stop `children`, last started first, and forget them."""
    while children:
        children.pop().stop()


def object_name(index: int) -> str:
    """The name of the object of this index; the same in all systems."""
    return f"counter-{index:05d}"


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of `pids` so far, in seconds; a process that is gone counts nothing."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
