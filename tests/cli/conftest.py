"""Fixtures of the command line's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A new directory with a path short enough for sockets, whatever `tmp_path` is here."""
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as folder:
        yield Path(folder).resolve()


@pytest.fixture
def cluster(short_path: Path) -> Iterator[Cluster]:
    """A data directory of its own, and nothing left running at the end."""
    made = Cluster(short_path)
    try:
        yield made
    finally:
        made.end()
