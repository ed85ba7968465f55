"""Compiling annotations: what they stand for, aliases, variables, recursion, and round trips at random."""

import dataclasses
import datetime as dt
import enum
import typing
from decimal import Decimal
from typing import Annotated, Any, Final, LiteralString, NamedTuple, NewType, Optional, TypedDict, TypeVar
from uuid import UUID

import pytest
import typing_extensions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure import codec
from perdure.conversion import Compiler, ConversionError, compile_converter

T = TypeVar("T")
Bound = TypeVar("Bound", bound=int)
Constrained = TypeVar("Constrained", int, str)
UserId = NewType("UserId", int)
Alias = list[UserId]
Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None
Tree = typing_extensions.TypeAliasType("Tree", "list[Tree] | int")
Pair = typing_extensions.TypeAliasType("Pair", tuple[T, T], type_params=(T,))


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Node:
    value: int
    next: Optional["Node"] = None
    children: "dict[str, Node]" = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Left:
    right: "Right | None" = None


@dataclasses.dataclass
class Right:
    left: Left | None = None


class Folder(TypedDict):
    name: str
    folders: "list[Folder]"


class Span(NamedTuple):
    start: dt.datetime
    inner: "Span | None" = None


@pytest.mark.parametrize(
    ("annotation", "good", "wrong"),
    [
        (UserId, 1, "x"),
        (Alias, [1], ["x"]),
        (Annotated[int, "meta"], 1, "x"),
        (Annotated[int, ["unhashable"]], 1, "x"),
        (list[Annotated[int, ["unhashable"]]], [1], ["x"]),
        (Final[int], 1, "x"),
        (LiteralString, "x", 1),
        ("int", 1, "x"),
        (list["int"], [1], ["x"]),
        (typing.Dict[str, int], {"a": 1}, {"a": "x"}),  # noqa: UP006
        (Bound, 1, "x"),
        (Constrained, "x", 1.5),
        (Tree, [1, [2, []]], ["x"]),
        (Pair[int], (1, 2), (1, "x")),
        (list[Pair[str]], [("a", "b")], [("a", 1)]),
    ],
)
def test_an_annotation_is_taken_for_what_it_stands_for(annotation, good, wrong):
    converter = compile_converter(annotation)
    assert converter.load(converter.dump(good)) == good
    with pytest.raises(ConversionError):
        converter.load(wrong)


def test_a_free_type_variable_takes_anything():
    assert compile_converter(T).identity
    assert compile_converter(list[T]).exact is list


def test_a_new_type_is_as_fast_as_the_type_behind_it():
    assert compile_converter(UserId).exact is int


def test_classes_may_contain_themselves_and_each_other():
    node = Node(1, Node(2), {"a": Node(3, Node(4))})
    converter = compile_converter(Node)
    assert converter.load(converter.dump(node)) == node
    with pytest.raises(ConversionError, match=r"value\.next\.next\.value must be int"):
        converter.load({"value": 1, "next": {"value": 2, "next": {"value": "x"}}})
    pair = Left(Right(Left()))
    assert compile_converter(Left).load(compile_converter(Left).dump(pair)) == pair
    span = Span(dt.datetime(2026, 1, 1), Span(dt.datetime(2026, 1, 2)))
    assert compile_converter(Span).load(compile_converter(Span).dump(span)) == span
    folder = {"name": "a", "folders": [{"name": "b", "folders": []}]}
    assert compile_converter(Folder).load(folder) == folder
    with pytest.raises(ConversionError, match=r"folders\[0\]\.name"):
        compile_converter(Folder).load({"name": "a", "folders": [{"name": 1, "folders": []}]})


def test_an_alias_may_contain_itself():
    converter = compile_converter(Json, globalns=globals())
    value = {"a": [1, None, {"b": ["c", 1.5, True]}]}
    assert converter.load(value) == value
    with pytest.raises(ConversionError):
        converter.load({"a": [1, {"b": b"bytes"}]})


def test_an_annotation_that_cannot_be_resolved_is_an_error_at_once():
    with pytest.raises(TypeError, match="Nowhere"):
        compile_converter("Nowhere")
    with pytest.raises(TypeError, match="Nowhere"):
        compile_converter(list["Nowhere"])  # noqa: F821


def test_names_are_resolved_in_the_given_namespaces():
    assert compile_converter("Alias", globalns={"Alias": int}).exact is int
    assert compile_converter("Alias", globalns={"Alias": int}, localns={"Alias": str}).exact is str


def test_a_compiler_compiles_a_class_once():
    compiler = Compiler()
    assert compiler.compile(Node) is compiler.compile(Node)


def test_an_unknown_class_inside_of_others_is_found_when_asked():
    unknown = dict[str, list[threading_lock_type()]]
    with pytest.raises(TypeError, match="lock"):
        compile_converter(unknown, reject_unknown=True)
    converter = compile_converter(unknown)
    assert converter.load({"a": []}) == {"a": []}
    with pytest.raises(ConversionError, match=r"value\['a'\]\[0\]"):
        converter.load({"a": [1]})


def threading_lock_type() -> Any:
    import threading

    return type(threading.Lock())


# --- annotations and fitting values at random, through the codec

SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (float, st.floats(allow_nan=False)),
    (str, st.text(max_size=5)),
    (bytes, st.binary(max_size=5)),
    (bool, st.booleans()),
    (None, st.none()),
    (dt.datetime, st.datetimes(timezones=st.just(dt.UTC))),
    (dt.date, st.dates()),
    (Decimal, st.decimals(allow_nan=False)),
    (UUID, st.uuids()),
    (Color, st.sampled_from(Color)),
    (Color | int, st.sampled_from(Color) | st.integers()),
]


def extended(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda t: (list[t[0]], st.lists(t[1], max_size=3))),
        inner.map(lambda t: (dict[str, t[0]], st.dictionaries(st.text(max_size=3), t[1], max_size=3))),
        inner.map(lambda t: (dict[int, t[0]], st.dictionaries(st.integers(), t[1], max_size=3))),
        inner.map(lambda t: (Optional[t[0]], st.none() | t[1])),  # noqa: UP045
        inner.map(lambda t: (tuple[t[0], ...], st.lists(t[1], max_size=3).map(tuple))),
        st.tuples(inner, inner).map(lambda p: (tuple[p[0][0], p[1][0]], st.tuples(p[0][1], p[1][1]))),
        inner.map(
            lambda t: (Pair[t[0]], st.tuples(t[1], t[1]))  # type: ignore[valid-type]
        ),
    )


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(st.sampled_from(SCALARS), extended, max_leaves=4), st.data())
def test_values_survive_the_way_through_the_codec_whatever_their_annotation(typed, data):
    annotation, values = typed
    value = data.draw(values)
    converter = compile_converter(annotation)
    wire = codec.decode(codec.encode(converter.dump(value)))
    loaded = converter.load(wire)
    assert loaded == value
    assert type(loaded) is type(value)
    if type(value) is converter.exact or converter.identity:
        assert converter.dump(value) is value
        assert converter.load(value) is value
