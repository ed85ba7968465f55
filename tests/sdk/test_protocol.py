"""Headers and list headers of the wire: their bytes, and what is no header."""

from __future__ import annotations

import msgpack
import pytest

from perdure import protocol
from perdure.errors import InvalidArgument
from perdure.protocol import BadHeader, CallHeader, Header

KINDS = {
    name: value
    for name, value in vars(protocol).items()
    if name.isupper() and name in protocol.__all__ and not name.startswith(("STATUS_", "VERSION"))
}
OBJECT_ID = bytes(range(32))


def test_kinds_and_statuses_keep_their_numbers() -> None:
    assert KINDS == {
        "HELLO": 1,
        "PING": 2,
        "PONG": 3,
        "MAP": 4,
        "BATCH": 5,
        "REPLIES": 6,
        "CALL": 7,
        "REPLY": 8,
        "STALE": 9,
        "BUNDLE": 10,
        "GOODBYE": 11,
        "GOODBYE_ACK": 12,
        "REFUSED": 13,
        "STREAM": 14,
        "REPLY_ITEM": 15,
        "FRAMES": 16,
        "SOCKETS": 17,
        "PULL": 18,
        "PART": 19,
        "TAKEN": 20,
    }
    assert (protocol.STATUS_RESULT, protocol.STATUS_RAISED, protocol.STATUS_ERROR) == (0, 1, 2)
    assert (protocol.STATUS_ITEM, protocol.STATUS_END) == (3, 4)
    assert protocol.VERSION == 1


def test_a_header_has_sixteen_bytes_in_network_order() -> None:
    made = protocol.header(protocol.BATCH, worker=0x0102, number=0x03040506, stamp=0x0708090A0B0C0D0E)
    assert made.hex() == "0105010203040506" + "0708090a0b0c0d0e"
    assert protocol.header(protocol.HELLO).hex() == "01010000" + "00" * 12


def test_the_header_of_a_single_call_has_fifty_six_bytes() -> None:
    made = protocol.call_header(OBJECT_ID, sequence=0x11, stamp=0x22)
    assert made.hex() == "0107000000000000" + "0000000000000022" + OBJECT_ID.hex() + "0000000000000011"


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind != protocol.CALL])
def test_a_header_is_read_as_it_was_made(kind: int) -> None:
    largest = Header(kind, 2**16 - 1, 2**32 - 1, 2**64 - 1)
    assert protocol.read_header(protocol.header(*largest)) == largest


def test_the_header_of_a_single_call_is_read_as_it_was_made() -> None:
    made = protocol.call_header(OBJECT_ID, 2**64 - 1, 2**64 - 1)
    assert protocol.read_header(made) == Header(protocol.CALL, 0, 0, 2**64 - 1)
    assert protocol.read_call_header(made) == CallHeader(2**64 - 1, OBJECT_ID, 2**64 - 1)


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_call_cannot_be_addressed_to_an_id_of_another_length(size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"32 bytes, this one {size}"):
        protocol.call_header(bytes(size), 1)


GOOD = protocol.header(protocol.BATCH)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"", "16 bytes or more, this one 0"),
        (GOOD[:15], "16 bytes or more, this one 15"),
        (GOOD + b"\0", "cannot have 17 bytes"),
        (GOOD * 1000, "cannot have 16000 bytes"),
        (b"\0" * 16, "of version 0"),
        (b"\x02" + GOOD[1:], "speaks protocol version 1, the message is of version 2"),
        (protocol.call_header(OBJECT_ID, 1)[:-1], "cannot have 55 bytes"),
        (protocol.call_header(OBJECT_ID, 1)[:16], "kind 7 cannot have 16 bytes"),
        (protocol.call_header(OBJECT_ID, 1) + b"\0", "cannot have 57 bytes"),
        (GOOD + bytes(40), "kind 5 cannot have 56 bytes"),
    ],
)
def test_what_is_no_header_is_refused_with_the_reason(frame: bytes, said: str) -> None:
    with pytest.raises(BadHeader, match=said):
        protocol.read_header(frame)


def test_a_header_of_an_unknown_kind_is_still_a_header() -> None:
    assert protocol.read_header(protocol.header(200)).kind == 200


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 65_535, 65_536, 100_000])
def test_joined_elements_behind_an_array_header_are_a_list(count: int) -> None:
    assert protocol.array_header(count) == msgpack.Packer().pack_array_header(count)
    assert msgpack.unpackb(protocol.array_header(count) + b"\x07" * count) == [7] * count
