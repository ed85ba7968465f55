"""`list` of a worker: its pages of stored objects, what they tell of each, and their bounds."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import Alarm, DurableObject, InvalidArgument, Limits, StorageError, durable
from perdure.ids import new_unique_id
from perdure_storage import keys
from worker.host_scene import key_of


class Room(DurableObject):
    value: int = durable(0)

    async def set(self, value: int) -> None:
        self.value = value

    async def fill(self, rows: int, size: int) -> None:
        for number in range(rows):
            self.storage.put(f"{number:04}", bytes(size))

    async def remind(self, times: dict[str, float]) -> None:
        for name, seconds in times.items():
            self.storage.set_alarm(seconds, name)

    async def alarm(self, alarm: Alarm) -> None:
        raise ValueError("never well")

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
    return [row[2] for row in rows]


def listed(scene: Any, *args: Any) -> list[Any]:
    """The rows of an answer after which nothing follows."""
    more, rows, _ = scene.call_worker("list", [*args, *["", 100, b""][len(args) - 1 :]])
    assert more is False
    return rows


def all_pages(scene: Any, prefix: str, limit: int) -> list[list[Any]]:
    pages: list[list[Any]] = []
    more, after = True, b""
    while more:
        more, rows, _ = scene.call_worker("list", ["Room", prefix, limit, after])
        assert rows or not more
        pages.append(rows)
        after = rows[-1][0] if rows else b""
    return pages


def stored_bytes(scene: Any, name: str) -> int:
    """What the object's rows weigh on disk."""
    start = scene.host.classes["Room"].row_heads
    key = key_of(Room, name)
    prefix = start[int.from_bytes(key[:4], "big") % len(start)] + key
    return sum(len(k) + len(v) for k, v in scene.disk.between(prefix, keys.prefix_end(prefix)))


def test_list_gives_the_stored_objects_of_a_namespace_unique_ones_first_then_by_name(make_scene: Any) -> None:
    scene = fill(make_scene)
    unique = new_unique_id("Room")
    scene.call(Room, unique, "set", 1)
    scene.call(Room, "only read", "get")
    rows = listed(scene, "Room")
    assert names(rows) == [None, *sorted(NAMES, key=str.encode)]
    assert [row[1] for row in rows] == [unique.key] + [
        key_of(Room, name) for name in sorted(NAMES, key=str.encode)
    ]


def test_list_by_prefix_and_page_by_page_gives_each_name_once(make_scene: Any) -> None:
    scene = fill(make_scene)
    assert names(listed(scene, "Room", "a/")) == ["a/1", "a/2"]
    assert names(listed(scene, "Room", "nothing")) == []
    pages = [names(rows) for rows in all_pages(scene, "a", 2)]
    assert pages == [["a", "a/1"], ["a/2"]]


def test_an_object_that_was_emptied_or_is_not_in_memory_is_listed_as_it_is_stored(make_scene: Any) -> None:
    scene = fill(make_scene)
    scene.call(Room, "a", "forget")
    scene.call(Other, "other", "forget")
    restarted = make_scene(Room, Other, disk=scene.disk)
    assert "a" not in names(listed(restarted, "Room"))
    assert names(listed(restarted, "Other")) == []
    assert not restarted.host.live


def test_an_answer_says_whether_there_is_such_a_namespace(make_scene: Any) -> None:
    assert make_scene(Room).call_worker("list", ["Room", "", 10, b""]) == [False, [], True]
    disk = fill(make_scene).disk
    without_room = make_scene(Other, disk=disk)
    for prefix in ("a/", "nothing"):
        assert without_room.call_worker("list", ["Room", prefix, 10, b""])[2] is True, "it has stored objects"
    for namespace in ("Nope", "Roo", "Room2"):
        assert without_room.call_worker("list", [namespace, "", 10, b""]) == [False, [], False]


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


def test_an_answer_says_whether_objects_follow_also_when_it_is_exactly_full(make_scene: Any) -> None:
    scene = fill(make_scene)
    assert [len(rows) for rows in all_pages(scene, "", 3)] == [3, 3]
    assert [len(rows) for rows in all_pages(scene, "", 4)] == [4, 2]
    assert [len(rows) for rows in all_pages(scene, "nothing", 4)] == [0]


def test_an_object_is_listed_with_its_size_on_disk_and_whether_it_is_in_memory(make_scene: Any) -> None:
    scene = make_scene(Room)
    scene.call(Room, "large", "fill", 20, 100)
    scene.call(Room, "small", "set", 1)
    sizes = {row[2]: row[3] for row in listed(scene, "Room")}
    assert sizes == {name: stored_bytes(scene, name) for name in ("large", "small")}
    assert sizes["large"] > 20 * 100 > sizes["small"] > 0
    assert [row[4] for row in listed(scene, "Room")] == [True, True]
    scene.advance(100)
    scene.do(scene.host.evict_idle)
    scene.call(Room, "small", "get")
    assert {row[2]: row[4] for row in listed(scene, "Room")} == {"large": False, "small": True}
    assert [row[5] for row in listed(scene, "Room")] == [None, None]


@pytest.mark.parametrize("rows", [0, 100])
def test_an_object_is_listed_with_the_soonest_of_its_alarms(make_scene: Any, rows: int) -> None:
    scene = make_scene(Room)
    scene.call(Room, "a", "fill", rows, 10)
    far = 4_000_000_000.0
    scene.call(Room, "a", "remind", {"x": far + 2, "y": far + 0.25, **{f"z{n}": far + 9 for n in range(80)}})
    scene.call(Room, "none", "set", 1)
    assert {row[2]: row[5] for row in listed(scene, "Room")} == {"a": int(far * 1_000) + 250, "none": None}


def test_a_dead_alarm_is_no_next_one(make_scene: Any) -> None:
    scene = make_scene(Room, limits=Limits(alarm_retries_max=0))
    scene.call(Room, "a", "remind", {"x": 0.0})
    scene.advance(10)
    scene.commit()
    assert listed(scene, "Room")[0][5] is None


def test_what_is_not_durable_yet_is_not_listed_as_stored(make_scene: Any) -> None:
    scene = make_scene(Room)
    scene.call(Room, "a", "set", 1)
    before = listed(scene, "Room")
    scene.start(Room, "a", "fill", 1, 1_000)
    scene.start(Room, "b", "set", 1)
    assert listed(scene, "Room") == before
    scene.commit()
    assert names(listed(scene, "Room")) == ["a", "b"]


@pytest.mark.parametrize(("rows", "size"), [(1_000, 10), (3, 100_000)])
def test_a_large_object_is_sized_without_reading_it_whole(make_scene: Any, rows: int, size: int) -> None:
    scene = make_scene(Room)
    scene.call(Room, "large", "fill", rows, size)
    read: list[bytes] = []
    scan = scene.engine.scan

    def counted(start: bytes, stop: bytes, **options: Any) -> Any:
        rows = scan(start, stop, **options)
        return Counted(rows, read)

    scene.engine.scan = counted
    assert listed(scene, "Room")[0][3] == stored_bytes(scene, "large")
    assert len(read) <= 70
    assert len(b"".join(read)) < 64 * 1024 + size + 1_000


class Counted:
    """A scan that keeps the records it gave."""

    def __init__(self, rows: Any, read: list[bytes]) -> None:
        self._rows = rows
        self._read = read

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def __iter__(self) -> Any:
        for key, record in self._rows:
            self._read.append(record)
            yield key, record


@pytest.mark.parametrize("limits", [Limits(listing_rows_max=20), Limits(listing_bytes_max=5_000)])
def test_an_answer_ends_early_when_it_has_read_enough_and_the_next_one_goes_on(
    make_scene: Any, limits: Limits
) -> None:
    scene = make_scene(Room, limits=limits)
    for name in "abcdefgh":
        scene.call(Room, name, "fill", 7, 300)
    pages = [names(rows) for rows in all_pages(scene, "", 100)]
    assert [name for page in pages for name in page] == list("abcdefgh")
    assert {len(page) for page in pages} <= {2, 3}


def test_a_damaged_listing_is_an_error_and_not_an_empty_answer(make_scene: Any) -> None:
    scene = fill(make_scene)
    row = keys.names_key("Room", "a", key_of(Room, "a"))
    record = scene.disk.get(row)
    scene.disk.apply([(row, record[:-1] + bytes([record[-1] ^ 1]))])
    with pytest.raises(StorageError):
        listed(scene, "Room")
