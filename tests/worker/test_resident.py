"""A live object's durable fields: loaded, compared, saved, put back; and how classes may change."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from perdure import DurableObject, StorageError, codec, durable
from perdure_storage import keys, records
from perdure_storage.memory import MemoryDisk
from worker.host_scene import SLOTS, Scene, key_of


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass
class Point:
    x: int
    y: int


class Everything(DurableObject):
    number: int = durable(0)
    real: float = durable(0.0)
    text: str = durable("")
    flag: bool = durable(default=False)
    data: bytes = durable(b"")
    price: Decimal = durable(Decimal("1.0"))
    day: date = durable(date(2024, 1, 1))
    size: Size = durable(Size.SMALL)
    pair: tuple[int, str] = durable((1, "a"))
    maybe: int | None = durable(None)
    names: list[str] = durable(default_factory=list)
    table: dict[str, list[int]] = durable(default_factory=dict)
    seen: set[int] = durable(default_factory=set)
    point: Point = durable(default_factory=lambda: Point(0, 0))

    async def set(self, name: str, how: str) -> None:
        value = CHANGES[name]
        if how == "in place":
            value(self)
        else:
            setattr(self, name, value)

    async def fail(self, name: str, how: str) -> None:
        await self.set(name, how)
        raise ValueError("undo")

    async def show(self) -> str:
        return repr({name: value for name, value in sorted(vars(self).items()) if name[0] != "_"})

    async def types(self) -> list[str]:
        return [type(self.size).__name__, type(self.point).__name__, type(self.seen).__name__]


CHANGES: dict[str, Any] = {
    "number": 2**70,
    "real": -0.0,
    "text": "ä",
    "flag": True,
    "data": b"\0",
    "price": Decimal("1.00"),
    "day": date(2025, 1, 1),
    "size": Size.LARGE,
    "pair": (2, "b"),
    "maybe": 5,
    "names": lambda it: it.names.append("x"),
    "table": lambda it: it.table.setdefault("k", []).append(1),
    "seen": lambda it: it.seen.add(3),
    "point": lambda it: setattr(it.point, "x", 9),
}


def how(name: str) -> str:
    return "in place" if callable(CHANGES[name]) else "anew"


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_field_of_any_type_is_saved_alone_and_loaded_again(make_scene: Any, name: str) -> None:
    scene: Scene = make_scene(Everything)
    scene.call(Everything, "a", "set", name, how(name))
    assert list(scene.fields(Everything, "a")) == [name]
    shown = scene.call(Everything, "a", "show")
    restarted: Scene = make_scene(Everything, disk=scene.disk)
    assert restarted.call(Everything, "a", "show") == shown
    assert restarted.call(Everything, "b", "show") != shown
    before = restarted.committer.durable
    restarted.call(Everything, "a", "set", "number", "anew")
    restarted.call(Everything, "a", "set", "number", "anew")
    assert restarted.committer.durable - before == (0 if name == "number" else 1)


@pytest.mark.parametrize("name", CHANGES)
def test_a_turn_that_raises_puts_back_a_field_of_any_type(make_scene: Any, name: str) -> None:
    scene: Scene = make_scene(Everything)
    untouched = scene.call(Everything, "a", "show")
    assert scene.start(Everything, "a", "fail", name, how(name)).error() is not None
    assert scene.call(Everything, "a", "show") == untouched
    scene.call(Everything, "a", "set", name, how(name))
    changed = scene.call(Everything, "a", "show")
    for other in CHANGES:
        assert scene.start(Everything, "a", "fail", other, how(other)).error() is not None
    assert scene.call(Everything, "a", "show") == changed


def test_fields_have_the_annotated_types_after_a_restart(make_scene: Any) -> None:
    scene: Scene = make_scene(Everything)
    for name in CHANGES:
        scene.call(Everything, "a", "set", name, how(name))
    restarted: Scene = make_scene(Everything, disk=scene.disk)
    assert restarted.call(Everything, "a", "types") == ["Size", "Point", "set"]


def test_each_instance_has_a_default_of_its_own(make_scene: Any) -> None:
    scene: Scene = make_scene(Everything)
    for name in "ab":
        scene.call(Everything, name, "set", "names", "in place")
    assert scene.fields(Everything, "a") == scene.fields(Everything, "b") == {"names": ["x"]}


# --- classes change


class Old(DurableObject, namespace="Changing"):
    kept: int = durable(1)
    lost: str = durable("")

    async def write(self) -> None:
        self.kept, self.lost = 5, "still there"


class New(DurableObject, namespace="Changing"):
    kept: int = durable(1)
    gained: list[int] = durable(default_factory=lambda: [7])

    async def show(self) -> tuple[int, list[int]]:
        return self.kept, self.gained

    async def write(self) -> None:
        self.kept += 1


class Other(DurableObject, namespace="Changing"):
    kept: str = durable("")

    async def show(self) -> str:
        return self.kept


def test_a_class_that_gains_a_field_loads_old_objects_with_its_default(make_scene: Any) -> None:
    disk = make_scene_with_old_data(make_scene)
    scene: Scene = make_scene(New, disk=disk)
    assert scene.call(New, "a", "show") == (5, [7])
    assert "gained" not in scene.fields(New, "a")


def test_a_class_that_loses_a_field_keeps_the_stored_value_and_says_so_once(
    make_scene: Any, caplog: pytest.LogCaptureFixture
) -> None:
    disk = make_scene_with_old_data(make_scene)
    scene: Scene = make_scene(New, disk=disk)
    for name in "ab":
        scene.call(New, name, "write")
    assert scene.fields(New, "a") == {"kept": 6, "lost": "still there"}
    told = [(vars(record)["namespace"], vars(record)["field"]) for record in caplog.records]
    assert told == [("Changing", "lost")]
    back: Scene = make_scene(Old, disk=scene.disk)
    back.call(Old, "b", "write")
    assert back.resident(Old, "b").instance.lost == "still there"


def test_a_stored_value_that_does_not_fit_the_class_is_an_error_and_stays_as_it_is(make_scene: Any) -> None:
    disk = make_scene_with_old_data(make_scene)
    scene: Scene = make_scene(Other, disk=disk)
    error = scene.start(Other, "a", "show").error()
    assert type(error) is StorageError
    assert "Other.kept" in str(error)
    assert scene.fields(Other, "a")["kept"] == 5


@pytest.mark.parametrize("record_format", [0, 2, 200])
def test_a_record_of_another_format_is_refused_for_that_object(make_scene: Any, record_format: int) -> None:
    disk = make_scene_with_old_data(make_scene)
    prefix = keys.object_prefix(
        int.from_bytes(key_of(Old, "a")[:4], "big") % SLOTS, "Changing", key_of(Old, "a")
    )
    row = prefix + keys.FIELD + b"kept"
    record = records.seal(row, codec.encode(5))
    disk.apply([(row, bytes([record_format]) + record[1:])])
    scene: Scene = make_scene(New, disk=disk)
    error = scene.start(New, "a", "show").error()
    assert type(error) is StorageError
    assert ("newer version" in str(error)) == (record_format > 0)
    assert scene.call(New, "b", "show") == (5, [7])


def make_scene_with_old_data(make_scene: Any) -> MemoryDisk:
    scene: Scene = make_scene(Old)
    for name in "ab":
        scene.call(Old, name, "write")
    return scene.disk.copy()


# --- what objects cannot see of each other


def test_objects_and_namespaces_never_see_each_others_rows(make_scene: Any) -> None:
    scene: Scene = make_scene(Everything, New)
    for cls, name in ((Everything, "a"), (Everything, "a\0"), (New, "a")):
        scene.call(cls, name, *(("set", "text", "anew") if cls is Everything else ("write",)))
    assert scene.fields(Everything, "a") == scene.fields(Everything, "a\0") == {"text": "ä"}
    assert scene.fields(New, "a") == {"kept": 2}
    assert scene.fields(Everything, "b") == {}
