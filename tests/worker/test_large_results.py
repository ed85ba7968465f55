"""A result that is over the limit: what the caller learns depends on whether all of the turn was undone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perdure import DurableObject, Limits, MessageTooLarge, RemoteError, durable
from worker.host_scene import Scene

MakeScene = Callable[..., Scene]
LIMITS = Limits(message_bytes_max=1_000)


class Box(DurableObject):
    value: int = durable(0)

    async def make(self, size: int) -> bytes:
        self.value += 1
        return bytes(size)

    async def make_after_sync(self, size: int) -> bytes:
        self.value += 1
        await self.storage.sync()
        self.value += 10
        return bytes(size)

    async def raises_itself(self) -> None:
        raise MessageTooLarge("of an argument", size=1, limit=1)

    async def get(self) -> int:
        return self.value


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    return make_scene(Box, limits=LIMITS)


def test_a_result_over_the_limit_is_told_as_not_executed_since_its_turn_left_no_trace(scene: Scene) -> None:
    assert len(scene.call(Box, "one", "make", 900)) == 900
    with pytest.raises(MessageTooLarge, match="undone") as caught:
        scene.call(Box, "one", "make", 1_001)
    assert caught.value.size is not None
    assert caught.value.size > 1_000
    assert caught.value.limit == 1_000
    assert scene.call(Box, "one", "get") == 1
    assert scene.fields(Box, "one") == {"value": 1}


def test_after_a_commit_point_it_is_an_error_of_the_method_as_not_all_was_undone(scene: Scene) -> None:
    call = scene.start(Box, "one", "make_after_sync", 1_001)
    scene.commit()
    with pytest.raises(RemoteError, match="commit point stays"):
        call.result()
    assert scene.call(Box, "one", "get") == 1
    with pytest.raises(MessageTooLarge):  # the next turn is judged by what it does itself
        scene.call(Box, "one", "make", 1_001)


def test_the_same_error_raised_by_a_method_is_the_methods(scene: Scene) -> None:
    with pytest.raises(RemoteError):
        scene.call(Box, "one", "raises_itself")
