"""One client's recorded replies at one object, by themselves; test_retries.py has them in a worker."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perdure import codec
from perdure_worker.clients import Client
from perdure_worker.windows import Window, entry_key

NOW = (1_700_000_000).to_bytes(4, "big")
OBJECT: Any = object()


def window(state: Client | None = None) -> Window:
    return Window(OBJECT, b"c" * 16, state, b"row")


def reloaded(before: Window) -> Window:
    after = window()
    after.load(before.payload(NOW, codec.make_packer()))
    return after


@given(
    entries=st.lists(
        st.tuples(
            st.integers(1, 2**70),
            st.sampled_from([b"", b"\x00\x01"]),
            st.one_of(
                st.none(), st.binary(max_size=40), st.lists(st.binary(max_size=8), min_size=2, max_size=2)
            ),
        ),
        max_size=8,
    ),
    floor=st.integers(0, 5),
)
def test_what_is_stored_comes_back(entries: list[Any], floor: int) -> None:
    before = window()
    before.floor = floor
    for number, path, reply in entries:
        before.add(entry_key(number, path), reply, 0)
    after = reloaded(before)
    assert (after.entries, after.floor, after.dropped) == (before.entries, before.floor, before.dropped)
    assert after.highest == max([floor - 1, 0, *(number for number, _, _ in entries)])
    assert after.stored


def test_only_calls_that_may_come_again_are_kept_beside_the_latest() -> None:
    state = Client(b"c" * 16)
    state.floor, state.stragglers, state.low = 5, (2,), 2
    kept = window(state)
    for number in range(1, 8):
        kept.add(number, b"%d" % number, state.low)
    kept.prune()
    assert list(kept.entries) == [2, 5, 6, 7]
    state.floor, state.stragglers, state.low = 8, (), 8
    kept.add(8, b"8", state.low)
    kept.prune()
    assert list(kept.entries) == [8]


def test_beyond_the_bound_the_oldest_calls_are_dropped_and_remembered_as_dropped() -> None:
    full = window()
    for number in (*range(50, 0, -1), 99):
        full.add(number, b"", 0)
    full.trim(40, 1_000)
    assert set(full.entries) == {*range(22, 51), 99}
    assert full.dropped == 21
    assert reloaded(full).dropped == 21


def test_beyond_the_bytes_large_replies_become_a_note_and_the_latest_is_the_last_to_go() -> None:
    full = window()
    for number, size in ((1, 400), (2, 10), (3, 400), (4, 400)):
        full.add(number, bytes(size), 0)
    full.trim(40, 900)
    assert [None if reply is None else len(reply) for reply in full.entries.values()] == [None, 10, 400, 400]
    full.add(5, [bytes(2_000), b"digest"], 0)
    full.trim(40, 900)
    assert full.entries[5] == [None, b"digest"]
    assert len(full.entries[2]) == 10
