"""Fixtures of the examples' tests: an example's module, and scenes to run its classes in."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from processes.cluster import ROOT, Cluster, running_cluster
from worker.host_scene import Scene

EXAMPLES = ROOT / "examples"
SERVED = """
import sys
sys.path.insert(0, {folder!r})
from chunked import RangeChunk, RangeDatabase, RangeDirectory
from crdt import Replica
from kv import KvEdge, KvShard
"""


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with kv, chunked and crdt, whose processes tests may kill."""
    folder = tmp_path_factory.mktemp("databases")
    app = folder / "app.py"
    app.write_text(SERVED.format(folder=str(EXAMPLES)), "utf-8")
    with running_cluster(app, folder / "data") as cluster:
        yield cluster


@pytest.fixture
def load_example() -> Callable[[str], ModuleType]:
    """Loads one of the examples by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def make_scene() -> Iterator[Callable[..., Scene]]:
    """Makes scenes, and closes them."""
    scenes: list[Scene] = []

    def make(*classes: Any, **options: Any) -> Scene:
        scenes.append(Scene(*classes, **options))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.close()
