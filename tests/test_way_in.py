"""A test that has to be alone waits for those that run, and is overtaken by none."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from way_in import WayIn

DEADLINE_S = 10.0


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def test_process(tmp_path: Path, ends: ExitStack) -> Callable[[], WayIn]:
    """Each call gives what one more process holds."""

    def opened() -> WayIn:
        way_in = WayIn(tmp_path)
        ends.callback(way_in.close)
        return way_in

    return opened


class Visit:
    """A thread that goes in and stays until it is told to leave."""

    def __init__(self, way_in: WayIn, *, alone: bool) -> None:
        self.is_in, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(way_in, alone), daemon=True)
        self._thread.start()

    def _run(self, way_in: WayIn, alone: bool) -> None:
        with way_in.entered(alone=alone):
            self.is_in.set()
            self._leave.wait(DEADLINE_S)

    def leave(self) -> None:
        self._leave.set()
        self._thread.join(DEADLINE_S)


def wait_until_held(path: Path) -> None:
    """Until somebody holds the lock of this file."""
    deadline = time.monotonic() + DEADLINE_S
    with open(path, "a") as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(file, fcntl.LOCK_UN)
    pytest.fail(f"nobody holds {path.name}")


def test_those_that_need_not_be_alone_run_side_by_side(test_process: Callable[[], WayIn]) -> None:
    with test_process().entered(alone=False), test_process().entered(alone=False):
        pass


def test_one_that_is_alone_waits_for_the_others_and_later_ones_wait_for_it(
    test_process: Callable[[], WayIn], tmp_path: Path
) -> None:
    with test_process().entered(alone=False):
        alone = Visit(test_process(), alone=True)
        wait_until_held(tmp_path / "door")
        later = Visit(test_process(), alone=False)
        assert not later.is_in.wait(0.1), "whoever waits to be alone would be passed over for ever"
        assert not alone.is_in.is_set()
    assert alone.is_in.wait(DEADLINE_S)
    assert not later.is_in.is_set()
    alone.leave()
    assert later.is_in.wait(DEADLINE_S)
    later.leave()
