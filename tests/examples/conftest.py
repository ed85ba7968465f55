"""Fixtures of the examples' tests: an example's module, and scenes to run its classes in."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from worker.host_scene import Scene

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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
