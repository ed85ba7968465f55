"""Values as bytes and back: everything of the closed set as itself, nothing else, and no bombs."""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import math
import random
import threading
from collections import OrderedDict
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.codec import SCALARS, BadMessage, check_value, decode, encode, make_packer, split_array
from perdure.errors import InvalidArgument
from perdure.limits import Limits

LIMITS = Limits()
TUPLE, SET, FROZENSET, BIGINT, DATETIME, DATE, DECIMAL, UNIQUE = range(1, 9)

slowly = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)

ZONES = st.one_of(st.none(), st.integers(-86_399, 86_399).map(lambda s: dt.timezone(dt.timedelta(seconds=s))))
HASHABLE_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.datetimes(timezones=ZONES),
    st.dates(),
    st.decimals(allow_nan=False),
    st.uuids(),
)
HASHABLE = st.recursive(
    HASHABLE_LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4).map(tuple), st.frozensets(inner, max_size=4)),
    max_leaves=6,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(st.text(), inner, max_size=5),
        st.sets(HASHABLE, max_size=5),
    ),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Equal in value and in type, all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        # Order counts too: a dict comes back in the order it was written in.
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, set | frozenset):
        return left == right and sorted(map(encode, left)) == sorted(map(encode, right))
    if isinstance(left, dt.datetime):
        return left == right and left.utcoffset() == right.utcoffset()
    return bool(left == right) and repr(left) == repr(right)


@slowly
@given(VALUES)
def test_every_value_of_the_closed_set_comes_back_as_itself(value: Any) -> None:
    assert same(decode(encode(value)), value)


@pytest.mark.parametrize(
    "value",
    [
        (),
        (1,),
        [(1, (2, [(3,)]))],
        set(),
        pytest.param({1, "a", (2, frozenset({3}))}, id="set"),  # its own order differs between processes
        frozenset(),
        2**63 - 1,
        -(2**63),
        2**64 - 1,
        2**64,
        -(2**63) - 1,
        2**70,
        -(2**70),
        10**1000,
        0.1,
        -0.0,
        math.inf,
        "",
        "\0",
        "\U0010ffff",
        b"",
        b"\xff" * 300,
        {"": {"": {}}},
        {b"bytes": {b"": 1}},
        dt.datetime.min,
        dt.datetime.max,
        dt.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=dt.UTC),
        dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14))),
        dt.datetime(1900, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-4, seconds=-56, microseconds=-1))),
        dt.date.max,
        Decimal("1.10"),
        Decimal("1E+999"),
        Decimal("-0"),
        Decimal("sNaN12"),
        UUID(int=0),
        {"a" * 70_000: [None, True, False]},
    ],
    ids=lambda value: repr(value)[:40],
)
def test_edges_of_the_closed_set_come_back_as_themselves(value: Any) -> None:
    assert repr(decode(encode(value))) == repr(value)


def test_nan_stays_nan() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert math.isnan(decode(encode([{math.nan}]))[0].pop())


def test_a_named_zone_comes_back_as_its_fixed_offset() -> None:
    class Summer(dt.tzinfo):
        def utcoffset(self, when: object) -> dt.timedelta:
            return dt.timedelta(hours=2)

    arrived = decode(encode(dt.datetime(2024, 7, 1, tzinfo=Summer())))
    assert arrived == dt.datetime(2024, 7, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))


def test_a_timestamp_of_another_language_is_an_aware_datetime() -> None:
    packed = msgpack.packb(dt.datetime(2024, 7, 1, tzinfo=dt.UTC), datetime=True)
    assert decode(packed) == dt.datetime(2024, 7, 1, tzinfo=dt.UTC)


def test_a_bytearray_comes_back_as_bytes() -> None:
    assert decode(encode([bytearray(b"x"), memoryview(b"y")])) == [b"x", b"y"]


@slowly
@given(st.lists(HASHABLE, max_size=12, unique_by=encode), st.randoms(use_true_random=False))
def test_equal_sets_have_equal_encodings(members: list[Any], order: random.Random) -> None:
    shuffled = members[:]
    order.shuffle(shuffled)
    assert encode(set(members)) == encode(set(shuffled))
    assert encode(frozenset(members)) == encode(frozenset(shuffled))


# --- what cannot be encoded


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Hostile(dt.tzinfo):
    def utcoffset(self, when: object) -> dt.timedelta:
        raise LookupError("no such zone")


def list_in_itself() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


def dict_in_itself() -> dict[str, Any]:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    return endless


def tuple_in_itself() -> tuple[Any, ...]:
    inner: list[Any] = []
    endless = (inner,)
    inner.append(endless)
    return endless


def nested(depth: int, around: Any, core: Any = None) -> Any:
    for _ in range(depth):
        core = around(core)
    return core


UNENCODABLE = [
    (threading.Lock(), "_thread.lock"),
    ({"a": [threading.Lock()]}, "_thread.lock"),
    (object(), "builtins.object"),
    (Color.RED, "Color"),
    (Text("x"), "Text"),
    (OrderedDict(a=1), "OrderedDict"),
    (1j, "builtins.complex"),
    (range(3), "range"),
    (ValueError("x"), "ValueError"),
    (msgpack.ExtType(99, b"x"), "99"),
    ([msgpack.ExtType(TUPLE, b"\xc1")], "FormatError"),
    (dt.timedelta(1), "datetime.timedelta"),
    (dt.time(1), "datetime.time"),
    (dt.datetime(2024, 1, 1, tzinfo=Hostile()), "no such zone"),
    ("\ud800", "lone surrogate"),
    ({"\ud800": 1}, "lone surrogate"),
    ({("\udfff",)}, "lone surrogate"),
    ({1: 2}, "only str keys"),
    ([{"a": {2.5: 1}}], "only str keys"),
    (({None: 1},), "only str keys"),
    ({(1, 2): 3}, "only str keys"),
    (list_in_itself(), "contains itself"),
    (dict_in_itself(), "contains itself"),
    (tuple_in_itself(), "contains itself"),
    (nested(2_000, lambda inner: [inner]), "nested too deep"),
    (nested(2_000, lambda inner: {"a": inner}), "nested too deep"),
    (nested(2_000, lambda inner: (inner,)), "nested too deep"),
    (nested(LIMITS.nested_tuples_max + 1, lambda inner: (inner,)), "nested too deep"),
    (nested(LIMITS.nested_tuples_max + 1, lambda inner: frozenset({inner})), "nested too deep"),
    ([[]] * (LIMITS.containers_max + 1), "more than 100000 lists and maps"),
    ([()] * (LIMITS.containers_max + 1), "more than 100000 lists and maps"),
    ([{}] * (LIMITS.containers_max + 1), "more than 100000 lists and maps"),
]


@pytest.mark.parametrize(("value", "said"), UNENCODABLE, ids=range(len(UNENCODABLE)))
def test_what_cannot_be_read_back_is_not_encoded_and_the_error_says_why(value: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        encode(value)
    with pytest.raises(InvalidArgument, match=said):
        check_value(value)
    if said not in ("contains itself", "nested too deep"):
        with pytest.raises(InvalidArgument, match=said):
            encode([1, {"deep inside": [value]}])


def test_a_packer_works_on_after_a_value_that_it_could_not_pack() -> None:
    pack = make_packer()
    for value, _ in UNENCODABLE[:3]:
        with pytest.raises(TypeError):
            pack([1, 2, value])
    with pytest.raises(UnicodeEncodeError):
        pack(["\ud800"])
    assert pack([1, (2,), {3}]) == encode([1, (2,), {3}])


@pytest.mark.parametrize("value", [None, True, 2**70, 0.5, b"\x80" * 200_000])
def test_scalars_need_no_check(value: Any) -> None:
    assert type(value) in SCALARS
    assert decode(make_packer()(value)) == value


def test_as_much_as_is_allowed_goes_both_ways() -> None:
    for value in (
        [[]] * (LIMITS.containers_max - 1),
        nested(LIMITS.nested_tuples_max, lambda inner: (inner,)),
        nested(LIMITS.nested_tuples_max, lambda inner: frozenset({inner})),
        [nested(LIMITS.nested_tuples_max, lambda inner: (inner,)), "\u0080" * 200_000],
        nested(500, lambda inner: [inner]),
        set(range(20_000)),
    ):
        assert decode(encode(value)) == value


# --- what cannot be decoded


def extension(code: int, data: bytes) -> bytes:
    return b"\xc9" + len(data).to_bytes(4, "big") + code.to_bytes(1, "big", signed=True) + data


def tuples_inside_each_other(depth: int) -> bytes:
    data = b"\x90"
    for _ in range(depth):
        data = b"\x91" + extension(TUPLE, data)
    return data


FIVE_MEGABYTES = 5_000_000
ARRAY_OF_FIVE_MILLION = b"\xdd" + FIVE_MEGABYTES.to_bytes(4, "big")


@pytest.mark.parametrize(
    "bomb",
    [
        ARRAY_OF_FIVE_MILLION + b"\x80" * FIVE_MEGABYTES,
        ARRAY_OF_FIVE_MILLION + b"\x90" * FIVE_MEGABYTES,
        extension(TUPLE, ARRAY_OF_FIVE_MILLION + b"\x80" * FIVE_MEGABYTES),
        extension(SET, ARRAY_OF_FIVE_MILLION + b"\x90" * FIVE_MEGABYTES),
        b"\x91" + extension(TUPLE, b"\x91" + extension(TUPLE, b"\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000)),
        b"\xdd\x00\x0f\x42\x40" + extension(TUPLE, b"\x90") * 1_000_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x91" * 100_000,
        b"\x91" * 5_000_000,
        b"\x81\xa1a" * 100_000,
        tuples_inside_each_other(LIMITS.nested_tuples_max + 1),
        tuples_inside_each_other(200),
        tuples_inside_each_other(2_000),
        # Many bytes that could open a list, so that lists are counted: that way has a bound of its own.
        b"\x92" + tuples_inside_each_other(LIMITS.nested_tuples_max + 1) + msgpack.packb("\u0090" * 200_000),
    ],
    ids=range(17),
)
def test_bombs_are_refused(bomb: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(bomb)


def colliding(count: int) -> list[bytes]:
    """Encoded integers that all have the hash 0."""
    return [encode(number * ((1 << 61) - 1) * 16) for number in range(1, count + 1)]


@pytest.mark.parametrize("code", [SET, FROZENSET])
def test_a_set_of_members_with_one_hash_is_refused_before_it_is_built(code: int) -> None:
    members = colliding(50_000)
    with pytest.raises(BadMessage, match="hash"):
        decode(extension(code, b"\xdc" + len(members).to_bytes(2, "big") + b"".join(members)))
    few = colliding(100)
    assert len(decode(extension(code, b"\xdc\x00\x64" + b"".join(few)))) == 100


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x92\x01",
        b"\x01\x01",
        b"\x81\x01\x02",
        b"\x81\xc0\x02",
        b"\xa1\xff",
        extension(0, b""),
        extension(9, b"x"),
        extension(-1, b""),
        extension(-1, b"\xff" * 12),
        extension(TUPLE, b""),
        extension(TUPLE, b"\x01"),
        extension(TUPLE, b"\xa3abc"),
        extension(TUPLE, b"\x80"),
        extension(TUPLE, b"\x90\x90"),
        extension(SET, b"\x91\x90"),
        extension(SET, b"\xa3abc"),
        extension(FROZENSET, b"\x91\x80"),
        extension(DATETIME, b"tomorrow"),
        extension(DATETIME, b"\xff"),
        extension(DATE, b"2023-02-29"),
        extension(DECIMAL, b"one"),
        extension(DECIMAL, b"1" * 10 + b"\xe0"),
        extension(UNIQUE, b"short"),
    ],
    ids=lambda data: data.hex()[:30],
)
def test_malformed_bytes_are_a_bad_message(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(data)


@slowly
@given(st.binary(max_size=60))
def test_junk_raises_nothing_but_bad_message(junk: bytes) -> None:
    for data in (junk, *(extension(code, junk) for code in (-1, *range(10)))):
        for read in (decode, split_array):
            with contextlib.suppress(BadMessage):
                read(data)


@slowly
@given(VALUES, st.randoms(use_true_random=False))
def test_a_damaged_message_raises_nothing_but_bad_message(value: Any, chance: random.Random) -> None:
    data = bytearray(encode(value))
    for _ in range(chance.randrange(1, 4)):
        position = chance.randrange(len(data))
        match chance.randrange(3):
            case 0:
                data[position] = chance.randrange(256)
            case 1:
                data.insert(position, chance.choice((0x80, 0x90, 0xC1, 0xC7, 0xD4, 0xDD, 0xFF)))
            case _:
                data[position:] = b""
                if not data:
                    break
    for read in (decode, split_array):
        with contextlib.suppress(BadMessage):
            read(bytes(data))


# --- lists in parts


@slowly
@given(st.lists(VALUES, max_size=8))
def test_a_list_is_split_into_its_encoded_elements(values: list[Any]) -> None:
    assert split_array(encode(values)) == [encode(value) for value in values]


def test_elements_that_cannot_be_decoded_are_split_off_too() -> None:
    bad = tuples_inside_each_other(200)
    parts = split_array(b"\x93" + encode(1) + bad + encode("x"))
    assert parts == [encode(1), bad, encode("x")]


NO_LISTS = [b"", b"\x01", b"\x80", b"\x92\x01", b"\xdd\xff\xff\xff\xff\x01", b"\xa1x", b"\x91\x01\x01"]


@pytest.mark.parametrize("data", NO_LISTS)
def test_what_is_no_list_cannot_be_split(data: bytes) -> None:
    with pytest.raises(BadMessage):
        split_array(data)


def test_a_list_is_split_up_to_the_length_of_a_batch() -> None:
    longest = LIMITS.batch_calls_max
    assert len(split_array(encode([0] * longest))) == longest
    with pytest.raises(BadMessage, match=str(longest)):
        split_array(encode([0] * (longest + 1)))
