"""Any value as plain wire values, by its run-time class alone."""

import dataclasses
import datetime as dt
import enum
import threading
from collections import OrderedDict, defaultdict
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.converter import ConversionError
from perdure.plain import SCALARS, dump_any


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Item:
    name: str
    color: Color = Color.RED
    cached: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(frozen=True)
class Point:
    x: int


class Pair(NamedTuple):
    left: int
    right: Any


class Model(pydantic.BaseModel):
    at: dt.datetime
    color: Color


SCALAR_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.datetimes(),
    st.dates(),
    st.decimals(),
    st.uuids(),
)
PLAIN_VALUES = st.recursive(
    SCALAR_VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(PLAIN_VALUES)
def test_plain_values_stay_what_they_are(value):
    dumped = dump_any(value)
    assert repr(dumped) == repr(value)
    assert type(dumped) is type(value)


@pytest.mark.parametrize("value", [[1, "a"], (1,), {1}, frozenset({1}), {"a": None}, 2**70, b"x"])
def test_scalars_and_containers_of_scalars_are_not_copied(value):
    assert dump_any(value) is value


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Item("a"), {"name": "a", "color": "red"}),
        ([Item("a")], [{"name": "a", "color": "red"}]),
        ({"k": (Item("a"),)}, {"k": ({"name": "a", "color": "red"},)}),
        (Pair(1, Color.RED), (1, "red")),
        (Color.RED, "red"),
        (Level.LOW, 1),
        ({Color.RED: 1}, {"red": 1}),
        ({Color.RED, Level.LOW}, {"red", 1}),
        ({Point(1)}, [{"x": 1}]),
        (OrderedDict(a=Point(1)), {"a": {"x": 1}}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (Model(at=dt.datetime(2026, 1, 1), color=Color.RED), {"at": dt.datetime(2026, 1, 1), "color": "red"}),
    ],
)
def test_typed_values_become_plain_ones(value, plain):
    dumped = dump_any(value)
    assert dumped == plain
    assert type(dumped) is type(plain)


def test_values_of_scalar_subclasses_become_plain():
    class Text(str):
        def __str__(self):
            raise AssertionError("overridden methods do not run")

    class Stamp(dt.datetime):
        pass

    class Money(Decimal):
        pass

    class Key(UUID):
        pass

    class Day(dt.date):
        pass

    zone = dt.timezone(dt.timedelta(hours=2))
    samples = [
        (Text("a"), "a"),
        (
            Stamp(2026, 1, 2, 3, 4, 5, 6, tzinfo=zone, fold=1),
            dt.datetime(2026, 1, 2, 3, 4, 5, 6, zone, fold=1),
        ),
        (Money("1.50"), Decimal("1.50")),
        (Key(int=5), UUID(int=5)),
        (Day(2026, 1, 2), dt.date(2026, 1, 2)),
    ]
    for value, plain in samples:
        dumped = dump_any(value)
        assert repr(dumped) == repr(plain)
        assert type(dumped) in SCALARS


@pytest.mark.parametrize(
    "value", [threading.Lock(), object(), Item, lambda: None, 1j, bytearray(b"x"), dt.timedelta(1), range(3)]
)
def test_other_classes_cannot_travel(value):
    with pytest.raises(ConversionError, match="must be plain data"):
        dump_any(value)


def test_the_error_names_the_part_that_cannot_travel():
    with pytest.raises(ConversionError) as caught:
        dump_any({"items": [Item("a"), Pair(1, object())]})
    assert caught.value.path == "['items'][1][1]"
    with pytest.raises(ConversionError) as caught:
        dump_any(Item(object()))
    assert caught.value.path == ".name"
    with pytest.raises(ConversionError) as caught:
        dump_any({object()})
    assert caught.value.path == "[*]"


def test_dict_keys_must_be_text():
    with pytest.raises(ConversionError, match=r"str keys.*int \(1\)"):
        dump_any({1: "a"})


def test_cycles_are_refused():
    cycle = []
    cycle.append(cycle)
    with pytest.raises(ConversionError, match="free of cycles"):
        dump_any(cycle)


def test_a_field_that_was_never_set_is_named():
    item = Item("a")
    del item.name
    with pytest.raises(ConversionError, match="name was never set"):
        dump_any(item)
