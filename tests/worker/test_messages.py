"""Durable sends as rows: they come back as they were, in order, and never stand in another object's way."""

from __future__ import annotations

import pytest

from perdure import codec
from perdure.ids import id_from_name, new_unique_id
from perdure_storage import keys
from perdure_storage.errors import DamagedRecord
from perdure_storage.records import seal
from perdure_worker.messages import (
    CLIENT_MARK,
    DEAD,
    DELAYED,
    ORDERED,
    PLANNED,
    Message,
    lane_bounds,
    read_message,
)

SENDER = keys.object_prefix(7, "Sender", id_from_name("Sender", "s").key)


def message(target: str = "t", sequence: int = 5, lane: bytes = ORDERED, prefix: bytes = SENDER) -> Message:
    made = Message(
        prefix, "Target", id_from_name("Target", target).key, target, "take", codec.encode([[1], {"a": 2}])
    )
    made.sequence, made.lane = sequence, lane
    return made


@pytest.mark.parametrize("lane", [ORDERED, DELAYED, DEAD])
def test_a_message_comes_back_as_it_was(lane: bytes) -> None:
    kept = message(lane=lane)
    kept.at_ms, kept.sent_ms, kept.attempts, kept.error = 17, 16, 3, "ValueError: no"
    read = read_message(SENDER, kept.row, kept.record())
    assert all(getattr(read, name) == getattr(kept, name) for name in Message.__slots__)
    assert read.arguments() == ([1], {"a": 2})


def test_a_record_is_what_the_page_about_the_data_shows() -> None:
    kept = message(sequence=2**50)
    kept.sent_ms = 3
    payload = ["Target", kept.key, "t", "take", codec.encode([[1], {"a": 2}]), 0, 3, 0, None]
    assert codec.decode(kept.record()[5:]) == payload


def test_a_newer_version_may_say_more() -> None:
    kept = message()
    longer = [*codec.decode(kept.record()[5:]), "more"]
    assert read_message(SENDER, kept.row, seal(kept.row, codec.encode(longer))).method == "take"


def test_a_damaged_record_is_found() -> None:
    kept = message()
    with pytest.raises(DamagedRecord):
        read_message(SENDER, kept.row, kept.record()[:-1] + b"x")


def test_its_row_is_one_of_its_sender() -> None:
    row = keys.parse_object_row(message().row)
    assert (row.slot, row.namespace, row.kind) == (7, "Sender", keys.OUTBOX)
    assert row.key == message().tail


def test_its_row_in_the_due_index_names_time_sender_and_row() -> None:
    late = message(lane=DELAYED)
    late.at_ms = 1_234
    sender = id_from_name("Sender", "s").key
    assert late.due_row == keys.due_key(1_234, keys.OUTBOX, 7, "Sender", sender, late.tail)


def test_rows_of_a_lane_and_target_are_neighbours_in_the_order_of_their_sequences() -> None:
    rows = [
        message(t, n, lane).row for lane in (ORDERED, DELAYED) for t in "tu" for n in (1, 255, 256, 2**40)
    ]
    start, stop = lane_bounds(SENDER, ORDERED, id_from_name("Target", "t").key, after=1)
    assert [row for row in sorted(rows) if start <= row < stop] == rows[1:4]
    start, stop = lane_bounds(SENDER, DELAYED)
    assert sorted(row for row in rows if start <= row < stop) == sorted(rows[8:])


def test_a_planned_row_stands_behind_all_others() -> None:
    assert max(ORDERED, DELAYED, DEAD) < PLANNED


def test_request_ids_are_the_senders_for_ordered_messages_and_their_own_for_delayed_ones() -> None:
    other = keys.object_prefix(7, "Sender", new_unique_id("Sender").key)
    assert message(sequence=1).client == message("u", sequence=2).client
    assert message().client != message(prefix=other).client
    assert message(lane=DELAYED).client != message().client
    assert message(sequence=1, lane=DELAYED).client != message(sequence=2, lane=DELAYED).client


@pytest.mark.parametrize("lane", [ORDERED, DELAYED])
def test_a_target_can_tell_by_the_client_that_a_call_is_a_send(lane: bytes) -> None:
    assert len(message(lane=lane).client) == 16
    assert message(lane=lane).client.endswith(CLIENT_MARK)
