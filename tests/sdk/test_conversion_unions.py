"""Which member of a union a value becomes."""

import dataclasses
import datetime as dt
import enum
from typing import Any, Optional, TypedDict, Union

import pytest

from perdure.conversion import ConversionError, compile_converter


class Color(enum.StrEnum):
    RED = "red"


@dataclasses.dataclass
class Circle:
    radius: float
    filled: bool = False


@dataclasses.dataclass
class Wheel:
    radius: float


@dataclasses.dataclass
class Square:
    side: float


class Named(TypedDict):
    name: Color


SHAPES = Circle | Wheel | Square


@pytest.mark.parametrize(
    ("annotation", "wire", "loaded"),
    [
        (int | None, None, None),
        (int | None, 3, 3),
        (Optional[Color], "red", Color.RED),  # noqa: UP045
        (Union[int, str], "a", "a"),  # noqa: UP007
        (int | float, 3, 3),
        (float | int, 3, 3),
        (float | str, 3, 3.0),
        (float | None, 3, 3.0),
        (bool | int, 1, 1),
        (int | bool, True, True),
        (list[float] | list[int], [1, 2], [1, 2]),
        (list[int] | list[str], ["a"], ["a"]),
        (list[int] | tuple[int, ...], (1,), (1,)),
        (Color | str, "red", Color.RED),
        (Color | str, "blue", "blue"),
        (str | Color, "red", "red"),
        (Color | Named, {"name": "red"}, {"name": Color.RED}),
        (dt.date | dt.datetime, dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1)),
        (SHAPES, {"radius": 1.5, "filled": True}, Circle(1.5, True)),
        (SHAPES, {"radius": 1.5}, Wheel(1.5)),
        (SHAPES, {"radius": 2}, Wheel(2.0)),
        (Circle | Square, {"radius": 1.5}, Circle(1.5)),
        (SHAPES | None, {"side": 1}, Square(1.0)),
        (list[SHAPES], [{"side": 1.5}], [Square(1.5)]),
        (dict[str, int] | list[Circle], [{"radius": 1.0}], [Circle(1.0)]),
        (Union[int, Any], "a", "a"),  # noqa: UP007
    ],
)
def test_the_first_member_that_fits_exactly_wins(annotation, wire, loaded):
    result = compile_converter(annotation).load(wire)
    assert (result, type(result)) == (loaded, type(loaded))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (SHAPES, Circle(1.5)),
        (SHAPES, Wheel(1.5)),
        (SHAPES | None, None),
        (Color | int | None, Color.RED),
        (list[Color | Square], [Color.RED, Square(1.5)]),
        (dict[str, Circle | float], {"a": Circle(1.5), "b": 1.0}),
        (set[int] | frozenset[int], frozenset({1})),
        (int | float | str | bytes | bool | None, True),
    ],
)
def test_values_of_all_members_survive_the_round_trip(annotation, value):
    converter = compile_converter(annotation)
    loaded = converter.load(converter.dump(value))
    assert (loaded, type(loaded)) == (value, type(value))


def test_an_enum_is_dumped_by_its_value_whatever_its_place_in_the_union():
    for annotation in (Color | str, str | Color, int | Color | None):
        dumped = compile_converter(annotation).dump(Color.RED)
        assert (dumped, type(dumped)) == ("red", str)


@pytest.mark.parametrize(
    ("annotation", "wrong", "message"),
    [
        (int | None, "x", "value must be int | None, not str ('x')"),
        (int | str, 1.5, "value must be int | str, not float (1.5)"),
        (int | str, True, "value must be int | str, not bool (True)"),
        (Square | None, {"side": "x"}, "value.side must be float, not str ('x')"),
        (Square | None, {}, "value must be Square | None, not dict without the field 'side'"),
        (SHAPES, {"radius": "x"}, "value must be Circle | Wheel | Square, not dict"),
        (SHAPES | None, {}, "value must be Circle | Wheel | Square | None, not dict"),
        (list[int] | None, [1, "x"], "value[1] must be int, not str ('x')"),
    ],
)
def test_what_fits_no_member_is_refused_both_ways(annotation, wrong, message):
    converter = compile_converter(annotation)
    with pytest.raises(ConversionError) as caught:
        converter.load(wrong)
    assert str(caught.value) == message
    with pytest.raises(ConversionError):
        converter.dump(wrong)
