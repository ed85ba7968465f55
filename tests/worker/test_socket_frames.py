"""What a turn sends, as records for gateways: once for many sockets, in order for each, cut to size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import Limits, codec
from perdure_worker.socket_frames import AUTO, BINARY, CLOSE, TEXT, Frames, entries_of

GATEWAYS = (b"G" * 16, b"H" * 16)
SENDS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(1, 3), st.integers(TEXT, BINARY), st.integers(0, 2)), max_size=30
)


def delivered(records: list[bytes]) -> dict[int, list[Any]]:
    """What each socket gets."""
    got: dict[int, list[Any]] = {}
    for record in records:
        for kind, payload, numbers in codec.decode(record):
            for number in numbers:
                got.setdefault(number, []).append((kind, payload))
    return got


def put(frames: Frames, gateway: bytes, number: int, kind: int, payload: Any) -> None:
    """As whoever sends does it."""
    before = frames.size
    if not frames.join(gateway, number, kind, payload):
        frames.add(gateway, number, kind, payload)
    assert frames.size > before


@given(SENDS)
def test_each_socket_gets_what_it_was_sent_in_that_order(sends: list[tuple[int, int, int, int]]) -> None:
    frames = Frames()
    expected: dict[bytes, dict[int, list[Any]]] = {}
    for gateway, number, kind, which in sends:
        payload: Any = "abc"[which] if kind == TEXT else b"abc"[which : which + 1]
        put(frames, GATEWAYS[gateway], number, kind, payload)
        expected.setdefault(GATEWAYS[gateway], {}).setdefault(number, []).append((kind, payload))
    assert bool(frames) == bool(sends)
    records = frames.records(Limits())
    assert {gateway: delivered(mine) for gateway, mine in records.items()} == expected


def test_the_same_for_many_sockets_is_one_entry_also_when_it_alternates() -> None:
    frames = Frames()
    for number in range(100):
        put(frames, GATEWAYS[0], number, TEXT, "a")
        put(frames, GATEWAYS[0], number, TEXT, "b")
    (record,) = frames.records(Limits())[GATEWAYS[0]]
    assert codec.decode(record) == [[0, "a", list(range(100))], [0, "b", list(range(100))]]


def test_text_and_binary_of_the_same_letters_and_closes_are_told_apart() -> None:
    frames = Frames()
    for kind, payload in ((TEXT, "a"), (BINARY, b"a"), (AUTO, ("a", "b")), (AUTO, None), (CLOSE, (1000, ""))):
        put(frames, GATEWAYS[0], 1, kind, payload)
    (record,) = frames.records(Limits())[GATEWAYS[0]]
    assert codec.decode(record) == [
        [0, "a", [1]],
        [1, b"a", [1]],
        [3, ["a", "b"], [1]],
        [3, None, [1]],
        [2, [1000, ""], [1]],
    ]


def test_much_is_cut_into_records_by_size_and_number_of_entries() -> None:
    frames = Frames()
    for number in range(10):
        put(frames, GATEWAYS[0], 1, TEXT, f"{number:0100}")
    by_entries = frames.records(Limits(frames_record_entries_max=4))[GATEWAYS[0]]
    assert [entries_of(record) for record in by_entries] == [4, 4, 2]
    by_size = frames.records(Limits(batch_bytes_max=300))[GATEWAYS[0]]
    assert len(by_size) == 5
    assert delivered(by_size) == delivered(by_entries)


@pytest.mark.parametrize("count", [1, 15, 16, 65_535, 65_536])
def test_entries_are_counted_without_decoding(count: int) -> None:
    assert entries_of(codec.encode([0] * count)) == count
