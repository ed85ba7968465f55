"""Dataclasses, TypedDicts and named tuples: fields checked, defaults respected, nothing unknown let in."""

import collections
import dataclasses
import enum
from typing import Any, Final, Generic, NamedTuple, NotRequired, Required, TypedDict, TypeVar

import pytest
import typing_extensions

from perdure.conversion import ConversionError, compile_converter

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Address:
    city: str
    zip_code: int = 0


@dataclasses.dataclass
class Person:
    name: str
    address: Address
    color: Color = Color.RED
    friends: "list[Person]" = dataclasses.field(default_factory=list)
    greeting: str = dataclasses.field(init=False, default="")
    limit: Final[int] = 3

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a name is needed")
        self.greeting = f"hello {self.name}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    x: int


@dataclasses.dataclass
class Derived(Address):
    street: str = ""


@dataclasses.dataclass
class Box(Generic[T]):
    item: T
    inner: "Box[T] | None" = None


@dataclasses.dataclass
class NeedsInitVar:
    seed: dataclasses.InitVar[int]


@dataclasses.dataclass
class TakesInitVar:
    value: int = 0
    seed: dataclasses.InitVar[int] = 5

    def __post_init__(self, seed: int) -> None:
        self.value += seed


class Movie(TypedDict):
    title: str
    color: NotRequired[Color]


class Draft(Movie, total=False):
    year: int
    author: Required[str]


class Extended(typing_extensions.TypedDict):
    title: typing_extensions.ReadOnly[str]


class Cell(NamedTuple):
    row: int
    color: Color = Color.RED


class Triple(NamedTuple):
    a: int
    b: int
    c: int = 3


Untyped = collections.namedtuple("Untyped", ["a", "b"])


def test_a_dataclass_travels_as_a_dict_of_its_init_fields():
    converter = compile_converter(Person)
    person = Person("Ada", Address("London", 1), friends=[Person("Bob", Address("Paris"))])
    wire = converter.dump(person)
    assert wire == {
        "name": "Ada",
        "address": {"city": "London", "zip_code": 1},
        "color": "red",
        "friends": [
            {
                "name": "Bob",
                "address": {"city": "Paris", "zip_code": 0},
                "color": "red",
                "friends": [],
                "limit": 3,
            }
        ],
        "limit": 3,
    }
    assert converter.load(wire) == person


def test_defaults_fill_missing_fields():
    loaded = compile_converter(Person).load({"name": "Ada", "address": {"city": "London"}})
    assert loaded == Person("Ada", Address("London", 0))
    assert (
        loaded.friends is not compile_converter(Person).load({"name": "A", "address": {"city": "B"}}).friends
    )


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        ({"city": "x", "zip": 1}, "value must be Address, not dict with the unknown field 'zip'"),
        ({"zip_code": 1}, "value must be Address, not dict without the field 'city'"),
        ({"city": 1}, "value.city must be str, not int (1)"),
        ({"city": "x", "zip_code": "1"}, "value.zip_code must be int, not str ('1')"),
        ("London", "value must be Address, not str ('London')"),
        (None, "value must be Address, not None"),
        ({"city": "x", 5: 1}, "value must be Address, not dict with the unknown field 5"),
    ],
)
def test_what_does_not_fit_a_dataclass_is_refused_with_the_reason(wire, message):
    with pytest.raises(ConversionError) as caught:
        compile_converter(Address).load(wire)
    assert str(caught.value) == message


def test_an_error_deep_inside_names_its_path():
    wire = {"name": "a", "address": {"city": "b"}, "friends": [{"name": "c", "address": {"city": 1}}]}
    with pytest.raises(ConversionError) as caught:
        compile_converter(Person).load(wire)
    assert caught.value.path == ".friends[0].address.city"


def test_a_refusal_of_the_constructor_is_a_conversion_error():
    with pytest.raises(ConversionError, match=r"valid for Person, not values that raise ValueError.*a name"):
        compile_converter(Person).load({"name": "", "address": {"city": "b"}})


def test_frozen_slotted_and_keyword_only_dataclasses_travel():
    converter = compile_converter(Frozen)
    assert converter.load(converter.dump(Frozen(x=1))) == Frozen(x=1)


@pytest.mark.parametrize("wrong", [{"city": "x"}, Derived("x"), Address, None])
def test_only_instances_of_the_very_class_are_dumped(wrong):
    with pytest.raises(ConversionError, match="must be Address"):
        compile_converter(Address).dump(wrong)


def test_a_wrong_value_in_a_field_is_found_when_dumping():
    with pytest.raises(ConversionError, match=r"value\.address\.city must be str, not int \(1\)"):
        compile_converter(Person).dump(Person("a", Address(1)))
    unset = Address("x")
    del unset.city
    with pytest.raises(ConversionError, match="Address without city"):
        compile_converter(Address).dump(unset)


def test_a_generic_dataclass_is_checked_by_its_argument():
    assert compile_converter(Box[Color]).load({"item": "red", "inner": {"item": "red"}}) == Box(
        Color.RED, Box(Color.RED)
    )
    with pytest.raises(ConversionError, match=r"value\.inner\.item must be int"):
        compile_converter(Box[int]).load({"item": 1, "inner": {"item": "red"}})
    assert compile_converter(Box).load({"item": "anything"}) == Box("anything")


def test_generics_with_other_arguments_are_told_apart():
    converter = compile_converter(tuple[Box[int], Box[str], Box[int | str], Box[list[Color]]])
    value = (Box(1), Box("a"), Box("b"), Box([Color.RED]))
    assert converter.load(converter.dump(value)) == value
    with pytest.raises(ConversionError, match=r"value\[1\]\.item must be str"):
        converter.dump((Box(1), Box(1), Box("b"), Box([])))


def test_an_init_var_cannot_travel_unless_it_has_a_default():
    with pytest.raises(TypeError, match=r"NeedsInitVar\.seed: an InitVar without a default"):
        compile_converter(NeedsInitVar)
    assert compile_converter(TakesInitVar).load({"value": 1}) == TakesInitVar(1)


def test_a_typed_dict_travels_as_a_dict_with_converted_values():
    converter = compile_converter(Movie)
    for movie, wire in (
        ({"title": "a", "color": Color.RED}, {"title": "a", "color": "red"}),
        ({"title": "a"}, {"title": "a"}),
    ):
        assert converter.dump(movie) == wire
        assert converter.load(wire) == movie


@pytest.mark.parametrize(
    ("annotation", "wrong"),
    [
        (Movie, {}),
        (Movie, {"title": 1}),
        (Movie, {"title": "a", "year": 1}),
        (Movie, {"title": "a", "color": None}),
        (Movie, ["title"]),
        (Draft, {"title": "a"}),
        (Draft, {"title": "a", "author": "b", "year": "c"}),
        (Extended, {"title": 1}),
    ],
)
def test_what_does_not_fit_a_typed_dict_is_refused_both_ways(annotation, wrong):
    converter = compile_converter(annotation)
    with pytest.raises(ConversionError):
        converter.load(wrong)
    with pytest.raises(ConversionError):
        converter.dump(wrong)


@pytest.mark.parametrize(
    ("annotation", "wrong", "message"),
    [
        (Movie, {"title": 1}, "value.title must be str, not int (1)"),
        (Movie, {}, "value must be Movie, not dict without the field 'title'"),
        (Movie, {"title": "a", "x": 1}, "value must be Movie, not dict with the unknown field 'x'"),
        (Triple, Triple(1, "b"), "value.b must be int, not str ('b')"),
    ],
)
def test_the_error_names_the_field_when_dumping(annotation, wrong, message):
    with pytest.raises(ConversionError) as caught:
        compile_converter(annotation).dump(wrong)
    assert str(caught.value) == message


def test_keys_of_a_typed_dict_are_required_as_it_says():
    assert compile_converter(Draft).load({"title": "a", "author": "b"}) == {"title": "a", "author": "b"}


def test_a_named_tuple_travels_as_a_tuple():
    converter = compile_converter(Cell)
    assert converter.dump(Cell(1)) == (1, "red")
    assert type(converter.dump(Cell(1))) is tuple
    for wire in ((1, "red"), [1, "red"], (1,)):
        loaded = converter.load(wire)
        assert (loaded, type(loaded)) == (Cell(1, Color.RED), Cell)
    assert compile_converter(Untyped).load((1, "x")) == Untyped(1, "x")


def test_only_fields_with_a_default_may_be_missing_from_a_named_tuple():
    assert compile_converter(Triple).load((1, 2)) == Triple(1, 2, 3)
    with pytest.raises(ConversionError, match=r"Triple \(3 fields\), not tuple of 1"):
        compile_converter(Triple).load((1,))


@pytest.mark.parametrize("wrong", [(), (1, "red", 2), ("x", "red"), (1, "green"), {"row": 1}, "ab", None, 5])
def test_what_does_not_fit_a_named_tuple_is_refused(wrong):
    with pytest.raises(ConversionError):
        compile_converter(Cell).load(wrong)


@pytest.mark.parametrize("wrong", [(1, Color.RED), Cell("x"), Cell(1, "red")])
def test_only_good_named_tuples_of_the_very_class_are_dumped(wrong):
    with pytest.raises(ConversionError):
        compile_converter(Cell).dump(wrong)


def test_fields_annotated_any_take_everything():
    made = dataclasses.make_dataclass("Made", [("x", Any)])
    marker = object()
    assert compile_converter(made).load({"x": marker}).x is marker
