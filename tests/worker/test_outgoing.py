"""What a door sends: in order for each peer, and one that does not read costs a bounded number of bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from perdure import protocol
from perdure.backlog import Backlog
from perdure.channel import PeerGone, WouldBlock
from perdure.limits import Limits
from perdure_worker.outgoing import Outgoing

LIMITS = dataclasses.replace(Limits(), reply_queue_bytes_max=1_000, reply_queues_bytes_max=1_500)


class Door:
    """Peers, some of which read."""

    def __init__(self) -> None:
        self.silent: set[bytes] = set()
        self.gone: set[bytes] = set()
        self.tries = 0
        self.got: list[tuple[bytes, bytes]] = []
        self.forgotten: list[bytes] = []
        self.asked_again = 0
        self.full: set[bytes] = set()
        self.now = 0.0
        self.outgoing = Outgoing(
            self.send, self.forgotten.append, self.again_later, self.full, LIMITS, lambda: self.now
        )

    def send(self, frames: Sequence[bytes]) -> None:
        self.tries += 1
        identity, _, body = frames
        if identity in self.gone:
            raise PeerGone("gone")
        if identity in self.silent:
            raise WouldBlock("full")
        self.got.append((identity, body))

    def again_later(self) -> None:
        self.asked_again += 1

    def say(self, identity: bytes, body: bytes) -> None:
        self.outgoing.send(identity, b"h", body)

    def bodies(self, identity: bytes) -> list[bytes]:
        return [body for who, body in self.got if who == identity]


def test_messages_of_a_peer_that_was_slow_leave_in_order_and_others_do_not_wait() -> None:
    door = Door()
    door.silent.add(b"slow")
    door.say(b"slow", b"1")
    door.say(b"fast", b"1")
    door.silent.clear()
    door.say(b"slow", b"2")  # behind the one that waits
    assert door.got == [(b"fast", b"1")]
    door.outgoing.send_waiting()
    assert door.bodies(b"slow") == [b"1", b"2"]
    door.say(b"slow", b"3")
    assert door.bodies(b"slow") == [b"1", b"2", b"3"]


def test_what_is_sent_now_or_not_at_all_overtakes_nothing_and_says_what_became_of_it() -> None:
    door = Door()

    def try_send(identity: bytes) -> bool | None:
        return door.outgoing.try_send(identity, b"h", b"now")

    assert try_send(b"fast") is True
    door.silent.add(b"slow")
    assert try_send(b"slow") is False
    door.say(b"slow", b"1")
    door.silent.clear()
    assert try_send(b"slow") is False  # "1" waits
    door.outgoing.send_waiting()
    assert try_send(b"slow") is True
    assert door.bodies(b"slow") == [b"1", b"now"]
    door.gone.add(b"gone")
    assert try_send(b"gone") is None
    assert door.forgotten == [b"gone"]


def test_it_is_asked_for_another_try_as_long_as_somebody_waits() -> None:
    door = Door()
    door.silent.add(b"slow")
    door.say(b"slow", b"1")
    assert door.asked_again == 1
    door.outgoing.send_waiting()
    assert door.asked_again == 2
    door.silent.clear()
    door.outgoing.send_waiting()
    assert door.asked_again == 2


def test_a_peer_that_does_not_read_loses_what_is_over_its_bound_and_that_is_counted() -> None:
    door = Door()
    door.silent.add(b"slow")
    for number in range(5):
        door.say(b"slow", bytes([number]) * 299)
    assert door.outgoing.waiting.total_bytes == 900
    assert door.outgoing.dropped == 2


def test_peers_that_do_not_read_are_bounded_together() -> None:
    door = Door()
    for number in range(10):
        door.silent.add(bytes([number]))
        door.say(bytes([number]), b"x" * 499)
    assert door.outgoing.waiting.total_bytes == 1_500
    assert door.outgoing.dropped == 7


def test_who_does_not_read_half_of_its_bound_is_told_of_until_it_reads() -> None:
    door = Door()
    door.silent.add(b"slow")
    door.say(b"slow", b"x" * 499)
    assert door.full == set()
    door.say(b"slow", b"x")
    assert door.full == {b"slow"}
    door.outgoing.send_waiting()
    assert door.full == {b"slow"}
    door.silent.clear()
    door.outgoing.send_waiting()
    assert door.full == set()


def test_what_waits_for_a_peer_that_is_gone_is_forgotten_with_it() -> None:
    door = Door()
    door.silent.add(b"slow")
    door.say(b"slow", b"x" * 600)
    door.gone.add(b"slow")
    door.outgoing.send_waiting()
    assert door.forgotten == [b"slow"]
    assert door.outgoing.waiting.total_bytes == 0
    assert door.full == set()
    door.gone.add(b"other")
    door.say(b"other", b"x")
    assert door.forgotten == [b"slow", b"other"]
    assert not door.outgoing.waiting


def test_after_a_reading_of_the_door_only_some_of_many_are_tried_and_all_have_their_turn() -> None:
    door = Door()
    peers = [bytes([number]) for number in range(100)]
    door.silent.update(peers)
    for peer in peers:
        door.say(peer, b"x")
    door.tries = 0
    door.outgoing.send_some()
    assert 0 < door.tries < 20
    door.silent.clear()
    for _ in range(100):
        door.outgoing.send_some()
    assert {who for who, _ in door.got} == set(peers)
    door.tries = 0
    door.outgoing.send_some()
    assert door.tries == 0


# --- the router, whose ZeroMQ reads ahead

BUNDLE = protocol.header(protocol.BUNDLE, 0, 1)
WINDOW = LIMITS.pipe_bytes_max
QUARTER = bytes(WINDOW // 4)


def bundles(door: Door, count: int, body: bytes = QUARTER) -> None:
    for _ in range(count):
        door.outgoing.send(b"router", BUNDLE, body)


def make_roomy_door() -> Door:
    door = Door()
    door.outgoing.waiting = Backlog(Limits().reply_queue_bytes_max, Limits().reply_queues_bytes_max)
    return door


def test_a_router_gets_large_bundles_only_as_fast_as_it_says_that_it_has_read_them() -> None:
    door = make_roomy_door()
    bundles(door, 7)
    assert len(door.bodies(b"router")) == 4
    assert door.asked_again == 1
    door.outgoing.send_waiting()
    assert len(door.bodies(b"router")) == 4
    door.outgoing.taken(b"router", 2 * len(QUARTER))
    assert len(door.bodies(b"router")) == 6
    door.outgoing.taken(b"router", len(QUARTER))
    assert len(door.bodies(b"router")) == 7
    assert not door.outgoing.waiting


def test_a_bundle_that_is_larger_than_the_window_goes_alone() -> None:
    door = make_roomy_door()
    bundles(door, 2, bytes(2 * WINDOW))
    assert len(door.bodies(b"router")) == 1
    door.outgoing.taken(b"router", 2 * WINDOW)
    assert len(door.bodies(b"router")) == 2


def test_small_bundles_and_messages_of_direct_clients_ask_for_no_such_word() -> None:
    door = make_roomy_door()
    small = bytes(LIMITS.large_message_bytes - 1)
    bundles(door, 2 * WINDOW // len(small), small)
    for _ in range(8):
        door.outgoing.send(b"client", protocol.header(protocol.REPLIES, 0, 1), QUARTER)
    assert not door.outgoing.waiting


def test_a_router_that_has_died_is_found_out_although_it_says_nothing() -> None:
    door = make_roomy_door()
    bundles(door, 5)
    door.gone.add(b"router")
    door.now = LIMITS.heartbeat_lost_s - 0.1
    door.outgoing.send_waiting()
    assert door.forgotten == []
    door.now = LIMITS.heartbeat_lost_s
    door.outgoing.send_waiting()
    assert door.forgotten == [b"router"]
    assert not door.outgoing.waiting
