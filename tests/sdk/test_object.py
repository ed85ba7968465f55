"""What users derive from: namespaces, and an object's view of itself."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from perdure.errors import InvalidArgument
from perdure.ids import ObjectId, id_from_name
from perdure.limits import Limits
from perdure.methods import callable_methods
from perdure.object import DurableObject, namespace_of

CHARS_MAX = Limits().namespace_chars_max


class Counter(DurableObject):
    async def get(self) -> int:
        return 1


class Name(enum.StrEnum):
    COUNTER = "Counter"


class FakeCell:
    """What a worker's host hands in."""

    id = id_from_name("Counter", "a")
    storage = object()
    context = object()


# --- namespaces


def test_the_namespace_is_the_class_s_name_unless_the_class_says_otherwise() -> None:
    class Room(DurableObject, namespace="rooms"):
        pass

    class Suite(Room):
        pass

    assert namespace_of(Counter) == "Counter"
    assert namespace_of(Room) == "rooms"
    assert namespace_of(Suite) == "Suite", "a subclass has objects of its own"


@pytest.mark.parametrize("name", ["a", "A9", "_x", "rooms", "my-app.rooms_2", "x" * CHARS_MAX])
def test_a_namespace_may_be_named_without_its_class(name: str) -> None:
    assert namespace_of(name) == name
    assert type(name)(namespace_of(type("Any", (DurableObject,), {}, namespace=name))) == name


NO_NAMESPACES = ["", "9a", "-a", ".a", "a b", "a/b", "a\0", "a\n", "\u00e4", "\ud800", "x" * (CHARS_MAX + 1)]


@pytest.mark.parametrize("name", NO_NAMESPACES)
def test_what_cannot_name_a_namespace_is_a_clear_error(name: str) -> None:
    with pytest.raises(InvalidArgument, match="a namespace is 1 to 64 ASCII letters"):
        namespace_of(name)
    with pytest.raises(TypeError, match="Any: a namespace is 1 to 64 ASCII letters"):
        type("Any", (DurableObject,), {}, namespace=name)


def test_a_class_whose_name_is_no_namespace_has_to_name_one() -> None:
    with pytest.raises(TypeError, match="Z\u00e4hler: a namespace is"):
        type("Z\u00e4hler", (DurableObject,), {})
    named = type("Z\u00e4hler", (DurableObject,), {}, namespace="counters")
    assert namespace_of(named) == "counters"


def test_the_namespace_of_an_enum_member_is_its_plain_value() -> None:
    assert type(namespace_of(Name.COUNTER)) is str
    assert namespace_of(Name.COUNTER) == "Counter"


@pytest.mark.parametrize("thing", [None, 5, b"Counter", DurableObject, object, int, FakeCell()])
def test_what_is_no_class_of_objects_is_a_clear_error(thing: Any) -> None:
    with pytest.raises(TypeError, match="a DurableObject class or a namespace's name is needed"):
        namespace_of(thing)


# --- objects


def test_an_object_finds_its_id_storage_and_context_on_itself() -> None:
    counter = Counter()
    counter._perdure_cell = FakeCell()  # type: ignore[assignment]
    assert counter.id == ObjectId(FakeCell.id.key)
    assert counter.id.name == "a"
    assert counter.storage is FakeCell.storage
    assert counter.ctx is FakeCell.context


@pytest.mark.parametrize("name", ["id", "storage", "ctx"])
def test_an_object_made_by_hand_says_how_objects_are_reached(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"Counter was made by hand.*client\.get"):
        getattr(Counter(), name)


def test_the_base_class_reserves_only_what_it_says() -> None:
    public = {name for name in vars(DurableObject) if not name.startswith("_")}
    assert public == {"ctx", "id", "on_migrate", "on_start", "storage", "version"}
    assert callable_methods(Counter, DurableObject).keys() == {"get"}


def test_starting_does_nothing_unless_a_class_says_so() -> None:
    assert Counter().on_start() is None
