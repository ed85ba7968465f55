"""Replies and returned batches as a caller reads them, and bytes that are none."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from perdure import codec, protocol
from perdure.answers import read_refused, read_replies, read_stale
from perdure.codec import BadMessage
from perdure.errors import InvalidArgument, OutcomeUnknown, Overloaded, from_wire, to_wire

from .caller_scene import map_of

UNREADABLE = b"\xc7\x01\x63x"  # an extension type that nobody knows
BATCH = codec.encode([b"c" * 16, [3, "Counter"], [5, "Counter"], [8]])
MAP = map_of(7, 1, 2)


def test_replies_are_read_as_they_were_sent() -> None:
    replies = [[1, 0, {"a": (1,)}], [2, 1, {}], [3, 2, ["Overloaded", "full", {}]]]
    assert read_replies(codec.encode(replies)) == replies
    assert read_replies(codec.encode([])) == []


def test_a_reply_that_cannot_be_read_is_an_unknown_outcome_and_the_others_are_read() -> None:
    body = protocol.array_header(3) + codec.encode([1, 0, "a"]) + b"\x93\x02\x00" + UNREADABLE
    first, second, third = read_replies(body + codec.encode([3, 0, "c"]))
    assert (first, third) == ([1, 0, "a"], [3, 0, "c"])
    assert second[:2] == [2, protocol.STATUS_ERROR]
    error = from_wire(*second[2])
    assert type(error) is OutcomeUnknown
    assert "extension type 99" in str(error)


def test_a_reply_that_does_not_even_say_whose_it_is_is_left_out() -> None:
    for nobody in (UNREADABLE, b"\x90" + b"", b"\x91" + UNREADABLE, b"\x92" + UNREADABLE + b"\x00"):
        body = protocol.array_header(3) + nobody + codec.encode([3, 0, "c"]) + b"\x93\x04\x00" + UNREADABLE
        replies = read_replies(body)
        assert [reply[0] for reply in replies if reply] == [3, 4]


def test_a_stale_batch_names_its_calls_and_brings_a_map() -> None:
    assert read_stale(codec.encode([MAP.to_wire(), BATCH])) == (MAP, [3, 5, 8])
    assert read_stale(codec.encode([None, BATCH])) == (None, [3, 5, 8])


def test_calls_of_a_returned_batch_are_found_even_where_they_cannot_be_decoded() -> None:
    batch = protocol.array_header(3) + codec.encode(b"c" * 16) + b"\x92\x03" + UNREADABLE + b"\x91\x05"
    assert read_stale(codec.encode([None, batch])) == (None, [3, 5])


def test_a_refusal_has_a_reason_and_the_calls_where_the_batch_came_back() -> None:
    refusal = to_wire(Overloaded("full", limit="router_queue_bytes_max", retry_after=2.0))
    for batch, sequences in [
        ([BATCH], [3, 5, 8]),
        ([None], []),
        ([b""], []),
        ([], []),
        ([BATCH, "new"], [3, 5, 8]),
    ]:
        error, calls = read_refused(codec.encode([*refusal, *batch]))
        assert isinstance(error, Overloaded)
        assert (error.retry_after, calls) == (2.0, sequences)


NO_BATCHES: list[Any] = [
    None,
    5,
    b"",
    b"\xc1",
    codec.encode(5),
    codec.encode([b"c", 5]),
    codec.encode([b"c", []]),
]
NO_BATCHES += [codec.encode([b"c", ["x"]]), codec.encode([b"c", [[]]]), codec.encode([b"c", [1.5]]), "text"]


@pytest.mark.parametrize("batch", NO_BATCHES, ids=repr)
def test_a_returned_batch_that_is_none_is_a_typed_error(batch: Any) -> None:
    with pytest.raises(BadMessage):
        read_stale(codec.encode([None, batch]))
    if batch:
        with pytest.raises(BadMessage):
            read_refused(codec.encode(["Overloaded", "full", {}, batch]))


@pytest.mark.parametrize("read", [read_replies, read_stale, read_refused])
@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90\x90", *map(codec.encode, (None, 5, "abc", {"a": 1}))])
def test_what_is_no_such_message_is_a_typed_error(read: Callable[[bytes], Any], body: bytes) -> None:
    with pytest.raises(BadMessage):
        read(body)


@pytest.mark.parametrize("wire_map", [5, {}, {"version": "x"}, []])
def test_a_map_that_is_none_is_a_typed_error(wire_map: Any) -> None:
    with pytest.raises(InvalidArgument, match="slot map"):
        read_stale(codec.encode([wire_map, BATCH]))


@pytest.mark.parametrize("read", [read_replies, read_stale, read_refused])
def test_damaged_messages_raise_nothing_but_typed_errors(read: Callable[[bytes], Any]) -> None:
    chance = random.Random(11)
    bodies = [
        codec.encode([[1, 0, {"a": (1,)}], [2, 1, {}], [3, 2, ["Overloaded", "full", {}]]]),
        codec.encode([MAP.to_wire(), BATCH]),
        codec.encode([*to_wire(Overloaded("full")), BATCH]),
    ]
    for _ in range(3_000):
        body = bytearray(chance.choice(bodies))
        for _ in range(chance.randrange(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        with contextlib.suppress(InvalidArgument):
            read(bytes(body))
