"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A data directory of its own, and nothing left running at the end."""
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.end()
