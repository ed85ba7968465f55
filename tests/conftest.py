"""Tests run side by side in several processes (`scripts/test`); one marked `alone` has the machine to itself.

An `alone` test starts when those that run have ended, and no other starts before it has ended; time and
load that it measures are then its own.  They come last, so that nobody waits for them in the middle.

What was collected stays until the end: the garbage collector is told not to look through it again and again.
"""

from __future__ import annotations

import gc
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from way_in import WayIn

WAY_IN = pytest.StashKey[WayIn]()
FOLDER = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    if given is not None:
        config.stash[WAY_IN] = WayIn(Path(given["way_in"]))
    elif config.getoption("numprocesses", None):
        config.stash[FOLDER] = Path(tempfile.mkdtemp(prefix="perdure-tests-"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist: what a process is told at its start."""
    node.workerinput["way_in"] = str(node.config.stash[FOLDER])


def pytest_unconfigure(config: pytest.Config) -> None:
    if (way_in := config.stash.get(WAY_IN, None)) is not None:
        way_in.close()
    if (folder := config.stash.get(FOLDER, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=is_alone)


def pytest_collection_finish() -> None:
    # The test that touches 100,000 durable objects takes half as long behind a whole collection. Not before
    # Hypothesis is imported, which then looks for referrers and would miss these (when trio is installed).
    if "hypothesis" in sys.modules:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Around set-up and tear-down too: a cluster that starts is load for others."""
    way_in = item.config.stash.get(WAY_IN, None)
    if way_in is None:
        return (yield)
    with way_in.entered(alone=is_alone(item)):
        return (yield)


def is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None
