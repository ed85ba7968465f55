"""Fixtures of the worker's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from worker.alarm_scene import ALARM_CLASSES
from worker.host_scene import Scene
from worker.socket_scene import Gateway, Room, serve


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


@pytest.fixture
def scene(make_scene: Callable[..., Scene]) -> Scene:
    """A worker of the classes of `alarm_scene`."""
    return make_scene(*ALARM_CLASSES)


@pytest.fixture
def rooms(make_scene: Callable[..., Scene]) -> Scene:
    """A worker of `Room`s."""
    return serve(make_scene, Room)


@pytest.fixture
def gateway(rooms: Scene) -> Gateway:
    """A gateway for their sockets."""
    return Gateway(rooms)
