"""Fixtures of the storage tests: each runs its test once on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from perdure_storage.engine import Engine
from perdure_storage.leveldb import LevelDBEngine
from perdure_storage.memory import MemoryEngine
from storage.storage_host import Host

# The same examples in every run: a failure is of the change that was made, and can be seen again.
settings.register_profile("deterministic", derandomize=True)
settings.load_profile("deterministic")


@pytest.fixture(params=["leveldb", "memory"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    opened: Engine
    opened = LevelDBEngine(tmp_path / "db", create=True) if request.param == "leveldb" else MemoryEngine()
    yield opened
    opened.close()


@pytest.fixture
def host(engine: Engine) -> Host:
    return Host(engine)
