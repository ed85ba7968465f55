"""What the worker knows of classes: only what they declare, and refusals that name the class."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from perdure import DurableObject, durable, public
from perdure.methods import interleaved
from perdure_worker.registry import register


class Plain(DurableObject):
    value: int = durable(0)
    text: str = durable("")

    async def get(self) -> int:
        return self.value

    def _helper(self) -> None:
        pass


class Starting(Plain):
    log: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.log = ("init",)

    def on_start(self) -> None:
        self.log += ("on_start",)


class OnlyStarting(Plain):
    def on_start(self) -> None:
        self.started = True


class Mixin:
    @public
    def extra(self) -> None:
        pass


class Mixed(Mixin, Plain, namespace="mixed.up"):
    pass


class Twin(DurableObject, namespace="Plain"):
    pass


class Interleaving(DurableObject):
    @interleaved
    async def beside(self) -> None:
        pass


class Migrating(DurableObject):
    version = 3

    def on_migrate(self, old_version: int) -> None:
        pass


class Streaming(DurableObject):
    async def stream(self) -> AsyncIterator[int]:
        yield 1


def test_classes_are_found_under_their_namespaces_with_their_methods_and_fields() -> None:
    table = register([Plain, Mixed])
    assert list(table) == ["Plain", "mixed.up"]
    assert list(table["Plain"].methods) == ["get"]
    assert sorted(table["mixed.up"].methods) == ["extra", "get"]
    assert [field.name for field in table["mixed.up"].fields] == ["value", "text"]
    assert table["Plain"].field_rows == (b"\x01value", b"\x01text")


def test_a_class_without_a_start_of_its_own_has_none_to_run() -> None:
    assert register([Plain])["Plain"].begin is None
    only = OnlyStarting.__new__(OnlyStarting)
    begin = register([OnlyStarting])["OnlyStarting"].begin
    assert begin is not None
    begin(only)
    assert only.started


def test_the_constructor_runs_before_on_start() -> None:
    begin = register([Starting])["Starting"].begin
    instance = Starting.__new__(Starting)
    assert begin is not None
    begin(instance)
    assert instance.log == ("init", "on_start")


def test_the_same_class_twice_is_one_class() -> None:
    assert list(register([Plain, Plain])) == ["Plain"]


def test_two_classes_of_one_namespace_are_refused_by_their_names() -> None:
    with pytest.raises(TypeError, match=r"Plain.*Twin|Twin.*Plain"):
        register([Plain, Twin])


def test_a_streaming_method_is_known_as_one() -> None:
    method = register([Streaming])["Streaming"].methods["stream"]
    assert method.is_generator
    assert not method.plain


def test_an_interleaved_method_is_known_as_one() -> None:
    assert register([Interleaving])["Interleaving"].methods["beside"].interleaved


def test_a_class_has_version_1_unless_it_says_otherwise() -> None:
    assert register([Plain])["Plain"].version == 1
    assert register([Migrating])["Migrating"].version == 3


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.0, None])
def test_a_version_that_is_no_int_of_1_or_higher_is_refused_by_its_class(version: object) -> None:
    cls = type("Odd", (DurableObject,), {"version": version, "__annotations__": {"version": int}})
    with pytest.raises(TypeError, match=r"Odd\.version is the version of what its objects store"):
        register([cls])


class WithVersionMethod(DurableObject):
    async def version(self) -> str:
        return "mine"


class WithVersionField(DurableObject):
    version: int = durable(0)


class WithVersionProperty(DurableObject):
    @property
    def version(self) -> str:
        return "mine"


def test_a_method_or_a_durable_field_named_version_is_the_users_own() -> None:
    table = register([WithVersionMethod, WithVersionField, WithVersionProperty])
    assert {entry.version for entry in table.values()} == {1}
    assert list(table["WithVersionMethod"].methods) == ["version"]
    assert [field.name for field in table["WithVersionField"].fields] == ["version"]


def test_on_migrate_is_a_handler_and_nobody_can_call_it() -> None:
    entry = register([Migrating])["Migrating"]
    assert "on_migrate" not in entry.methods
    assert entry.migrate is not None
    assert register([Plain])["Plain"].migrate is None
