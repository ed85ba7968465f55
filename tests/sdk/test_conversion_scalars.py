"""Scalars, enums and literals: no value passes for another type."""

import datetime as dt
import enum
import threading
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pytest

from perdure.conversion import ConversionError, compile_converter
from perdure.plain import SCALARS

SAMPLES: dict[type, Any] = {
    type(None): None,
    bool: True,
    int: 2**70,
    float: 1.5,
    str: "x",
    bytes: b"x",
    dt.datetime: dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    dt.date: dt.date(2026, 1, 1),
    Decimal: Decimal("1.50"),
    UUID: UUID(int=1),
}


class Color(enum.Enum):
    RED = "red"
    BLUE = 2
    PAIR = (1, "a")
    LIST = [1, 2]  # noqa: RUF012 - an enum member, not a default


class Name(enum.StrEnum):
    ADA = "ada"


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


class Opaque(enum.Enum):
    LOCK = threading.Lock()


def test_there_is_a_sample_for_every_scalar():
    assert SAMPLES.keys() == SCALARS


@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_a_scalar_takes_its_own_type_alone(kind):
    converter = compile_converter(kind)
    assert converter.exact is kind
    assert not converter.identity
    for other, value in SAMPLES.items():
        if other is kind:
            assert converter.load(value) is value
            assert converter.dump(value) is value
        elif not (kind is float and other is int):
            for convert in (converter.load, converter.dump):
                with pytest.raises(ConversionError):
                    convert(value)


def test_an_int_is_taken_for_a_float_and_converted():
    converter = compile_converter(float)
    for convert in (converter.load, converter.dump):
        assert (convert(3), type(convert(3))) == (3.0, float)
        with pytest.raises(ConversionError, match="range"):
            convert(10**400)


def test_values_of_subclasses_are_dumped_as_the_plain_type():
    assert type(compile_converter(str).dump(Name.ADA)) is str
    assert type(compile_converter(int).dump(enum.IntEnum("Level", {"LOW": 1})(1))) is int
    with pytest.raises(ConversionError):
        compile_converter(dt.date).dump(dt.datetime(2026, 1, 1))


def test_none_may_be_written_as_none():
    assert compile_converter(None).exact is type(None)


@pytest.mark.parametrize("annotation", [Any, object])
def test_any_converts_nothing(annotation):
    converter = compile_converter(annotation)
    value = object()
    assert converter.identity
    assert converter.load(value) is value
    assert converter.dump(value) is value


@pytest.mark.parametrize("member", [*Color, Name.ADA, Mode.READ, Mode.READ | Mode.WRITE])
def test_an_enum_travels_by_its_value(member):
    converter = compile_converter(type(member))
    wire = converter.dump(member)
    assert wire == member.value
    assert not isinstance(wire, enum.Enum)
    assert converter.load(wire) is member


@pytest.mark.parametrize("wrong", ["green", True, 2.0, None, [1], [1, 3], {}])
def test_a_value_of_no_member_is_refused(wrong):
    with pytest.raises(ConversionError, match="must be Color, not"):
        compile_converter(Color).load(wrong)


def test_the_value_of_a_member_is_not_the_member():
    with pytest.raises(ConversionError, match="must be Color"):
        compile_converter(Color).dump("red")


@pytest.mark.parametrize("wrong", [4, "READ", True])
def test_a_flag_outside_of_its_bits_is_refused(wrong):
    with pytest.raises(ConversionError):
        compile_converter(Mode).load(wrong)


def test_a_literal_is_exactly_its_values():
    converter = compile_converter(Literal["a", 1, None, Name.ADA])
    for value, wire in (("a", "a"), (1, 1), (None, None), (Name.ADA, "ada")):
        assert converter.dump(value) == wire
        assert converter.load(wire) is value
    for wrong in ("b", True, 1.0, [1], b"a"):
        with pytest.raises(ConversionError, match="'a' or 1 or None"):
            converter.load(wrong)
        with pytest.raises(ConversionError):
            converter.dump(wrong)


@pytest.mark.parametrize(
    "annotation", [threading.Lock, object(), type, Opaque, Literal[Opaque.LOCK], complex, dt.timedelta]
)
def test_an_annotation_whose_values_cannot_travel_refuses_every_value_or_itself(annotation):
    converter = compile_converter(annotation)
    for convert in (converter.load, converter.dump):
        for value in ("x", None, threading.Lock()):
            with pytest.raises(ConversionError, match="can travel"):
                convert(value)
    with pytest.raises(TypeError, match="cannot be stored or sent"):
        compile_converter(annotation, reject_unknown=True)
