"""`list` and `stats`: what a worker answers itself."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import DurableObject, InvalidArgument, StorageError, UnknownMethod, durable
from perdure.ids import new_unique_id
from perdure_storage import keys
from worker.host_scene import key_of


class Room(DurableObject):
    value: int = durable(0)

    async def set(self, value: int) -> None:
        self.value = value

    async def forget(self) -> None:
        await self.storage.delete_all()

    async def get(self) -> int:
        return self.value


class Other(Room):
    pass


NAMES = ["a", "a/1", "a/2", "ä", "b\0", "z" * 512]


def fill(make_scene: Any) -> Any:
    scene = make_scene(Room, Other)
    for name in NAMES:
        scene.call(Room, name, "set", 1)
    scene.call(Other, "other", "set", 1)
    return scene


def names(rows: list[Any]) -> list[Any]:
    return [name for _, _, name in rows]


def test_list_gives_the_stored_objects_of_a_namespace_unique_ones_first_then_by_name(make_scene: Any) -> None:
    scene = fill(make_scene)
    unique = new_unique_id("Room")
    scene.call(Room, unique, "set", 1)
    scene.call(Room, "only read", "get")
    rows = scene.call_worker("list", ["Room", "", 100, b""])
    assert names(rows) == [None, *sorted(NAMES, key=str.encode)]
    assert [key for _, key, _ in rows] == [unique.key] + [
        key_of(Room, name) for name in sorted(NAMES, key=str.encode)
    ]


def test_list_by_prefix_and_page_by_page_gives_each_name_once(make_scene: Any) -> None:
    scene = fill(make_scene)
    assert names(scene.call_worker("list", ["Room", "a/", 100, b""])) == ["a/1", "a/2"]
    assert names(scene.call_worker("list", ["Room", "nothing", 100, b""])) == []
    found: list[Any] = []
    after = b""
    while rows := scene.call_worker("list", ["Room", "a", 2, after]):
        found += names(rows)
        after = rows[-1][0]
    assert found == ["a", "a/1", "a/2"]


def test_an_object_that_was_emptied_or_is_not_in_memory_is_listed_as_it_is_stored(make_scene: Any) -> None:
    scene = fill(make_scene)
    scene.call(Room, "a", "forget")
    scene.call(Other, "other", "forget")
    restarted = make_scene(Room, Other, disk=scene.disk)
    assert "a" not in names(restarted.call_worker("list", ["Room", "", 100, b""]))
    assert names(restarted.call_worker("list", ["Other", "", 100, b""])) == []
    assert not restarted.host.live


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["Room"],
        ["Room", "", 0, b""],
        ["Room", "", 10_001, b""],
        ["Room", "", "10", b""],
        ["Room", "", None, b""],
        ["Room", 5, 10, b""],
        ["Room", "", 10, "text"],
        [5, "", 10, b""],
        ["x" * 300, "", 10, b""],
        ["Room", "", 10, b"", "more"],
    ],
)
def test_a_list_call_with_wrong_arguments_is_refused(make_scene: Any, args: list[Any]) -> None:
    with pytest.raises(InvalidArgument):
        make_scene(Room).call_worker("list", args)


@pytest.mark.parametrize("method", ["nothing", "__init__", "", 5, None])
def test_a_worker_answers_only_its_own_methods(make_scene: Any, method: Any) -> None:
    with pytest.raises(UnknownMethod, match="list, stats"):
        make_scene(Room).call_worker(method, [])


def test_a_damaged_listing_is_an_error_and_not_an_empty_answer(make_scene: Any) -> None:
    scene = fill(make_scene)
    row = keys.names_key("Room", "a", key_of(Room, "a"))
    record = scene.disk.get(row)
    scene.disk.apply([(row, record[:-1] + bytes([record[-1] ^ 1]))])
    with pytest.raises(StorageError):
        scene.call_worker("list", ["Room", "", 100, b""])


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
