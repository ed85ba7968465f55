"""What the supervisor remembers: it comes back as it was, and damage is never taken for a state."""

from __future__ import annotations

import json

import pytest

from perdure_cli.errors import StateDamaged, StateTooNew
from perdure_cli.state import ClusterState, first_state, from_text, to_text

STATE = ClusterState(
    engine="leveldb",
    slot_count=1_024,
    ranges=(range(300), range(300, 1_024)),
    epochs=(17, 4),
    router_epoch=3,
    map_version=40,
    unprovisioned=(1,),
)


def test_a_state_comes_back_from_its_text() -> None:
    assert from_text(to_text(STATE)) == STATE


def test_the_first_state_has_given_out_nothing_and_covers_all_slots() -> None:
    state = first_state("leveldb", 1_024, 3)
    assert state.epochs == (0, 0, 0)
    assert state.unprovisioned == (0, 1, 2)
    assert sorted(slot for slots in state.ranges for slot in slots) == list(range(1_024))


def test_no_flipped_bit_and_no_lost_end_passes_for_a_state() -> None:
    text = to_text(STATE)
    kept = []
    for position in range(len(text)):
        for bit in (1, 2, 4, 16):
            flipped = text[:position] + chr(ord(text[position]) ^ bit) + text[position + 1 :]
            try:
                kept.append(from_text(flipped))
            except (StateDamaged, StateTooNew):
                continue
    # What does get through changed white space only.
    assert all(state == STATE for state in kept)
    for end in range(len(text.rstrip())):
        with pytest.raises(StateDamaged):
            from_text(text[:end])


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "7", "{}", '{"format": "x"}', '{"format": 1}', "\x00" * 50]
)
def test_what_is_no_state_is_refused(text: str) -> None:
    with pytest.raises(StateDamaged):
        from_text(text)


def test_a_newer_format_is_named_whatever_else_it_holds() -> None:
    with pytest.raises(StateTooNew) as raised:
        from_text(json.dumps({"format": 2, "all": "different"}))
    assert (raised.value.found, raised.value.supported) == (2, 1)


@pytest.mark.parametrize("workers", [1, 3])
def test_after_a_change_of_the_number_of_workers_no_epoch_is_below_any_that_was_given(workers: int) -> None:
    ranges = first_state("leveldb", 1_024, workers).ranges
    state = STATE.with_ranges(ranges)
    assert state.ranges == ranges
    assert state.epochs == (17,) * workers
    assert (state.router_epoch, state.map_version) == (3, 40)
