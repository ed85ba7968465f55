"""What the benchmark compares: the interface of a system under test, and child processes.

A contender's module offers two names: `system()`, used by the run.py process, which starts and ends the
servers, and `connect(...)`, used in the client process. They share nothing but a handle that is JSON.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

__all__ = [
    "MODULES",
    "ROOT",
    "Child",
    "Connect",
    "Handle",
    "Increment",
    "System",
    "Unavailable",
    "object_name",
    "stop_all",
    "stop_process",
]

MODULES = {
    "limit": "benchmarks.limit",
    "perdure": "benchmarks.perdure_counter",
    "redis": "benchmarks.redis_incr",
}
"""Each system's module; imported when it is used, so that one can run where another cannot."""

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0

Handle = dict[str, Any]
"""What a client needs to find the servers; crosses a pipe as JSON."""

Increment = Callable[[int], Awaitable[Any]]
"""Increment the object of this index; the awaited value is its new value, durable."""

Connect = Callable[[Handle, str, int, int], AbstractAsyncContextManager[Increment]]
"""`connect(handle, form, objects, outstanding)`; `form` is one of the system's."""


class Unavailable(Exception):
    """This system cannot run here; the text says what is missing. The others run without it."""


class System(Protocol):
    """The servers of one system."""

    forms: Sequence[str]
    """The ways a client reaches it; each is a contender of its own."""
    raw_form: str | None
    """A form that sends one message for each call, measured on request only; None: there is none."""

    def start(self, directory: Path) -> Handle:
        """Start the servers with their files under `directory`; raises Unavailable."""

    def pids(self) -> list[int]:
        """The servers' processes, for their CPU time."""

    def stop(self) -> None:
        """End every process that `start` started; to be called also when `start` raised."""


class Child:
    """A Python child process that talks in lines and ends when its standard input closes."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        # A process group of its own: Ctrl-C reaches run.py alone, which ends its children in order.
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            process_group=0,
        )

    def wait_ready(self) -> None:
        """Wait for the line `ready`; raises RuntimeError when it does not come."""
        line = self.read_line(READY_TIMEOUT_S)
        if line.strip() != "ready":
            raise RuntimeError(f"{self._name()} said {line!r} instead of 'ready'")

    def write_line(self, line: str) -> None:
        """Send one line to the child."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read_line(self, timeout_s: float) -> str:
        """The child's next line; raises RuntimeError when it has ended or says nothing for so long."""
        assert self.process.stdout is not None
        # One line at a time is on its way, so what the file object buffers is never more than that.
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            raise RuntimeError(f"{self._name()} said nothing for {timeout_s:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name()} ended with status {self.process.wait()}")
        return line

    def stop(self) -> None:
        """Close its input and wait; kills this one process when that does not end it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        stop_process(self.process)
        self.process.stdout.close()

    def _name(self) -> str:
        return f"process {self.process.pid} ({self._module})"


def stop_process(process: subprocess.Popen[Any]) -> None:
    """Wait for `process`, which was told to end, for STOP_TIMEOUT_S; then kill it."""
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop_all(children: list[Child]) -> None:
    """Stop `children`, the last started first, and forget them."""
    while children:
        children.pop().stop()


def object_name(index: int) -> str:
    """The name of the object of this index; the same in all systems."""
    return f"counter-{index:05d}"
