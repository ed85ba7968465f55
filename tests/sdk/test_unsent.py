"""Large messages on their way: bounded for each peer and for all, and forgotten when they have left."""

from __future__ import annotations

from perdure.unsent import Unsent


class Way:
    """Messages that leave when the test says so."""

    def __init__(self, peer_bytes_max: int = 100, total_bytes_max: int = 1_000) -> None:
        self.unsent = Unsent(peer_bytes_max, total_bytes_max)
        self.left: set[int] = set()
        self._number = 0

    def hand_over(self, peer: bytes, size: int) -> int | None:
        """The number of the message; None when it is not taken."""
        if not self.unsent.takes(peer, size):
            return None
        self._number += 1
        number = self._number
        self.unsent.add(peer, size, lambda: number in self.left)
        return number


def test_one_peer_is_bounded_until_messages_have_left() -> None:
    way = Way()
    first, second = way.hand_over(b"a", 60), way.hand_over(b"a", 40)
    assert first
    assert second
    assert way.hand_over(b"a", 1) is None
    assert way.hand_over(b"b", 100), "another one is not touched"
    way.left.add(first)
    assert way.hand_over(b"a", 60)
    assert way.unsent.total_bytes == 200


def test_messages_leave_in_order_so_a_later_one_alone_makes_no_room() -> None:
    way = Way()
    way.hand_over(b"a", 60)
    second = way.hand_over(b"a", 40)
    assert second
    way.left.add(second)
    assert way.hand_over(b"a", 40) is None


def test_one_that_is_larger_than_the_bound_goes_alone() -> None:
    way = Way()
    large = way.hand_over(b"a", 500)
    assert large
    assert way.hand_over(b"a", 1) is None
    way.left.add(large)
    assert way.hand_over(b"a", 1)
    assert way.hand_over(b"a", 500) is None


def test_all_peers_together_are_bounded() -> None:
    way = Way(total_bytes_max=250)
    numbers = [way.hand_over(bytes([peer]), 100) for peer in range(3)]
    assert numbers == [1, 2, None]
    way.left.add(2)
    assert way.hand_over(b"x", 100)
    assert way.hand_over(b"y", 100) is None


def test_one_that_is_larger_than_all_together_may_have_goes_when_nothing_else_does() -> None:
    way = Way(total_bytes_max=250)
    large = way.hand_over(b"a", 300)
    assert large
    assert way.hand_over(b"b", 10) is None
    way.left.add(large)
    assert way.hand_over(b"b", 10)


def test_peers_that_never_come_again_are_forgotten() -> None:
    way = Way(total_bytes_max=1_000_000)
    for peer in range(1_000):
        number = way.hand_over(peer.to_bytes(4, "big"), 10)
        assert number
        way.left.add(number)
    assert len(way.unsent) <= 2
