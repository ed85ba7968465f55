"""Durable fields: declared in the class, checked by annotation, defaults made for each object."""

import dataclasses
import datetime as dt
import enum
import threading
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure import codec
from perdure.errors import StorageError
from perdure.fields import DurableField, collect_fields, durable


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


class Base:
    value: int = durable(0)
    items: list[str] = durable(default_factory=list)


class Counter(Base):
    color: Color = durable(Color.RED)
    untyped = durable(None)
    point: "Point | None" = durable(None)
    by_number: dict[int, Point] = durable(default_factory=dict)


def field(name: str, cls: type = Counter) -> DurableField:
    return {field.name: field for field in collect_fields(cls)}[name]


def test_fields_are_collected_from_the_class_and_its_bases():
    assert [(f.name, f.owner) for f in collect_fields(Counter)] == [
        (name, "Counter") for name in ("value", "items", "color", "untyped", "point", "by_number")
    ]
    assert collect_fields(object) == ()


def test_the_marker_stays_in_the_class_and_values_live_in_the_instance():
    assert isinstance(Counter.value, DurableField)
    counter = Counter()
    counter.__dict__["value"] = 5
    counter.value += 1
    assert vars(counter) == {"value": 6}
    assert isinstance(Counter.value, DurableField)


def test_collecting_leaves_the_markers_alone():
    collect_fields(Counter)
    assert Base.value.owner == "Base"
    with pytest.raises(RuntimeError, match="marker"):
        Base.value.dump(1)


def test_a_derived_class_may_replace_or_hide_a_field():
    class Replacing(Base):
        value: str = durable("x")

    class Hiding(Base):
        value = 5

    assert field("value", Replacing).converter.exact is str
    assert [f.name for f in collect_fields(Hiding)] == ["items"]


def test_every_object_gets_a_default_of_its_own():
    first, second = field("items").default(), field("items").default()
    assert first == second == []
    assert first is not second
    assert field("value").default() == 0


@pytest.mark.parametrize("mutable", [[], {}, set(), Point(1), bytearray()])
def test_a_mutable_default_must_come_from_a_factory(mutable):
    with pytest.raises(TypeError, match="default_factory="):
        durable(mutable)


def test_exactly_one_default_must_be_given():
    with pytest.raises(TypeError, match="needs a default"):
        durable()
    with pytest.raises(TypeError, match="not both"):
        durable(0, default_factory=int)
    with pytest.raises(TypeError, match="callable"):
        durable(default_factory=5)
    assert durable(None).default() is None


@pytest.mark.parametrize(
    ("name", "value", "wire"),
    [
        ("value", 5, 5),
        ("items", ["a"], ["a"]),
        ("color", Color.RED, "red"),
        ("untyped", object, object),
        ("point", Point(1), {"x": 1}),
        ("point", None, None),
        ("by_number", {1: Point(1)}, [[1, {"x": 1}]]),
    ],
)
def test_values_are_stored_plain_and_loaded_by_annotation(name, value, wire):
    assert field(name).dump(value) == wire
    assert field(name).load(wire) == value


def test_a_value_of_a_wrong_type_is_not_stored():
    with pytest.raises(TypeError, match=r"^Counter\.value must be int, not str \('x'\)$"):
        field("value").dump("x")
    with pytest.raises(TypeError, match=r"Counter\.items\[1\] must be str, not int"):
        field("items").dump(["a", 1])
    cycle: dict[int, Point] = {}
    cycle[1] = cycle
    with pytest.raises(TypeError, match=r"Counter\.by_number"):
        field("by_number").dump(cycle)


def test_a_stored_value_of_a_wrong_type_is_a_storage_error():
    with pytest.raises(StorageError, match=r"Counter\.value must be int, not str \('x'\)"):
        field("value").load("x")
    with pytest.raises(StorageError, match=r"Counter\.point\.x must be int"):
        field("point").load({"x": "1"})


def test_classes_that_cannot_work_are_refused_at_registration():
    class WrongDefault:
        value: int = durable("x")

    class Unstorable:
        lock: list[threading.Lock] = durable(default_factory=list)

    class Unresolvable:
        value: "Nowhere" = durable(0)  # noqa: F821

    class Twice:
        first: int = durable(0)
        second: int = first

    for cls, message in (
        (WrongDefault, r"WrongDefault\.value: WrongDefault\.value must be int, not str"),
        (Unstorable, r"Unstorable\.lock: values annotated .*cannot be stored"),
        (Unresolvable, r"Unresolvable\.value: .*Nowhere"),
        (Twice, r"Twice\.second: its durable\(\) is that of Twice\.first"),
    ):
        with pytest.raises(TypeError, match=message):
            collect_fields(cls)


IMMUTABLE = [
    None,
    True,
    1,
    1.5,
    "x",
    b"x",
    dt.datetime(2026, 1, 1),
    dt.date(2026, 1, 1),
    Decimal(1),
    UUID(int=1),
]


def test_what_can_change_in_place_is_told_from_what_cannot():
    for value in [*IMMUTABLE, (), (1, ("a",)), frozenset({1}), Color.RED]:
        assert DurableField.immutable(value)
    for value in ([], {}, set(), Point(1), ([],), (1, (Point(1),)), bytearray()):
        assert not DurableField.immutable(value)


MINUTES = st.integers(-600, 600).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.0, 2.0]),
    st.sampled_from(["", "1", b"1", b""]),
    st.sampled_from([Decimal("1"), Decimal("1.0"), Decimal("1.00")]),
    st.datetimes(dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 2), timezones=st.none() | MINUTES),
    st.sampled_from([dt.date(2026, 1, 1), UUID(int=1)]),
)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES | st.tuples(VALUES) | st.frozensets(VALUES, max_size=2), VALUES | st.tuples(VALUES))
def test_values_that_count_as_the_same_have_the_same_encoding(old, new):
    if DurableField.same(old, new):
        assert codec.encode(old) == codec.encode(new)


def test_an_equal_value_counts_as_the_same_and_a_lookalike_does_not():
    assert all(DurableField.same(value, value) for value in IMMUTABLE)
    assert DurableField.same("ab" * 50, "".join(["ab"] * 50))
    assert DurableField.same(1.5, 3.0 / 2)
    assert DurableField.same(Decimal("1.50"), Decimal("1.50"))
    assert DurableField.same(UUID(int=1), UUID(int=1))
    assert DurableField.same(tuple([1, tuple(["a"])]), tuple([1, tuple(["a"])]))  # noqa: C409 - new objects
    noon = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    assert DurableField.same(noon, dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC))
    for old, new in (
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        (Decimal("1"), Decimal("1.0")),
        (noon, noon.astimezone(dt.timezone(dt.timedelta(hours=1)))),
        ((1,), (True,)),
        ((1,), (1, 2)),
        (frozenset({1}), frozenset({True})),
    ):
        assert not DurableField.same(old, new)
