"""A process that asked to end with its parent does, whichever of the two was faster."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SDK = Path(__file__).resolve().parents[2] / "sdk"
DEADLINE_S = 10.0

CHILD = "import os, signal, sys; from perdure.lifeline import end_with; end_with(int(sys.argv[1])); {then}"
WAITS = "os.write(1, b'x'); signal.pause()"
# The parent starts a child, which inherits the pipe on descriptor 1, and waits to be killed.
PARENT = """
import os, signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
signal.pause()
"""
Started = tuple[subprocess.Popen[bytes], int]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SDK)}


@contextlib.contextmanager
def started(arguments: list[str], environment: dict[str, str]) -> Iterator[Started]:
    """A process, and the end to read of a pipe on which it and its children write."""
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, *arguments], stdout=writing, env=environment)
    os.close(writing)
    try:
        yield process, reading
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        os.close(reading)


def read_one(descriptor: int) -> bytes:
    """The next byte; empty when all who could write are gone."""
    assert select.select([descriptor], [], [], DEADLINE_S)[0], "nothing was written, and somebody still could"
    return os.read(descriptor, 1)


def test_the_child_of_a_killed_process_ends(environment: dict[str, str]) -> None:
    with started(["-c", PARENT, CHILD.format(then=WAITS)], environment) as (parent, pipe):
        assert read_one(pipe) == b"x"
        parent.send_signal(signal.SIGKILL)
        assert read_one(pipe) == b"", "the child lives on"


def test_a_child_whose_parent_is_gone_already_ends_at_once(environment: dict[str, str]) -> None:
    somebody_else = str(os.getppid())
    with started(["-c", CHILD.format(then=WAITS), somebody_else], environment) as (child, pipe):
        assert child.wait(DEADLINE_S) == 0
        assert read_one(pipe) == b""


def test_a_child_of_a_living_parent_goes_on(environment: dict[str, str]) -> None:
    with started(["-c", CHILD.format(then=WAITS), str(os.getpid())], environment) as (child, pipe):
        assert read_one(pipe) == b"x"
        assert child.poll() is None
