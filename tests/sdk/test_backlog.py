"""Messages for peers that do not read: in order, bounded for each and for all."""

from __future__ import annotations

from perdure.backlog import Backlog


def answer(origin: bytes, number: int, size: int = 100) -> tuple[bytes, bytes, bytes]:
    return origin, bytes([number]) * 16, bytes(size - 16)


def test_answers_leave_in_order_and_each_stays_until_it_was_sent() -> None:
    backlog = Backlog(1_000, 1_000)
    answers = [answer(b"a", number) for number in range(3)]
    assert all(backlog.hold(each) == 0 for each in answers)
    seen = []
    while (first := backlog.first(b"a")) is not None:
        assert backlog.first(b"a") is first
        seen.append(first)
        backlog.sent(b"a")
    assert seen == answers
    assert (len(backlog), backlog.total_bytes, b"a" in backlog) == (0, 0, False)


def test_one_peer_is_bounded_without_touching_another() -> None:
    backlog = Backlog(250, 1_000)
    assert [backlog.hold(answer(b"a", number)) for number in range(3)] == [0, 0, 1]
    assert backlog.hold(answer(b"b", 1)) == 0
    backlog.sent(b"a")
    assert backlog.hold(answer(b"a", 3)) == 0
    assert backlog.bytes_for(b"a") == 200


def test_all_peers_together_are_bounded() -> None:
    backlog = Backlog(250, 300)
    assert [backlog.hold(answer(bytes([origin]), 1)) for origin in range(5)] == [0, 0, 0, 1, 1]
    assert backlog.some_peers(9) == [b"\0", b"\1", b"\2"]
    assert backlog.total_bytes == 300


def test_when_all_together_hold_too_much_whoever_holds_most_loses_its_latest_ones() -> None:
    backlog = Backlog(500, 500)
    for number in range(5):
        backlog.hold(answer(b"greedy", number))
    assert backlog.hold(answer(b"modest", 1, size=200)) == 2
    assert backlog.total_bytes == 500
    assert backlog.hold(answer(b"another", 1)) == 1
    assert [backlog.bytes_for(peer) for peer in (b"greedy", b"modest", b"another")] == [200, 200, 100]
    assert backlog.first(b"greedy") == answer(b"greedy", 0)
    assert backlog.hold(answer(b"another", 2, size=200)) == 1, "it would hold most itself"


def test_a_peer_that_loses_everything_is_not_there_any_more() -> None:
    backlog = Backlog(500, 500)
    backlog.hold(answer(b"one", 1, size=500))
    assert backlog.hold(answer(b"two", 1, size=100)) == 1
    assert b"one" not in backlog
    assert backlog.total_bytes == 100


def test_a_message_larger_than_everything_is_refused_when_nothing_waits() -> None:
    assert Backlog(1_000, 500).hold(answer(b"a", 1, size=501)) == 1


def test_some_peers_are_others_each_time() -> None:
    backlog = Backlog(250, 1_000)
    for origin in range(5):
        backlog.hold(answer(bytes([origin]), 1))
    assert [backlog.some_peers(2) for _ in range(3)] == [[b"\0", b"\1"], [b"\2", b"\3"], [b"\4", b"\0"]]


def test_a_forgotten_peer_gives_its_room_back() -> None:
    backlog = Backlog(250, 250)
    backlog.hold(answer(b"a", 1))
    backlog.hold(answer(b"a", 2))
    assert backlog.forget(b"a") == 2
    assert backlog.forget(b"a") == 0
    assert backlog.total_bytes == 0
    assert backlog.hold(answer(b"b", 1, size=250)) == 0
