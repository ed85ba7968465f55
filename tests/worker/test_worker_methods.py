"""What a worker answers itself: which methods it has, and `stats`."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import DurableObject, UnknownMethod, durable


class Room(DurableObject):
    value: int = durable(0)

    async def set(self, value: int) -> None:
        self.value = value


@pytest.mark.parametrize("method", ["nothing", "__init__", "", 5, None])
def test_a_worker_answers_only_its_own_methods(make_scene: Any, method: Any) -> None:
    with pytest.raises(UnknownMethod, match="list, stats"):
        make_scene(Room).call_worker(method, [])


def test_stats_are_plain_numbers_that_follow_what_happened(make_scene: Any) -> None:
    scene = make_scene(Room)
    before = scene.call_worker("stats", [])
    scene.start(Room, "a", "set", 1)
    during = scene.call_worker("stats", [])
    scene.commit()
    scene.send(5)
    after = scene.call_worker("stats", [])
    assert {type(value) for value in after.values()} == {int}
    assert (before["live"], during["live"], after["turns"], after["malformed"]) == (0, 1, 1, 1)
    assert during["uncommitted_bytes"] > after["uncommitted_bytes"] == 0
    assert (during["waiting_outputs"], after["waiting_outputs"]) == (1, 0)
    assert after["commit_sequence"] == during["commit_sequence"] + 1
