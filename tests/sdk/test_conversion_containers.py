"""Lists, tuples, sets, dicts and abstract collections, each element converted and checked."""

import collections.abc as abc
import dataclasses
import enum
import typing
from typing import Any, Literal, NamedTuple

import pytest

from perdure.conversion import ConversionError, compile_converter


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.Enum):
    LOW = 1


@dataclasses.dataclass(frozen=True)
class Point:
    x: int


class Cell(NamedTuple):
    row: int
    column: int


@dataclasses.dataclass
class Unhashable:
    x: int


@pytest.mark.parametrize(
    ("annotation", "value", "wire"),
    [
        (list, [1, "a"], [1, "a"]),
        (dict, {"a": 1}, {"a": 1}),
        (list[int], [1, 2], [1, 2]),
        (list[float], [1.5, 2.0], [1.5, 2.0]),
        (list[Color], [Color.RED], ["red"]),
        (typing.List[Color], [Color.RED], ["red"]),  # noqa: UP006
        (list[list[Color]], [[Color.RED], []], [["red"], []]),
        (tuple, (1, "a"), (1, "a")),
        (tuple[()], (), ()),
        (tuple[int, Color], (1, Color.RED), (1, "red")),
        (tuple[int, str], (1, "a"), (1, "a")),
        (tuple[Color, ...], (Color.RED, Color.BLUE), ("red", "blue")),
        (set, {1}, {1}),
        (set[int], {1, 2}, {1, 2}),
        (set[Color], {Color.RED}, {"red"}),
        (set[Point], {Point(1)}, [{"x": 1}]),
        (frozenset[tuple[Point, int]], frozenset({(Point(1), 2)}), [({"x": 1}, 2)]),
        (frozenset[Color], frozenset({Color.RED}), frozenset({"red"})),
        (set[frozenset[int]], {frozenset({1})}, {frozenset({1})}),
        (set[Cell], {Cell(1, 2)}, {(1, 2)}),
        (set[tuple], {(1, "a")}, {(1, "a")}),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (dict[str, Color], {"a": Color.RED}, {"a": "red"}),
        (dict[Color, int], {Color.RED: 1}, {"red": 1}),
        (dict[Any, int], {"a": 1}, {"a": 1}),
        (dict[Color | Literal["x"], int], {Color.RED: 1, "x": 2}, {"red": 1, "x": 2}),
        (dict[Color | int, int], {Color.RED: 1, 5: 2}, [["red", 1], [5, 2]]),
        (dict[int, str], {1: "a", 2: "b"}, [[1, "a"], [2, "b"]]),
        (dict[Level, Point], {Level.LOW: Point(1)}, [[1, {"x": 1}]]),
        (dict[Cell, str], {Cell(1, 2): "a"}, [[(1, 2), "a"]]),
        (dict[Point, str], {Point(1): "a"}, [[{"x": 1}, "a"]]),
        (abc.Mapping[str, Color], {"a": Color.RED}, {"a": "red"}),
        (abc.Sequence[Color], [Color.RED], ["red"]),
        (abc.Sequence[Color], (Color.RED,), ("red",)),
        (typing.Iterable[Color], {Color.RED}, {"red"}),
        (abc.Iterable[Color], frozenset({Color.RED}), frozenset({"red"})),
        (abc.Set[int], frozenset({1}), frozenset({1})),
        (abc.Collection, [object], [object]),
    ],
)
def test_a_container_survives_the_round_trip_as_itself(annotation, value, wire):
    converter = compile_converter(annotation)
    dumped = converter.dump(value)
    assert (dumped, type(dumped)) == (wire, type(wire))
    loaded = converter.load(dumped)
    assert (loaded, type(loaded)) == (value, type(value))


@pytest.mark.parametrize(
    ("annotation", "wrong"),
    [
        (list, (1,)),
        (list[int], (1,)),
        (list[int], "ab"),
        (tuple[int, ...], [1]),
        (tuple[int, str], [1, "a"]),
        (tuple[int, str], (1,)),
        (tuple[int, str], (1, "a", 2)),
        (set[int], [1]),
        (set[int], frozenset({1})),
        (frozenset[int], {1}),
        (set[Point], {1}),
        (dict[str, int], [["a", 1]]),
        (dict[str, int], {1: 1}),
        (dict[Any, int], {1: 1}),
        (dict[int, int], {"a": 1}),
        (dict[int, int], [[1, 2, 3]]),
        (dict[int, int], [(1, 2)]),
        (dict[Unhashable, int], [[{"x": 1}, 2]]),
        (set[Unhashable], [{"x": 1}]),
        (abc.Sequence[str], "ab"),
        (abc.Sequence[int], {1}),
        (abc.MutableSet[int], frozenset({1})),
    ],
)
def test_a_wrong_container_is_refused(annotation, wrong):
    with pytest.raises(ConversionError):
        compile_converter(annotation).load(wrong)


@pytest.mark.parametrize(
    ("annotation", "wrong", "message"),
    [
        (list[int], [1, "x"], r"value[1] must be int, not str ('x')"),
        (list[int], [1, True], r"value[1] must be int, not bool (True)"),
        (list[list[int]], [[1], [2, None]], r"value[1][1] must be int, not None"),
        (tuple[int, ...], (1, "x"), r"value[1] must be int, not str ('x')"),
        (tuple[int, str], (1, 2), r"value[1] must be str, not int (2)"),
        (set[int], {"x"}, r"value[*] must be int, not str ('x')"),
        (dict[str, int], {"a": "x"}, r"value['a'] must be int, not str ('x')"),
        (
            dict[Color, int],
            {"green": 1},
            r"value must be dict[Color, int], not dict with a key that is str ('green')",
        ),
        (dict[int, int], [[1, 1], [2, "x"]], r"value[1] must be int, not str ('x')"),
        (list[int], {}, r"value must be list[int], not dict"),
        (tuple[int, str], (1,), r"value must be tuple[int, str], not tuple of 1"),
    ],
)
def test_the_error_says_where_and_what(annotation, wrong, message):
    with pytest.raises(ConversionError) as caught:
        compile_converter(annotation).load(wrong)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("annotation", "wrong"),
    [
        (list[Color], ["red"]),
        (list[int], (1,)),
        (tuple[Color, ...], ("red",)),
        (tuple[Color, int], (Color.RED,)),
        (set[Color], {"red"}),
        (set[int], [1]),
        (set[Point], [Point(1)]),
        (dict[str, Color], {"a": "red"}),
        (dict[Color, int], {"red": 1}),
        (dict[int, int], {1: "x"}),
        (abc.Sequence[int], "12"),
        (abc.Iterable[int], iter([1])),
        (list, (1,)),
        (dict[str, int], [("a", 1)]),
    ],
)
def test_dumping_checks_as_well(annotation, wrong):
    with pytest.raises(ConversionError):
        compile_converter(annotation).dump(wrong)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (list[int], [1, 2]),
        (tuple[int, ...], (1, 2)),
        (tuple[int, str], (1, "a")),
        (set[int], {1}),
        (dict[str, int], {"a": 1}),
        (dict[str, Any], {"a": object()}),
        (list[Any], [object()]),
    ],
)
def test_a_container_that_needs_no_conversion_is_not_copied(annotation, value):
    converter = compile_converter(annotation)
    assert converter.load(value) is value
    assert converter.dump(value) is value


def test_subclasses_of_containers_are_dumped_as_plain_ones():
    class Stack(list):
        pass

    for annotation in (list, list[int], list[Any]):
        dumped = compile_converter(annotation).dump(Stack([1]))
        assert (dumped, type(dumped)) == ([1], list)
    assert type(compile_converter(tuple[int, ...]).dump(Cell(1, 2))) is tuple


@pytest.mark.parametrize("annotation", [list, list[Any], tuple, set, set[Any], frozenset, dict])
def test_containers_of_anything_have_an_exact_type(annotation):
    assert compile_converter(annotation).exact is (typing.get_origin(annotation) or annotation)


def test_ints_in_a_list_of_floats_become_floats():
    assert [type(item) for item in compile_converter(list[float]).load([1, 2.0])] == [float, float]


def test_an_annotation_with_an_unpacked_tuple_cannot_travel():
    with pytest.raises(TypeError):
        compile_converter(tuple[int, *tuple[str, ...]], reject_unknown=True)
