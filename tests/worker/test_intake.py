"""Calls that have come in: every client's in order, the clients in turns, for a bounded time."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import codec
from perdure.errors import InvalidArgument
from perdure.limits import Limits
from perdure.protocol import array_header
from perdure_worker.clients import Client
from perdure_worker.intake import PORTION, Intake, readable_items
from perdure_worker.peers import Peer

LONG, SHORT = Peer(b"long", None, raw=False), Peer(b"short", None, raw=False)
CLIENT = Client(b"c" * 16)


class Looks:
    """Notes what is looked at; each look takes a portion's time."""

    def __init__(self, seconds: float = 0.0, at_once: int = PORTION) -> None:
        self.now = 0.0
        self.seen: list[tuple[Peer, Any]] = []
        self._seconds = seconds
        self._at_once = at_once

    def clock(self) -> float:
        return self.now

    def look_at(self, peer: Peer, client: Client, items: list[Any], start: int, *_: Any) -> int:
        stop = min(start + self._at_once, len(items))
        self.seen += [(peer, item) for item in items[start:stop]]
        self.now += self._seconds
        return stop


def test_a_short_batch_is_looked_at_before_the_rest_of_a_long_one() -> None:
    looks = Looks()
    intake = Intake(Limits(), looks.clock)
    intake.add(LONG, CLIENT, ["head", *range(3 * PORTION)], 1, 0.0, 1)
    intake.add(SHORT, CLIENT, ["head", "single"], 1, 0.0, 1)
    assert intake
    assert not intake.take(looks.look_at, 0.0, 1.0)
    assert looks.seen.index((SHORT, "single")) == PORTION
    assert [item for peer, item in looks.seen if peer is LONG] == list(range(3 * PORTION))
    assert not intake
    assert intake.unread == 0


@pytest.mark.parametrize("at_once", [1, PORTION])
def test_what_is_left_after_the_time_of_a_tick_waits_for_the_next_one(at_once: int) -> None:
    looks = Looks(1.0, at_once)
    intake = Intake(Limits(), looks.clock)
    intake.add(LONG, CLIENT, ["head", "seen before", *range(2 * at_once + 1)], 2, 0.0, 1)
    for left in (at_once + 1, 1, 0):
        assert intake.take(looks.look_at, looks.now, looks.now + 1.0) == bool(left)
        assert intake.unread == left
    assert [item for _, item in looks.seen] == list(range(2 * at_once + 1))


def test_without_time_nothing_is_looked_at() -> None:
    looks = Looks()
    intake = Intake(Limits(), looks.clock)
    intake.add(LONG, CLIENT, ["head", 1], 1, 0.0, 1)
    assert intake.take(looks.look_at, 1.0, 1.0)
    assert looks.seen == []


def test_there_is_room_while_few_calls_wait_to_be_looked_at() -> None:
    looks = Looks()
    intake = Intake(Limits(waiting_items_max=PORTION), looks.clock)
    assert intake.has_room
    intake.add(LONG, CLIENT, ["head", *range(2 * PORTION)], 1, 0.0, 1)
    assert not intake.has_room
    intake.take(looks.look_at, 0.0, 1.0)
    assert intake.has_room


def test_an_unreadable_call_is_told_apart_from_those_beside_it() -> None:
    unreadable = codec.encode([7]).replace(b"\x91", b"\x92") + b"\xc7\x00\x63"  # an unknown extension
    parts = [codec.encode(b"c" * 16), codec.encode([1, "x"]), unreadable, b"\xc7\x00\x63"]
    items, refused = readable_items(array_header(len(parts)) + b"".join(parts))
    assert items == [b"c" * 16, [1, "x"]]
    assert [sequence for sequence, _ in refused] == [7, None]
    assert all(isinstance(error, InvalidArgument) for _, error in refused)


def test_a_batch_without_a_readable_head_is_refused_whole() -> None:
    with pytest.raises(InvalidArgument):
        readable_items(array_header(1) + b"\xc7\x00\x63")
    with pytest.raises(InvalidArgument):
        readable_items(b"\xc1")
