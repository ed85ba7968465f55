"""Annotations that are text (this module's all are) become types, and errors say which cannot."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from perdure.hints import class_hint, class_hints, function_hints, function_namespace, resolve

if TYPE_CHECKING:
    from nowhere import Absent


class Outer:
    class Inner:
        pass

    inner: Inner
    me: Outer | None
    count: ClassVar[int] = 0
    bad: Absent

    def list(self) -> list[int]:
        return []

    def method(self, inner: Inner, *, other: Outer) -> dict[str, int]:
        return {}

    def unresolvable(self, absent: Absent) -> None: ...


class Other:
    def method(self, outer: Outer) -> Outer:
        return outer


class Derived(Outer):
    inner: int  # type: ignore[assignment]


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def test_text_is_resolved_in_the_module_and_in_nested_classes():
    assert function_hints(Outer.method, Outer, "Outer.method()") == {
        "inner": Outer.Inner,
        "other": Outer,
        "return": dict[str, int],
    }


def test_a_method_named_like_a_type_does_not_hide_it():
    assert function_hints(Outer.list, Outer, "Outer.list()") == {"return": list[int]}


def test_text_is_resolved_in_the_module_of_the_function():
    assert function_hints(Other.method, Other, "") == {"outer": Outer, "return": Outer}
    assert function_namespace(Other.method) is globals()
    assert function_namespace(functools.wraps(Other.method)(lambda self: None)) is globals()
    assert function_namespace(logged(functools.cache)) is vars(functools)


def test_a_decorated_function_is_resolved_where_it_was_written():
    assert function_hints(logged(Outer.method), Outer, "")["other"] is Outer


def test_attributes_are_resolved_from_the_most_derived_annotation():
    assert class_hints(Derived, ["inner", "me", "count"]) == {
        "inner": int,
        "me": Outer | None,
        "count": ClassVar[int],
    }
    assert class_hint(Derived, "me") is Any


def test_a_name_that_exists_only_for_type_checkers_is_an_error_naming_the_place():
    with pytest.raises(TypeError, match=r"Outer\.bad: .*Absent.*not defined.*TYPE_CHECKING"):
        class_hint(Outer, "bad")
    with pytest.raises(TypeError, match=r"Outer\.unresolvable\(\): argument 'absent': .*Absent"):
        function_hints(Outer.unresolvable, Outer, "Outer.unresolvable()")


def test_text_that_is_no_type_at_all_is_an_error():
    with pytest.raises(TypeError, match="cannot be resolved"):
        resolve("not python", globalns={}, localns={})


def test_text_inside_of_types_is_resolved():
    assert resolve(list["int"], globalns={}, localns={}) == list[int]
