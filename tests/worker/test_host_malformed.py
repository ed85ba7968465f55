"""Messages that are no calls: counted, refused where somebody can be told, harmless to their neighbours."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import DurableObject, InvalidArgument, Limits, codec, durable, protocol
from perdure.ids import id_from_name
from worker.host_scene import Scene, Sent

KEY = id_from_name("Counter", "a").key
CLIENT_ID = b"x" * 16
NINE_GOOD = [7, "Counter", KEY, "a", "increment", [], None, 0, None]


class Counter(DurableObject):
    value: int = durable(0)

    async def increment(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def loose(self, *values: Any, **named: Any) -> int:
        self.value += 100
        return self.value


def changed(index: int, value: Any, base: list[Any] = NINE_GOOD) -> list[Any]:
    item = list(base)
    item[index] = value
    return item


NO_CALLS = {
    "nothing": None,
    "a number": 7,
    "a text": "123456789",
    "a map": dict.fromkeys("abcdefghi"),
    "an empty list": [],
    "eight elements": NINE_GOOD[:8],
    "a sequence of text": changed(0, "7"),
    "a sequence of None": changed(0, None),
    "a sequence that is a bool": changed(0, True),
    "a sequence in a list": changed(0, [7]),
    "an id in a list": changed(2, [KEY]),
    "a method in a list": changed(4, ["increment"]),
    "arguments of None": changed(5, None),
    "arguments of a number": changed(5, 5),
    "arguments of text": changed(5, "abc", changed(4, "loose")),
    "arguments in a map": changed(5, {"by": 1}, changed(4, "loose")),
    "arguments in a tuple": changed(5, (1,)),
    "keywords in a list": changed(6, [1]),
    "keywords of a number": changed(6, 5),
    "a timeout of text": changed(7, "10"),
    "a timeout of None": changed(7, None),
    "a timeout that compares with nothing": changed(7, Decimal("sNaN")),
    "a context of a number": changed(8, 5),
    "a context of text": changed(8, "abc"),
    "a context in a map": changed(8, {"a": 1, "b": 2}),
    "a context without a request": changed(8, [None]),
    "a chain of a number": changed(8, [5, None]),
    "a chain of text": changed(8, ["abc", None]),
    "a chain of numbers": changed(8, [[1], None]),
    "a chain of empty lists": changed(8, [[[]], None]),
    "a chain in a map": changed(8, [{"a": 1}, None]),
    "a chain of two letters": changed(8, [["ab"], None]),
    "a link with one element": changed(8, [[[KEY]], None]),
    "a request of a number": changed(8, [None, 5]),
    "a request without a floor": changed(8, [None, [bytes(16), 1, b""]]),
    "a request of a short client": changed(8, [None, [b"abc", 1, b"", 0]]),
    "a request whose sequence is text": changed(8, [None, [bytes(16), "1", b"", 0]]),
    "a request whose path is endless": changed(8, [None, [bytes(16), 1, bytes(300), 0]]),
}
REFUSED = {
    "a namespace in a list": changed(1, ["Counter"]),
    "a namespace of None": changed(1, None),
    "a namespace of bytes": changed(1, b"Counter"),
    "an id of text": changed(2, KEY.hex()),
    "an id of None": changed(2, None),
    "an id of 33 bytes": changed(2, KEY + b"x"),
    "a name in a list": changed(3, ["a"]),
    "a method of None": changed(4, None),
    "a worker's method with junk": [7, "", b"", None, "list", [1, 2, 3, 4], None, 0, None],
    "a worker's method that is none": [7, "", b"", None, "stop", [], None, 0, None],
}


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("what", NO_CALLS)
def test_an_item_that_is_no_call_is_counted_and_refused_and_its_neighbours_run(
    make_scene: Any, what: str, live: bool
) -> None:
    scene: Scene = make_scene(Counter)
    if live:
        scene.call(Counter, "a", "increment", 0)
    item = NO_CALLS[what]
    before, after = scene.item(Counter, "b", "increment"), scene.item(Counter, "a", "increment")
    before[0], after[0] = 101, 102
    scene.send(before, item, after)
    scene.commit()
    assert Sent(scene, scene.client, 101).result() == 1
    assert Sent(scene, scene.client, 102).result() == 1
    assert scene.host.malformed == 1
    if type(item) is list and item and type(item[0]) is int:
        assert type(Sent(scene, scene.client, 7).error()) is InvalidArgument


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("what", REFUSED)
def test_a_call_to_nothing_that_exists_is_refused_and_its_neighbours_run(
    make_scene: Any, what: str, live: bool
) -> None:
    scene: Scene = make_scene(Counter)
    if live:
        scene.call(Counter, "a", "increment", 0)
    after = scene.item(Counter, "a", "increment")
    scene.send(REFUSED[what], after)
    scene.commit()
    assert Sent(scene, scene.client, after[0]).result() == 1
    assert Sent(scene, scene.client, 7).error() is not None


def test_elements_behind_the_ninth_are_ignored(make_scene: Any) -> None:
    scene = make_scene(Counter)
    first = [*scene.item(Counter, "a", "increment"), "of a newer client", {"and": 1}]
    wrong = [*changed(5, 5), "of a newer client"]
    scene.send(first, wrong)
    scene.commit()
    assert Sent(scene, scene.client, first[0]).result() == 1
    assert type(Sent(scene, scene.client, 7).error()) is InvalidArgument
    assert scene.host.malformed == 1


def raw_item(sequence: bytes, argument: bytes) -> bytes:
    parts = [codec.encode(part) for part in scene_parts()]
    parts[0], parts[5] = sequence, b"\x91" + argument
    return protocol.array_header(9) + b"".join(parts)


def scene_parts() -> list[Any]:
    return changed(3, None)


UNDECODABLE = {
    "an unknown extension": b"\xc7\x01\x63\x00",
    "text that is no UTF-8": b"\xa2\xff\xff",
    "a map with number keys": b"\x81\x01\x01",
    "a date that is none": b"\xc7\x03\x06abc",
}


@pytest.mark.parametrize("argument", UNDECODABLE.values(), ids=UNDECODABLE)
def test_one_call_that_cannot_be_decoded_is_refused_alone(make_scene: Any, argument: bytes) -> None:
    scene: Scene = make_scene(Counter)
    before, after = scene.item(Counter, "a", "increment"), scene.item(Counter, "b", "increment")
    bodies = [codec.encode(before), raw_item(codec.encode(55), argument), codec.encode(after)]
    scene.send_body(protocol.array_header(4) + codec.encode(CLIENT_ID) + b"".join(bodies))
    scene.commit()
    assert Sent(scene, scene.client, before[0]).result() == 1
    assert Sent(scene, scene.client, after[0]).result() == 1
    error = Sent(scene, scene.client, 55).error()
    assert type(error) is InvalidArgument
    assert scene.host.malformed == 1


@pytest.mark.parametrize(
    "item",
    [
        raw_item(b"\xc7\x01\x63\x00", b"\x01"),
        raw_item(b"\xa1x", b"\xa2\xff\xff"),
        b"\x90",
        b"\xc7\x01\x63\x00",
        b"\x91\xc7\x01\x63\x00",
    ],
    ids=["undecodable sequence", "sequence of text", "empty", "an extension", "a list of one"],
)
def test_an_undecodable_call_without_a_sequence_is_counted_and_its_neighbours_run(
    make_scene: Any, item: bytes
) -> None:
    scene: Scene = make_scene(Counter)
    good = scene.item(Counter, "a", "increment")
    undecodable = raw_item(codec.encode(55), b"\xa2\xff\xff")  # so that the message is read call by call
    body = protocol.array_header(4) + codec.encode(CLIENT_ID) + item + undecodable + codec.encode(good)
    scene.send_body(body)
    scene.commit()
    assert Sent(scene, scene.client, good[0]).result() == 1
    assert scene.host.malformed == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        codec.encode(None),
        codec.encode([]),
        codec.encode({"a": 1}),
        codec.encode([CLIENT_ID, *[NINE_GOOD] * 4_096]),
        protocol.array_header(3) + codec.encode(CLIENT_ID) + codec.encode(NINE_GOOD),
        protocol.array_header(2) + b"\xa2\xff\xff" + codec.encode(NINE_GOOD),
    ],
    ids=["empty", "junk", "nil", "no client", "a map", "too long", "cut off", "an undecodable client"],
)
def test_a_message_that_is_no_batch_is_refused_whole_and_nothing_of_it_runs(
    make_scene: Any, body: bytes
) -> None:
    scene: Scene = make_scene(Counter)
    with pytest.raises(InvalidArgument):
        scene.send_body(body)
    assert scene.host.turns == 0
    assert scene.call(Counter, "a", "increment") == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


@st.composite
def items_like_calls(draw: Any) -> Any:
    item = list(NINE_GOOD)
    for index in draw(st.sets(st.integers(0, 8), max_size=3)):
        item[index] = draw(VALUES)
    return draw(st.just(item) | st.just(item[:8]) | st.just([*item, 1]) | VALUES)


@settings(max_examples=150, deadline=None)
@given(st.lists(items_like_calls(), max_size=4), st.booleans())
def test_whatever_a_message_holds_the_good_calls_in_it_are_answered(items: list[Any], live: bool) -> None:
    scene = Scene(Counter, limits=Limits())
    try:
        if live:
            scene.call(Counter, "a", "increment")
        good = scene.item(Counter, "good", "increment")
        good[0] = 2**40
        scene.send(*items, good)
        scene.commit()
        assert Sent(scene, scene.client, 2**40).result() == 1
    finally:
        scene.close()
